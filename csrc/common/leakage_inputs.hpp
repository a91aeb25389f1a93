// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs of subspace_leakage, on every device.
#pragma once

#include <utility>

#include "leakage_problem.hpp"
#include "tensor_checks.hpp"

namespace riskernels {

inline void check_num_sources(const char* op, const Tensor& num_sources, int64_t scenes,
                              const Tensor& like) {
  check_dtype(op, "num_sources", num_sources, ScalarType::Long);
  if (!same_device(num_sources, like))
    fail(op, "num_sources is on ", device_text(num_sources), ", expected ", device_text(like));
  check_shape(op, "num_sources", num_sources, {scenes});
}

inline void check_ridge(const char* op, double ridge) {
  if (!(std::isfinite(ridge) && ridge > 0))
    fail(op, "ridge is ", ridge, ", expected a finite number > 0");
}

// cov [B, N, N] and one matrix [B, N, K] that goes with it.
inline void check_cov_and_columns(const char* op, const Tensor& cov, const char* name,
                                  const Tensor& columns) {
  if (cov.dim() != 3 || cov.size(1) != cov.size(2))
    fail(op, "cov has shape ", shape_text(cov), ", expected [B, N, N]");
  const int64_t b = cov.size(0), n = cov.size(1);
  if (columns.dim() != 3 || columns.size(0) != b || columns.size(1) != n)
    fail(op, name, " has shape ", shape_text(columns), ", expected [", b, ", ", n, ", K] as cov");
  if (n < 1 || columns.size(2) < 1)
    fail(op, "N and K must be at least 1, got N=", n, ", K=", columns.size(2));
}

inline void check_leakage(const char* op, DeviceType launcher, const Tensor& cov,
                          const Tensor& steering, const Tensor& num_sources, double ridge) {
  check_complex(op, "cov", cov);
  check_complex(op, "steering", steering, cov);
  check_cov_and_columns(op, cov, "steering", steering);
  check_num_sources(op, num_sources, cov.size(0), cov);
  check_ridge(op, ridge);
  check_device(op, "cov", cov, launcher);
}

// The arguments of the backward: basis [B, N, K] and projected [B, K, N] in the dtype of cov, and
// grad, leakage and total [B] in its precision.
inline void check_leakage_backward(const char* op, DeviceType launcher, const Tensor& grad,
                                   const Tensor& cov, const Tensor& leakage, const Tensor& total,
                                   const Tensor& basis, const Tensor& projected) {
  check_complex(op, "cov", cov);
  check_complex(op, "basis", basis, cov);
  check_complex(op, "projected", projected, cov);
  check_cov_and_columns(op, cov, "basis", basis);
  check_shape(op, "projected", projected, {cov.size(0), basis.size(2), cov.size(1)});
  const std::pair<const char*, const Tensor*> reals[] = {
      {"grad", &grad}, {"leakage", &leakage}, {"total", &total}};
  for (const auto& [name, tensor] : reals)
    check_real_companion(op, name, *tensor, {cov.size(0)}, cov);
  check_device(op, "cov", cov, launcher);
}

template <typename T>
LeakageProblem<T> leakage_problem(const Tensor& cov, const Tensor& steering,
                                  const Tensor& num_sources, double ridge) {
  LeakageProblem<T> p{};
  p.scenes = steering.size(0);
  p.elements = steering.size(1);
  p.columns = steering.size(2);
  p.cov = real_pointer<T>(cov);
  p.steering = real_pointer<T>(steering);
  for (int i = 0; i < 3; ++i) {
    p.cov_stride[i] = cov.stride(i);
    p.steering_stride[i] = steering.stride(i);
  }
  p.num_sources = static_cast<const int64_t*>(num_sources.data_ptr());
  p.num_sources_stride = num_sources.stride(0);
  p.ridge = ridge;
  return p;
}

// The backward's: the steering vectors are in the basis already.
template <typename T>
LeakageProblem<T> leakage_problem(const Tensor& cov, const Tensor& basis) {
  LeakageProblem<T> p{};
  p.scenes = basis.size(0);
  p.elements = basis.size(1);
  p.columns = basis.size(2);
  p.cov = real_pointer<T>(cov);
  for (int i = 0; i < 3; ++i) p.cov_stride[i] = cov.stride(i);
  return p;
}

// Of contiguous tensors.
template <typename T>
LeakageState<T> leakage_state(const Tensor& leakage, const Tensor& total, const Tensor& basis,
                              const Tensor& projected) {
  return {mutable_real_pointer<T>(leakage), mutable_real_pointer<T>(total),
          mutable_real_pointer<T>(basis), mutable_real_pointer<T>(projected)};
}

}  // namespace riskernels
