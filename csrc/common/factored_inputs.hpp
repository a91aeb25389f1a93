// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs of the operators on factored covariances, on every device.
#pragma once

#include <optional>

#include "blend_inputs.hpp"
#include "factored_problem.hpp"
#include "leakage_inputs.hpp"
#include "nmse_inputs.hpp"

namespace riskernels {

// A factor [B, N, columns].
inline void check_factor(const char* op, const char* name, const Tensor& tensor,
                         const char* columns) {
  check_complex(op, name, tensor);
  if (tensor.dim() != 3)
    fail(op, name, " has shape ", shape_text(tensor), ", expected [B, N, ", columns, "]");
  if (tensor.size(1) < 1 || tensor.size(2) < 1)
    fail(op, "N and ", columns, " must be at least 1, got N=", tensor.size(1), ", ", columns, "=",
         tensor.size(2));
}

// Another factor with the B, N, dtype and device of `like`.
inline void check_factor(const char* op, const char* name, const Tensor& tensor,
                         const char* columns, const Tensor& like) {
  check_complex(op, name, tensor, like);
  if (tensor.dim() != 3)
    fail(op, name, " has shape ", shape_text(tensor), ", expected [B, N, ", columns, "]");
  if (tensor.size(0) != like.size(0) || tensor.size(1) != like.size(1))
    fail(op, name, " has shape ", shape_text(tensor), ", expected [", like.size(0), ", ",
         like.size(1), ", ", columns, "]");
  check_factor(op, name, tensor, columns);
}

inline void check_rho(const char* op, const std::optional<Tensor>& rho, const Tensor& factor) {
  if (rho.has_value()) check_real_companion(op, "rho", *rho, {factor.size(0)}, factor);
}

inline void check_factored_blend(const char* op, DeviceType launcher, const Tensor& factor,
                                 const Tensor& snapshots, double beta,
                                 std::optional<double> target_trace, double loading,
                                 double shrinkage) {
  check_complex(op, "factor", factor);
  check_complex(op, "snapshots", snapshots, factor);
  check_factor(op, "factor", factor, "K");
  const int64_t b = factor.size(0), n = factor.size(1);
  if (snapshots.dim() != 3 || snapshots.size(0) != b || snapshots.size(2) != n)
    fail(op, "snapshots has shape ", shape_text(snapshots), ", expected [", b, ", L, ", n, "]");
  if (snapshots.size(1) < 1) fail(op, "L must be at least 1, got L=0");
  check_blend_options(op, beta, target_trace, loading, shrinkage);
  check_device(op, "factor", factor, launcher);
}

inline void check_factored_nmse(const char* op, DeviceType launcher, const Tensor& factor,
                                const std::optional<Tensor>& rho, const Tensor& target,
                                const std::optional<Tensor>& mask, double lam_diag, double lam_off,
                                double eps) {
  check_factor(op, "factor", factor, "r");
  check_factor(op, "target_factor", target, "k", factor);
  check_rho(op, rho, factor);
  check_nmse_options(op, mask, lam_diag, lam_off, eps, factor);
  check_device(op, "factor", factor, launcher);
}

inline void check_factored_leakage(const char* op, DeviceType launcher, const Tensor& factor,
                                   const std::optional<Tensor>& rho, const Tensor& steering,
                                   const Tensor& num_sources, double ridge) {
  check_factor(op, "factor", factor, "r");
  check_factor(op, "steering", steering, "k", factor);
  check_rho(op, rho, factor);
  check_num_sources(op, num_sources, factor.size(0), factor);
  check_ridge(op, ridge);
  check_device(op, "factor", factor, launcher);
}

// grad [B] of the backwards, and the Gram matrix that their forwards keep.
inline void check_factored_state(const char* op, const Tensor& grad, const Tensor& gram,
                                 const Tensor& factor, const Tensor& other) {
  const int64_t b = factor.size(0), columns = factor.size(2) + other.size(2);
  check_real_companion(op, "grad", grad, {b}, factor);
  check_companion(op, "gram", gram, ScalarType::ComplexDouble, {b, columns, columns}, factor);
}

template <typename T>
Factor<T> factor_of(const Tensor& tensor) {
  return {real_pointer<T>(tensor),
          {tensor.stride(0), tensor.stride(1), tensor.stride(2)},
          tensor.size(2)};
}

template <typename T>
FactoredBlendProblem<T> factored_blend_problem(const Tensor& factor, const Tensor& snapshots,
                                               double beta, std::optional<double> target_trace,
                                               double loading, double shrinkage) {
  FactoredBlendProblem<T> p{};
  p.scenes = factor.size(0);
  p.elements = factor.size(1);
  p.columns = factor.size(2);
  p.snapshots = snapshots.size(1);
  p.factor = real_pointer<T>(factor);
  p.samples = real_pointer<T>(snapshots);
  for (int i = 0; i < 3; ++i) {
    p.factor_stride[i] = factor.stride(i);
    p.samples_stride[i] = snapshots.stride(i);
  }
  p.options = blend_options(p.elements, beta, target_trace, loading, shrinkage);
  return p;
}

template <typename T>
FactoredNmseProblem<T> factored_nmse_problem(const Tensor& factor, const std::optional<Tensor>& rho,
                                             const Tensor& target,
                                             const std::optional<Tensor>& mask, double lam_diag,
                                             double lam_off, double eps) {
  FactoredNmseProblem<T> p{};
  p.scenes = factor.size(0);
  p.elements = factor.size(1);
  p.factor = factor_of<T>(factor);
  p.target = factor_of<T>(target);
  if (rho.has_value()) {
    p.rho = real_pointer<T>(*rho);
    p.rho_stride = rho->stride(0);
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

template <typename T>
FactoredLeakageProblem<T> factored_leakage_problem(const Tensor& factor,
                                                   const std::optional<Tensor>& rho,
                                                   const Tensor& steering,
                                                   const Tensor& num_sources, double ridge) {
  FactoredLeakageProblem<T> p{};
  p.scenes = factor.size(0);
  p.elements = factor.size(1);
  p.factor = factor_of<T>(factor);
  p.steering = factor_of<T>(steering);
  if (rho.has_value()) {
    p.rho = real_pointer<T>(*rho);
    p.rho_stride = rho->stride(0);
  }
  p.num_sources = static_cast<const int64_t*>(num_sources.data_ptr());
  p.num_sources_stride = num_sources.stride(0);
  p.ridge = ridge;
  return p;
}

}  // namespace riskernels
