// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs of the NMSE operator, on every device.
#pragma once

#include <optional>
#include <utility>

#include "nmse_problem.hpp"
#include "tensor_checks.hpp"

namespace riskernels {

// Weights, eps and the mask, for covariances or factors `like` of B scenes and N elements.
inline void check_nmse_options(const char* op, const std::optional<Tensor>& mask, double lam_diag,
                               double lam_off, double eps, const Tensor& like) {
  const std::pair<const char*, double> values[] = {
      {"lam_diag", lam_diag}, {"lam_off", lam_off}, {"eps", eps}};
  for (const auto& [name, value] : values)
    if (!(std::isfinite(value) && value >= 0))
      fail(op, name, " is ", value, ", expected a finite number >= 0");
  if (lam_diag + lam_off <= 0)
    fail(op, "lam_diag + lam_off is 0, expected at least one weight > 0");
  if (mask.has_value()) {
    const int64_t b = like.size(0), n = like.size(1);
    check_dtype(op, "element_mask", *mask, ScalarType::Bool);
    const auto sizes = shape(*mask);
    if (sizes != std::vector<int64_t>{n} && sizes != std::vector<int64_t>{b, n})
      fail(op, "element_mask has shape ", shape_text(sizes), ", expected [", n, "] or [", b, ", ",
           n, "]");
    if (!same_device(*mask, like))
      fail(op, "element_mask is on ", device_text(*mask), ", expected ", device_text(like));
  }
}

inline void check_nmse(const char* op, DeviceType launcher, const Tensor& estimate,
                       const Tensor& target, const std::optional<Tensor>& mask, double lam_diag,
                       double lam_off, double eps) {
  check_complex(op, "estimate", estimate);
  check_complex(op, "target", target, estimate);
  if (estimate.dim() != 3 || estimate.size(1) != estimate.size(2))
    fail(op, "estimate has shape ", shape_text(estimate), ", expected [B, N, N]");
  if (shape(target) != shape(estimate))
    fail(op, "target has shape ", shape_text(target), ", expected ", shape_text(estimate),
         " as estimate");
  if (estimate.size(1) < 1) fail(op, "N must be at least 1, got N=0");
  check_nmse_options(op, mask, lam_diag, lam_off, eps, estimate);
  check_device(op, "estimate", estimate, launcher);
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

}  // namespace riskernels
