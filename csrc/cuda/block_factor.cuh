// SPDX-License-Identifier: Apache-2.0
// S x = r for Hermitian positive definite S of any number of rows, by all threads of a block:
// S = L D L^H in place in a packed lower triangle, then one warp to a right-hand side. The pivots
// take the floor of elimination.cuh.
#pragma once

#include "elimination.cuh"
#include "gram.cuh"

namespace riskernels::cuda {

// Replaces the triangle by L D below the diagonal (column k holds L_ik d_k) and `inverse` by 1 / d.
// Begins with S complete but for its loading, and ends, behind a barrier.
template <typename T>
RISKERNELS_DEVICE void factor_block(const Place& at, int m, double alpha, bool relative, int64_t n,
                                    const PackedMatrix<T>& s, T* inverse) {
  T trace = T(0), largest = s.row(0)[0].re;
  for (int i = 0; i < m; ++i) {
    const T entry = s.row(i)[i].re;
    trace += entry;
    largest = entry > largest ? entry : largest;
  }
  const T loading = loading_of(alpha, relative, trace, n);
  const T floor = pivot_floor(loading, largest + loading, m);
  __syncthreads();
  for (int i = at.thread; i < m; i += kThreads) s.row(i)[i].re += loading;
  __syncthreads();
  for (int k = 0; k < m; ++k) {
    T pivot = s.row(k)[k].re;
    pivot = pivot < floor ? floor : pivot;
    if (floor > loading) {
      T needed = T(0);
      for (int i = k + 1 + at.lane(); i < m; i += kWarp) {
        const T own = s.row(i)[i].re;
        const T more = norm(s.row(i)[k]) * reciprocal(own > floor ? own : floor);
        needed = more > needed ? more : needed;
      }
      needed = slot_maximum<kWarp>(needed);
      pivot = needed > pivot ? needed : pivot;
      __syncthreads();  // the diagonal has been read
    }
    const T scale = reciprocal(pivot);
    if (at.thread == 0) inverse[k] = scale;
    for (int i = k + 1 + at.warp(); i < m; i += kWarps) {
      Complex<T>* const row = s.row(i);
      const Complex<T> factor = row[k] * scale;
      for (int j = k + 1 + at.lane(); j <= i; j += kWarp)
        subtract_product(row[j], factor, conj(s.row(j)[k]));
    }
    __syncthreads();
  }
}

// x, in memory that the lanes of one warp share, becomes S^{-1} x.
template <typename T>
RISKERNELS_DEVICE void solve_by_warp(const Place& at, int m, const PackedMatrix<T>& s,
                                     const T* inverse, Complex<T>* x) {
  for (int k = 0; k < m; ++k) {
    __syncwarp();
    const Complex<T> value = x[k] * inverse[k];
    for (int i = k + 1 + at.lane(); i < m; i += kWarp) subtract_product(x[i], s.row(i)[k], value);
  }
  __syncwarp();
  for (int i = at.lane(); i < m; i += kWarp) x[i] = x[i] * inverse[i];
  for (int k = m - 1; k > 0; --k) {
    __syncwarp();
    const Complex<T> value = x[k];
    const Complex<T>* const row = s.row(k);
    for (int j = at.lane(); j < k; j += kWarp)
      subtract_product(x[j], conj(row[j]) * inverse[j], value);
  }
  __syncwarp();
}

}  // namespace riskernels::cuda
