// SPDX-License-Identifier: Apache-2.0
// S x = r for Hermitian positive definite S of up to 32 rows, in registers: lane i of a slot of MP
// lanes holds row i of [S | r], and one sweep of Gauss-Jordan elimination leaves x.
//
// Without row exchanges the pivots are the Schur complements of S, the squares of the Cholesky
// pivots, and take the same floor: the larger of the loading, below which no pivot lies in exact
// arithmetic, and 8 M eps max(S_ii), below which float holds nothing but noise. A sweep costs
// twice the arithmetic of a Cholesky factorisation, but no substitutions follow it, whose steps
// would each wait for the one before.
#pragma once

#include "complex.cuh"

namespace riskernels::cuda {

// Right-hand sides that one elimination carries where S serves several snapshots.
constexpr int kRightSides = 2;

// Largest value, or sum, over the lanes of a slot, the same in all of them.
template <int MP, typename T>
RISKERNELS_DEVICE T slot_maximum(T value) {
  RISKERNELS_UNROLL
  for (int step = MP / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, value, step);
    value = other > value ? other : value;
  }
  return value;
}
template <int MP, typename T>
RISKERNELS_DEVICE T slot_sum(T value) {
  RISKERNELS_UNROLL
  for (int step = MP / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

// alpha_l from the trace of Phi_l Phi_l^H.
template <typename T>
RISKERNELS_DEVICE T loading_of(double alpha, bool relative, T trace, int64_t n) {
  T value = static_cast<T>(alpha);
  if (!relative) return value;
  value *= trace * reciprocal(static_cast<T>(n));
  // Where Phi = 0 the estimate is 0 whatever S is. Elsewhere the product may underflow.
  if (trace == T(0)) value = T(1);
  return value < Limits<T>::kSmallest ? Limits<T>::kSmallest : value;
}

template <typename T>
RISKERNELS_DEVICE T pivot_floor(T loading, T largest, int m) {
  const T noise = largest * (T(8) * static_cast<T>(m) * Limits<T>::kEpsilon);
  return noise > loading ? noise : loading;
}

// Where the loading is below the noise, S need not be positive definite in float: an entry of the
// pivot's column larger than the pivot and its own diagonal allow is noise, and divided by the
// floor it would grow from column to column until it overflows. The larger pivot that allows for
// it, over the lanes of a slot. own: this lane's diagonal.
template <int MP, typename T>
RISKERNELS_DEVICE T bounded_pivot(T pivot, T floor, T own, Complex<T> entry, bool below) {
  const T needed = below ? norm(entry) * reciprocal(own > floor ? own : floor) : T(0);
  const T largest = slot_maximum<MP>(needed);
  return largest > pivot ? largest : pivot;
}

// i: this lane in its slot. s: Phi Phi^H without its loading, m rows of `pitch`. rhs: lane i's
// entries of R right-hand sides, replaced by those of the solutions.
template <typename T, int MP, int R>
RISKERNELS_DEVICE void eliminate(int i, const Complex<T>* s, int pitch, int m, double alpha,
                                 bool relative, int64_t n, Complex<T> (&rhs)[R]) {
  // Lanes past the last row repeat it. No lane ever asks them for anything.
  const Complex<T>* const own = s + (i < m ? i : m - 1) * pitch;
  const T gram = own[i < m ? i : m - 1].re;
  const T trace = relative ? slot_sum<MP>(i < m ? gram : T(0)) : T(0);
  const T loading = loading_of(alpha, relative, trace, n);
  const T floor = pivot_floor(loading, slot_maximum<MP>(gram + loading), m);
  const bool noisy = slot_maximum<kWarp>(floor > loading ? T(1) : T(0)) > T(0);
  Complex<T> row[MP];
  RISKERNELS_UNROLL
  for (int j = 0; j < MP; ++j) {
    row[j] = j < m ? own[j] : Complex<T>{T(0), T(0)};
    if (i == j) row[j].re = gram + loading;
  }
  // This lane's diagonal until its row is the pivot's, then the inverse of that pivot.
  T inverse = gram + loading;
  RISKERNELS_UNROLL
  for (int k = 0; k < MP; ++k) {
    if (k < m) {
      T pivot = __shfl_sync(kFullWarp, row[k].re, k, MP);
      // Written so that NaN stays NaN.
      pivot = pivot < floor ? floor : pivot;
      if (noisy) {
        const T bounded = bounded_pivot<MP>(pivot, floor, inverse, row[k], i > k && i < m);
        pivot = floor > loading ? bounded : pivot;
        if (i > k) inverse -= norm(row[k]) * reciprocal(pivot);
      }
      const T scale = reciprocal(pivot);
      if (i == k) inverse = scale;
      const Complex<T> factor = i == k ? Complex<T>{T(0), T(0)} : row[k] * scale;
      RISKERNELS_UNROLL
      for (int j = k + 1; j < MP; ++j) subtract_product(row[j], factor, shuffle(row[j], k, MP));
      RISKERNELS_UNROLL
      for (int r = 0; r < R; ++r) subtract_product(rhs[r], factor, shuffle(rhs[r], k, MP));
    }
  }
  RISKERNELS_UNROLL
  for (int r = 0; r < R; ++r) rhs[r] = rhs[r] * inverse;
}

// The same by a whole warp for one matrix: its slots share the columns, slot p taking those with
// j % kSlots = p, and each has R right-hand sides of its own. The matrix is eliminated once where
// eliminate() would do so in every slot.
template <typename T, int MP, int R>
RISKERNELS_DEVICE void eliminate_shared(int lane, const Complex<T>* s, int pitch, int m,
                                        double alpha, bool relative, int64_t n,
                                        Complex<T> (&rhs)[R]) {
  constexpr int kSlots = kWarp / MP, kColumns = MP / kSlots;
  const int i = lane % MP, slot = lane / MP;
  const Complex<T>* const own = s + (i < m ? i : m - 1) * pitch;
  const T gram = own[i < m ? i : m - 1].re;
  const T trace = relative ? slot_sum<MP>(i < m ? gram : T(0)) : T(0);
  const T loading = loading_of(alpha, relative, trace, n);
  const T floor = pivot_floor(loading, slot_maximum<MP>(gram + loading), m);
  const bool noisy = slot_maximum<kWarp>(floor > loading ? T(1) : T(0)) > T(0);
  Complex<T> row[kColumns];
  RISKERNELS_UNROLL
  for (int t = 0; t < kColumns; ++t) {
    const int j = t * kSlots + slot;
    row[t] = j < m ? own[j] : Complex<T>{T(0), T(0)};
    if (i == j) row[t].re = gram + loading;
  }
  // This lane's diagonal until its row is the pivot's, then the inverse of that pivot.
  T inverse = gram + loading;
  RISKERNELS_UNROLL
  for (int k = 0; k < MP; ++k) {
    if (k < m) {
      const int holder = k % kSlots * MP;
      T pivot = __shfl_sync(kFullWarp, row[k / kSlots].re, holder + k);
      // Written so that NaN stays NaN.
      pivot = pivot < floor ? floor : pivot;
      const Complex<T> entry =
          kSlots == 1 ? row[k / kSlots] : shuffle(row[k / kSlots], holder + i, kWarp);
      if (noisy) {
        pivot = bounded_pivot<MP>(pivot, floor, inverse, entry, i > k && i < m);
        if (i > k) inverse -= norm(entry) * reciprocal(pivot);
      }
      const T scale = reciprocal(pivot);
      if (i == k) inverse = scale;
      const Complex<T> factor = i == k ? Complex<T>{T(0), T(0)} : entry * scale;
      // In the first of these, slots up to the holder's change columns that are done with.
      RISKERNELS_UNROLL
      for (int t = (k + 1) / kSlots; t < kColumns; ++t)
        subtract_product(row[t], factor, shuffle(row[t], k, MP));
      RISKERNELS_UNROLL
      for (int r = 0; r < R; ++r) subtract_product(rhs[r], factor, shuffle(rhs[r], k, MP));
    }
  }
  RISKERNELS_UNROLL
  for (int r = 0; r < R; ++r) rhs[r] = rhs[r] * inverse;
}

}  // namespace riskernels::cuda
