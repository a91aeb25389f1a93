// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_nmse on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/factored_inputs.hpp"
#include "../common/outputs.hpp"
#include "call.hpp"
#include "factored_nmse.cuh"
#include "resources.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& factor, std::optional<Tensor> rho,
                                           const Tensor& target, std::optional<Tensor> mask,
                                           double lam_diag, double lam_off, double eps) {
  const char* op = "factored_nmse";
  check_factored_nmse(op, DeviceType::CUDA, factor, rho, target, mask, lam_diag, lam_off, eps);
  const int64_t scenes = factor.size(0), columns = factor.size(2) + target.size(2);
  Tensor nmse = new_output(factor, {scenes}, real_of(factor.scalar_type()));
  Tensor sums = new_output(factor, {scenes, 4}, ScalarType::Double);
  Tensor gram = new_output(factor, {scenes, columns, columns}, ScalarType::ComplexDouble);
  if (scenes == 0) return {nmse, sums, gram};
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem =
        factored_nmse_problem<T>(factor, rho, target, mask, lam_diag, lam_off, eps);
    cuda::factored_nmse_forward(device, problem, mutable_real_pointer<T>(nmse),
                                mutable_real_pointer<double>(sums),
                                mutable_real_pointer<double>(gram));
  });
  return {nmse, sums, gram};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& factor,
                                            std::optional<Tensor> rho, const Tensor& target,
                                            const Tensor& sums, const Tensor& gram,
                                            std::optional<Tensor> mask, double lam_diag,
                                            double lam_off, double eps, bool need_factor,
                                            bool need_rho, bool need_target) {
  const char* op = "factored_nmse_backward";
  check_factored_nmse(op, DeviceType::CUDA, factor, rho, target, mask, lam_diag, lam_off, eps);
  check_factored_state(op, grad, gram, factor, target);
  const int64_t scenes = factor.size(0);
  check_companion(op, "sums", sums, ScalarType::Double, {scenes, 4}, factor);
  const Tensor packed_sums = torch::stable::contiguous(sums);
  const Tensor packed_gram = torch::stable::contiguous(gram);
  Tensor to_factor = new_gradient(factor, need_factor);
  Tensor to_rho = new_output(factor, {need_rho ? scenes : 0}, real_of(factor.scalar_type()));
  Tensor to_target = new_gradient(target, need_target);
  if (scenes == 0 || !(need_factor || need_rho || need_target))
    return {to_factor, to_rho, to_target};
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem =
        factored_nmse_problem<T>(factor, rho, target, mask, lam_diag, lam_off, eps);
    cuda::factored_nmse_backward(device, problem, real_pointer<T>(grad), grad.stride(0),
                                 real_pointer<double>(packed_sums),
                                 real_pointer<double>(packed_gram),
                                 need_factor ? mutable_real_pointer<T>(to_factor) : nullptr,
                                 need_rho ? mutable_real_pointer<T>(to_rho) : nullptr,
                                 need_target ? mutable_real_pointer<T>(to_target) : nullptr);
  });
  return {to_factor, to_rho, to_target};
}

template <typename T>
void example(const cuda::Target& device, const cuda::ExampleShape& shape) {
  T* const memory = cuda::example_pointer<T>();
  auto* const sums = cuda::example_pointer<double>();
  FactoredNmseProblem<T> p{};
  p.scenes = shape.scenes;
  p.elements = shape.elements;
  p.factor = cuda::example_factor<T>(shape.elements, shape.columns);
  p.rho = memory;
  p.rho_stride = 1;
  p.target = cuda::example_factor<T>(shape.elements, shape.sources);
  p.lam_diag = p.lam_off = 0.5;
  if (shape.backward)
    cuda::factored_nmse_backward(device, p, static_cast<const T*>(memory), int64_t{1},
                                 static_cast<const double*>(sums), static_cast<const double*>(sums),
                                 memory, memory, static_cast<T*>(nullptr));
  else
    cuda::factored_nmse_forward(device, p, memory, sums, sums);
}

const cuda::AddExamples kExamples("factored_nmse", &example<float>, &example<double>,
                                  cuda::kFactoredShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("factored_nmse_forward", TORCH_BOX(&forward));
  m.impl("factored_nmse_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
