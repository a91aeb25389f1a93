// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of hermitian_nmse on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "kernels.hpp"
#include "outputs.hpp"
#include "tensor_checks.hpp"

namespace riskernels {
namespace {

void check_nmse(const char* op, const Tensor& estimate, const Tensor& target,
                const std::optional<Tensor>& mask, double lam_diag, double lam_off, double eps) {
  check_complex(op, "estimate", estimate);
  check_complex(op, "target", target, estimate);
  if (estimate.dim() != 3 || estimate.size(1) != estimate.size(2))
    fail(op, "estimate has shape ", shape_text(estimate), ", expected [B, N, N]");
  if (shape(target) != shape(estimate))
    fail(op, "target has shape ", shape_text(target), ", expected ", shape_text(estimate),
         " as estimate");
  const int64_t b = estimate.size(0), n = estimate.size(1);
  if (n < 1) fail(op, "N must be at least 1, got N=0");
  const std::pair<const char*, double> values[] = {
      {"lam_diag", lam_diag}, {"lam_off", lam_off}, {"eps", eps}};
  for (const auto& [name, value] : values)
    if (!(std::isfinite(value) && value >= 0))
      fail(op, name, " is ", value, ", expected a finite number >= 0");
  if (lam_diag + lam_off <= 0)
    fail(op, "lam_diag + lam_off is 0, expected at least one weight > 0");
  if (!mask.has_value()) return;
  check_cpu(op, "element_mask", *mask);
  check_dtype(op, "element_mask", *mask, ScalarType::Bool);
  const auto sizes = shape(*mask);
  if (sizes != std::vector<int64_t>{n} && sizes != std::vector<int64_t>{b, n})
    fail(op, "element_mask has shape ", shape_text(sizes), ", expected [", n, "] or [", b, ", ", n,
         "]");
}

template <typename T>
NmseProblem<T> nmse_problem(const Tensor& estimate, const Tensor& target,
                            const std::optional<Tensor>& mask, double lam_diag, double lam_off,
                            double eps) {
  NmseProblem<T> p{};
  p.scenes = estimate.size(0);
  p.elements = estimate.size(1);
  p.estimate = real_pointer<T>(estimate);
  p.target = real_pointer<T>(target);
  for (int i = 0; i < 3; ++i) {
    p.estimate_stride[i] = estimate.stride(i);
    p.target_stride[i] = target.stride(i);
  }
  if (mask.has_value()) {
    p.mask = static_cast<const bool*>(mask->data_ptr());
    p.mask_stride[0] = mask->dim() == 2 ? mask->stride(0) : 0;
    p.mask_stride[1] = mask->stride(mask->dim() - 1);
  }
  p.lam_diag = lam_diag;
  p.lam_off = lam_off;
  p.eps = eps;
  return p;
}

std::tuple<Tensor, Tensor> forward(const Tensor& estimate, const Tensor& target,
                                   std::optional<Tensor> mask, double lam_diag, double lam_off,
                                   double eps) {
  check_nmse("hermitian_nmse", estimate, target, mask, lam_diag, lam_off, eps);
  const auto real = real_of(estimate.scalar_type());
  const int64_t scenes = estimate.size(0);
  Tensor nmse = new_output(estimate, {scenes}, real);
  Tensor sums = new_output(estimate, {scenes, 4}, real);
  const auto run = [&]<typename T>(T) {
    const auto problem = nmse_problem<T>(estimate, target, mask, lam_diag, lam_off, eps);
    T* const nmse_data = mutable_real_pointer<T>(nmse);
    T* const sums_data = mutable_real_pointer<T>(sums);
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(hermitian_nmse_forward, problem, nmse_data, sums_data, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {nmse, sums};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& estimate,
                                    const Tensor& target, const Tensor& sums,
                                    std::optional<Tensor> mask, double lam_diag, double lam_off,
                                    double eps, bool need_estimate, bool need_target) {
  const char* op = "hermitian_nmse_backward";
  check_nmse(op, estimate, target, mask, lam_diag, lam_off, eps);
  const auto real = real_of(estimate.scalar_type());
  const int64_t scenes = estimate.size(0);
  for (const auto& [name, tensor] : {std::pair<const char*, const Tensor&>{"grad", grad},
                                     std::pair<const char*, const Tensor&>{"sums", sums}}) {
    check_cpu(op, name, tensor);
    check_dtype(op, name, tensor, real);
  }
  check_shape(op, "grad", grad, {scenes});
  check_shape(op, "sums", sums, {scenes, 4});
  const Tensor packed_sums = torch::stable::contiguous(sums);
  const auto empty_like = [](const Tensor& tensor, bool needed) {
    return new_output(tensor, needed ? shape(tensor) : std::vector<int64_t>{0});
  };
  Tensor grad_estimate = empty_like(estimate, need_estimate);
  Tensor grad_target = empty_like(target, need_target);
  if (!need_estimate && !need_target) return {grad_estimate, grad_target};
  const auto run = [&]<typename T>(T) {
    const auto problem = nmse_problem<T>(estimate, target, mask, lam_diag, lam_off, eps);
    const T* const grad_data = real_pointer<T>(grad);
    const T* const sums_data = real_pointer<T>(packed_sums);
    const int64_t grad_stride = grad.stride(0);
    T* const ge = need_estimate ? mutable_real_pointer<T>(grad_estimate) : nullptr;
    T* const gt = need_target ? mutable_real_pointer<T>(grad_target) : nullptr;
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(hermitian_nmse_backward, problem, grad_data, grad_stride, sums_data, ge, gt,
                     begin, end);
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
