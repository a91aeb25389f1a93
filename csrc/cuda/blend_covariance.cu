// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of blend_covariance on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../common/blend_inputs.hpp"
#include "../common/outputs.hpp"
#include "blend_covariance.cuh"
#include "call.hpp"
#include "resources.hpp"

namespace riskernels {
namespace {

Tensor blend(const Tensor& pred, const Tensor& samp, double beta,
             std::optional<double> target_trace, double loading, double shrinkage) {
  const char* op = "blend_covariance";
  check_blend(op, DeviceType::CUDA, pred, samp, beta, target_trace, loading, shrinkage);
  Tensor out = new_output(pred, shape(pred));
  if (pred.size(0) == 0) return out;
  cuda::run_on_device(op, pred, [&]<typename T>(const cuda::Target& target, T) {
    const auto problem = blend_problem<T>(pred, samp, beta, target_trace, loading, shrinkage);
    cuda::blend_covariance(target, problem, mutable_real_pointer<T>(out));
  });
  return out;
}

Tensor blend_backward(const Tensor& grad, const Tensor& pred, const Tensor& samp, double beta,
                      std::optional<double> target_trace, double loading, double shrinkage) {
  const char* op = "blend_covariance_backward";
  check_blend(op, DeviceType::CUDA, pred, samp, beta, target_trace, loading, shrinkage);
  check_complex(op, "grad", grad, pred);
  check_shape(op, "grad", grad, {pred.size(0), pred.size(1), pred.size(2)});
  Tensor grad_pred = new_output(pred, shape(pred));
  if (pred.size(0) == 0) return grad_pred;
  cuda::run_on_device(op, pred, [&]<typename T>(const cuda::Target& target, T) {
    const auto problem = blend_problem<T>(pred, samp, beta, target_trace, loading, shrinkage);
    const IncomingGradient<T> incoming{real_pointer<T>(grad),
                                       {grad.stride(0), grad.stride(1), grad.stride(2)}};
    cuda::blend_covariance_backward(target, problem, incoming, mutable_real_pointer<T>(grad_pred));
  });
  return grad_pred;
}

template <typename T>
void example(const cuda::Target& target, const cuda::ExampleShape& shape) {
  const int64_t n = shape.elements;
  BlendProblem<T> problem{};
  problem.scenes = shape.scenes;
  problem.elements = n;
  problem.pred = problem.samp = cuda::example_pointer<T>();
  const int64_t stride[] = {n * n, n, 1};
  for (int i = 0; i < 3; ++i) problem.pred_stride[i] = problem.samp_stride[i] = stride[i];
  problem.options = {0.3, static_cast<double>(n), 0.0, 0.0};
  T* const memory = cuda::example_pointer<T>();
  if (shape.backward)
    cuda::blend_covariance_backward(target, problem, IncomingGradient<T>{memory, {n * n, n, 1}},
                                    memory);
  else
    cuda::blend_covariance(target, problem, memory);
}

const cuda::AddExamples kExamples("blend_covariance", &example<float>, &example<double>,
                                  cuda::kBlendShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("blend_covariance", TORCH_BOX(&blend));
  m.impl("blend_covariance_backward", TORCH_BOX(&blend_backward));
}

}  // namespace riskernels
