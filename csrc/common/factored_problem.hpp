// SPDX-License-Identifier: Apache-2.0
// Inputs of the operators on R = X X^H + rho I as plain pointers and strides (in complex elements).
// They all rest on the Gram matrix of [X, Z], Z being the target's factor or the true steering
// vectors, accumulated in double: [B, c, c] with c = r + k, entry (i, j) = column_i^H column_j.
#pragma once

#include <cstdint>

namespace riskernels {

// A factor [B, N, columns].
template <typename T>
struct Factor {
  const T* data;
  int64_t stride[3];
  int64_t columns;
};

template <typename T>
struct FactoredNmseProblem {
  int64_t scenes, elements;  // B, N
  Factor<T> factor;          // X, r columns
  const T* rho;              // [B] real, null for 0
  int64_t rho_stride;
  Factor<T> target;        // Y, k columns
  const bool* mask;        // [N] or [B, N], null without a mask
  int64_t mask_stride[2];  // 0 over b for [N]
  double lam_diag, lam_off, eps;
};

template <typename T>
struct FactoredLeakageProblem {
  int64_t scenes, elements;  // B, N
  Factor<T> factor;          // X, r columns
  const T* rho;              // [B] real, null for 0
  int64_t rho_stride;
  Factor<T> steering;          // k columns
  const int64_t* num_sources;  // [B], clamped to [0, k]
  int64_t num_sources_stride;
  double ridge;
};

template <typename T>
struct FactoredSpectrumProblem {
  int64_t scenes, elements;  // B, N
  Factor<T> factor;          // X, r columns
  const T* rho;              // [B] real, null for 0
  int64_t rho_stride;
};

}  // namespace riskernels
