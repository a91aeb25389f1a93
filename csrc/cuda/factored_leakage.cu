// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_leakage on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/factored_inputs.hpp"
#include "../common/outputs.hpp"
#include "call.hpp"
#include "factored_leakage.cuh"
#include "resources.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& factor, std::optional<Tensor> rho,
                                   const Tensor& steering, const Tensor& num_sources,
                                   double ridge) {
  const char* op = "factored_leakage";
  check_factored_leakage(op, DeviceType::CUDA, factor, rho, steering, num_sources, ridge);
  const int64_t scenes = factor.size(0), columns = factor.size(2) + steering.size(2);
  Tensor leakage = new_output(factor, {scenes}, real_of(factor.scalar_type()));
  Tensor gram = new_output(factor, {scenes, columns, columns}, ScalarType::ComplexDouble);
  if (scenes == 0) return {leakage, gram};
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem = factored_leakage_problem<T>(factor, rho, steering, num_sources, ridge);
    cuda::factored_leakage_forward(device, problem, mutable_real_pointer<T>(leakage),
                                   mutable_real_pointer<double>(gram));
  });
  return {leakage, gram};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& factor,
                                    std::optional<Tensor> rho, const Tensor& steering,
                                    const Tensor& num_sources, const Tensor& leakage,
                                    const Tensor& gram, double ridge, bool need_factor,
                                    bool need_rho) {
  const char* op = "factored_leakage_backward";
  check_factored_leakage(op, DeviceType::CUDA, factor, rho, steering, num_sources, ridge);
  check_factored_state(op, grad, gram, factor, steering);
  const int64_t scenes = factor.size(0);
  const auto real = real_of(factor.scalar_type());
  check_companion(op, "leakage", leakage, real, {scenes}, factor);
  const Tensor packed_leakage = torch::stable::contiguous(leakage);
  const Tensor packed_gram = torch::stable::contiguous(gram);
  Tensor to_factor = new_gradient(factor, need_factor);
  Tensor to_rho = new_output(factor, {need_rho ? scenes : 0}, real);
  if (scenes == 0 || !(need_factor || need_rho)) return {to_factor, to_rho};
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem = factored_leakage_problem<T>(factor, rho, steering, num_sources, ridge);
    cuda::factored_leakage_backward(device, problem, real_pointer<T>(grad), grad.stride(0),
                                    real_pointer<T>(packed_leakage),
                                    real_pointer<double>(packed_gram),
                                    need_factor ? mutable_real_pointer<T>(to_factor) : nullptr,
                                    need_rho ? mutable_real_pointer<T>(to_rho) : nullptr);
  });
  return {to_factor, to_rho};
}

template <typename T>
void example(const cuda::Target& device, const cuda::ExampleShape& shape) {
  T* const memory = cuda::example_pointer<T>();
  auto* const gram = cuda::example_pointer<double>();
  FactoredLeakageProblem<T> p{};
  p.scenes = shape.scenes;
  p.elements = shape.elements;
  p.factor = cuda::example_factor<T>(shape.elements, shape.columns);
  p.rho = memory;
  p.rho_stride = 1;
  p.steering = cuda::example_factor<T>(shape.elements, shape.sources);
  p.num_sources = cuda::example_pointer<int64_t>();
  p.num_sources_stride = 1;
  p.ridge = 1e-4;
  if (shape.backward)
    cuda::factored_leakage_backward(device, p, static_cast<const T*>(memory), int64_t{1},
                                    static_cast<const T*>(memory), static_cast<const double*>(gram),
                                    memory, memory);
  else
    cuda::factored_leakage_forward(device, p, memory, gram);
}

const cuda::AddExamples kExamples("factored_leakage", &example<float>, &example<double>,
                                  cuda::kFactoredShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("factored_leakage_forward", TORCH_BOX(&forward));
  m.impl("factored_leakage_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
