// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_blend on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/factored_inputs.hpp"
#include "../common/outputs.hpp"
#include "call.hpp"
#include "factored_blend.cuh"
#include "resources.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& factor, const Tensor& snapshots, double beta,
                                   std::optional<double> target_trace, double loading,
                                   double shrinkage) {
  const char* op = "factored_blend";
  check_factored_blend(op, DeviceType::CUDA, factor, snapshots, beta, target_trace, loading,
                       shrinkage);
  const int64_t scenes = factor.size(0), columns = factor.size(2) + snapshots.size(1);
  Tensor out = new_output(factor, {scenes, factor.size(1), columns});
  Tensor rho = new_output(factor, {scenes}, real_of(factor.scalar_type()));
  if (scenes == 0) return {out, rho};
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem =
        factored_blend_problem<T>(factor, snapshots, beta, target_trace, loading, shrinkage);
    cuda::factored_blend(device, problem, mutable_real_pointer<T>(out),
                         mutable_real_pointer<T>(rho));
  });
  return {out, rho};
}

Tensor backward(const Tensor& grad, const Tensor& factor, const Tensor& snapshots, double beta,
                std::optional<double> target_trace, double loading, double shrinkage) {
  const char* op = "factored_blend_backward";
  check_factored_blend(op, DeviceType::CUDA, factor, snapshots, beta, target_trace, loading,
                       shrinkage);
  check_complex(op, "grad", grad, factor);
  check_shape(op, "grad", grad,
              {factor.size(0), factor.size(1), factor.size(2) + snapshots.size(1)});
  Tensor out = new_gradient(factor, true);
  if (factor.size(0) == 0) return out;
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem =
        factored_blend_problem<T>(factor, snapshots, beta, target_trace, loading, shrinkage);
    const IncomingGradient<T> incoming{real_pointer<T>(grad),
                                       {grad.stride(0), grad.stride(1), grad.stride(2)}};
    cuda::factored_blend_backward(device, problem, incoming, mutable_real_pointer<T>(out));
  });
  return out;
}

template <typename T>
void example(const cuda::Target& device, const cuda::ExampleShape& shape) {
  const int64_t n = shape.elements, k = shape.columns, l = shape.snapshots;
  T* const memory = cuda::example_pointer<T>();
  FactoredBlendProblem<T> p{};
  p.scenes = shape.scenes;
  p.elements = n;
  p.columns = k;
  p.snapshots = l;
  p.factor = p.samples = memory;
  const int64_t factor[] = {n * k, k, 1}, samples[] = {l * n, n, 1};
  for (int i = 0; i < 3; ++i) {
    p.factor_stride[i] = factor[i];
    p.samples_stride[i] = samples[i];
  }
  p.options = {0.3, static_cast<double>(n), 0.0, 0.0};
  if (shape.backward)
    cuda::factored_blend_backward(device, p, IncomingGradient<T>{memory, {n * (k + l), k + l, 1}},
                                  memory);
  else
    cuda::factored_blend(device, p, memory, memory);
}

const cuda::AddExamples kExamples("factored_blend", &example<float>, &example<double>,
                                  cuda::kFactoredBlendShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("factored_blend", TORCH_BOX(&forward));
  m.impl("factored_blend_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
