// SPDX-License-Identifier: Apache-2.0
// Inputs of subspace_leakage as plain pointers and strides (in complex elements).
#pragma once

#include <cstdint>

namespace riskernels {

template <typename T>
struct LeakageProblem {
  int64_t scenes, elements, columns;  // B, N, K
  const T* cov;                       // [B, N, N]
  int64_t cov_stride[3];
  const T* steering;  // [B, N, K]
  int64_t steering_stride[3];
  const int64_t* num_sources;  // [B], clamped to [0, K]
  int64_t num_sources_stride;
  double ridge;
};

// What the forward keeps for the backward; all contiguous.
template <typename T>
struct LeakageState {
  T* leakage;    // [B]
  T* total;      // [B], |R|^2
  T* basis;      // [B, N, K], Q with Q Q^H = 2P - P^2
  T* projected;  // [B, K, N], Q^H R
};

}  // namespace riskernels
