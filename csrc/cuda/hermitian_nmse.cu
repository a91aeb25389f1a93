// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of hermitian_nmse on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/nmse_inputs.hpp"
#include "../common/outputs.hpp"
#include "call.hpp"
#include "hermitian_nmse.cuh"
#include "resources.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& estimate, const Tensor& target,
                                   std::optional<Tensor> mask, double lam_diag, double lam_off,
                                   double eps) {
  const char* op = "hermitian_nmse";
  check_nmse(op, DeviceType::CUDA, estimate, target, mask, lam_diag, lam_off, eps);
  const auto real = real_of(estimate.scalar_type());
  const int64_t scenes = estimate.size(0);
  Tensor nmse = new_output(estimate, {scenes}, real);
  Tensor sums = new_output(estimate, {scenes, 4}, real);
  if (scenes == 0) return {nmse, sums};
  cuda::run_on_device(op, estimate, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem = nmse_problem<T>(estimate, target, mask, lam_diag, lam_off, eps);
    cuda::hermitian_nmse_forward(device, problem, mutable_real_pointer<T>(nmse),
                                 mutable_real_pointer<T>(sums));
  });
  return {nmse, sums};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& estimate,
                                    const Tensor& target, const Tensor& sums,
                                    std::optional<Tensor> mask, double lam_diag, double lam_off,
                                    double eps, bool need_estimate, bool need_target) {
  const char* op = "hermitian_nmse_backward";
  check_nmse(op, DeviceType::CUDA, estimate, target, mask, lam_diag, lam_off, eps);
  const int64_t scenes = estimate.size(0);
  check_real_companion(op, "grad", grad, {scenes}, estimate);
  check_real_companion(op, "sums", sums, {scenes, 4}, estimate);
  const Tensor packed_sums = torch::stable::contiguous(sums);
  Tensor grad_estimate = new_gradient(estimate, need_estimate);
  Tensor grad_target = new_gradient(target, need_target);
  if (scenes == 0 || !(need_estimate || need_target)) return {grad_estimate, grad_target};
  cuda::run_on_device(op, estimate, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem = nmse_problem<T>(estimate, target, mask, lam_diag, lam_off, eps);
    cuda::hermitian_nmse_backward(device, problem, real_pointer<T>(grad), grad.stride(0),
                                  real_pointer<T>(packed_sums),
                                  need_estimate ? mutable_real_pointer<T>(grad_estimate) : nullptr,
                                  need_target ? mutable_real_pointer<T>(grad_target) : nullptr);
  });
  return {grad_estimate, grad_target};
}

template <typename T>
void example(const cuda::Target& device, const cuda::ExampleShape& shape) {
  NmseProblem<T> problem{};
  problem.scenes = shape.scenes;
  problem.elements = shape.elements;
  problem.estimate = problem.target = cuda::example_pointer<T>();
  const int64_t stride[] = {shape.elements * shape.elements, shape.elements, 1};
  for (int i = 0; i < 3; ++i) problem.estimate_stride[i] = problem.target_stride[i] = stride[i];
  problem.lam_diag = problem.lam_off = 0.5;
  T* const memory = cuda::example_pointer<T>();
  if (shape.backward)
    cuda::hermitian_nmse_backward(device, problem, static_cast<const T*>(memory), int64_t{1},
                                  static_cast<const T*>(memory), memory, memory);
  else
    cuda::hermitian_nmse_forward(device, problem, memory, memory);
}

const cuda::AddExamples kExamples("hermitian_nmse", &example<float>, &example<double>,
                                  cuda::kNmseShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("hermitian_nmse_forward", TORCH_BOX(&forward));
  m.impl("hermitian_nmse_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
