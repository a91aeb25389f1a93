// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of hermitian_nmse on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/nmse_inputs.hpp"
#include "../common/outputs.hpp"
#include "kernels.hpp"
#include "nmse_blocks.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& estimate, const Tensor& target,
                                   std::optional<Tensor> mask, double lam_diag, double lam_off,
                                   double eps) {
  check_nmse("hermitian_nmse", DeviceType::CPU, estimate, target, mask, lam_diag, lam_off, eps);
  const auto real = real_of(estimate.scalar_type());
  const int64_t scenes = estimate.size(0);
  Tensor nmse = new_output(estimate, {scenes}, real);
  Tensor sums = new_output(estimate, {scenes, 4}, real);
  const auto run = [&]<typename T>(T) {
    const auto problem = nmse_problem<T>(estimate, target, mask, lam_diag, lam_off, eps);
    T* const nmse_data = mutable_real_pointer<T>(nmse);
    T* const sums_data = mutable_real_pointer<T>(sums);
    const int64_t blocks = nmse_blocks(problem.elements);
    if (blocks == 1 || !fewer_than_threads(scenes)) {
      for_each_range(scenes, [&](int64_t begin, int64_t end) {
        RISKERNELS_RUN(hermitian_nmse_forward, problem, nmse_data, sums_data, begin, end);
      });
      return;
    }
    Tensor block_sums = new_output(estimate, {scenes, blocks, 4}, ScalarType::Double);
    double* const data = mutable_real_pointer<double>(block_sums);
    for_each_range(scenes * blocks, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(hermitian_nmse_blocks, problem, data, begin, end);
    });
    RISKERNELS_RUN(hermitian_nmse_finish, problem, data, nmse_data, sums_data, 0, scenes);
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {nmse, sums};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& estimate,
                                    const Tensor& target, const Tensor& sums,
                                    std::optional<Tensor> mask, double lam_diag, double lam_off,
                                    double eps, bool need_estimate, bool need_target) {
  const char* op = "hermitian_nmse_backward";
  check_nmse(op, DeviceType::CPU, estimate, target, mask, lam_diag, lam_off, eps);
  const auto real = real_of(estimate.scalar_type());
  const int64_t scenes = estimate.size(0);
  check_real_companion(op, "grad", grad, {scenes}, estimate);
  check_real_companion(op, "sums", sums, {scenes, 4}, estimate);
  const Tensor packed_sums = torch::stable::contiguous(sums);
  Tensor grad_estimate = new_gradient(estimate, need_estimate);
  Tensor grad_target = new_gradient(target, need_target);
  if (!need_estimate && !need_target) return {grad_estimate, grad_target};
  const auto run = [&]<typename T>(T) {
    const auto problem = nmse_problem<T>(estimate, target, mask, lam_diag, lam_off, eps);
    const T* const grad_data = real_pointer<T>(grad);
    const T* const sums_data = real_pointer<T>(packed_sums);
    const int64_t grad_stride = grad.stride(0);
    T* const ge = need_estimate ? mutable_real_pointer<T>(grad_estimate) : nullptr;
    T* const gt = need_target ? mutable_real_pointer<T>(grad_target) : nullptr;
    const bool stream = estimate.numel() * 2 * int64_t(sizeof(T)) > kStreamBytes;
    for_each_range(scenes * nmse_blocks(problem.elements), [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(hermitian_nmse_backward, problem, grad_data, grad_stride, sums_data, stream,
                     ge, gt, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {grad_estimate, grad_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("hermitian_nmse_forward", TORCH_BOX(&forward));
  m.impl("hermitian_nmse_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
