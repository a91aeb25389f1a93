// SPDX-License-Identifier: Apache-2.0
// Inputs and gradients of the Tikhonov operators as plain pointers and strides.
// Strides count complex elements; pointers count real ones, so element e lies at 2 * e.
#pragma once

#include <cstdint>

namespace riskernels {

template <typename T>
struct TikhonovProblem {
  int64_t scenes, snapshots, antennas, elements;  // B, L, M, N
  const T* y;                                     // [B, L, M]
  int64_t y_stride[3];
  const T* h;           // [B, M, N], or [B, L, M, N] where h_per_snapshot
  int64_t h_stride[4];  // b, l (0 where H is shared by the snapshots), m, n
  bool h_per_snapshot;
  const T* codes;  // [B, L, N]
  int64_t codes_stride[3];
  double alpha;
  bool relative;
  bool center;
};

// Contiguous outputs of the backward; null where a gradient is not needed.
template <typename T>
struct TikhonovGradients {
  T* y;      // [B, L, M]
  T* h;      // as the problem's h
  T* codes;  // [B, L, N]
};

// The gradient that arrives: [B, N, N] for the covariance, [B, L, N] for the snapshots.
template <typename T>
struct IncomingGradient {
  const T* data;
  int64_t stride[3];
};

}  // namespace riskernels
