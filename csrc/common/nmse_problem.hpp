// SPDX-License-Identifier: Apache-2.0
// Inputs of the NMSE operator as plain pointers and strides (in complex elements).
#pragma once

#include <cstdint>

namespace riskernels {

template <typename T>
struct NmseProblem {
  int64_t scenes, elements;  // B, N
  const T* estimate;         // [B, N, N]
  int64_t estimate_stride[3];
  const T* target;  // [B, N, N]
  int64_t target_stride[3];
  const bool* mask;        // [N] or [B, N], null without a mask
  int64_t mask_stride[2];  // 0 over b for [N]
  double lam_diag, lam_off, eps;
};

}  // namespace riskernels
