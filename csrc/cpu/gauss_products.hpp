// SPDX-License-Identifier: Apache-2.0
// Complex matrix products by three real ones. With sum = re + im and difference = re - im,
//   a b:        k = a.re b.sum         re = k - a.sum b.im         im = k - a.difference b.re
//   conj(a) b:  k = a.re b.sum         re = k - a.difference b.im  im = k - a.sum b.re
//   a conj(b):  k = a.re b.difference  re = k + a.sum b.im         im = k - a.difference b.re
// so three multiply-adds do the work of four once the sums and differences lie beside the parts.
// The error stays at c eps |a| |b|, of the norms rather than of each part.
#pragma once

#include "interleaved_rows.hpp"
#include "panel.hpp"

namespace riskernels::RISKERNELS_ISA {

enum class Conjugate { none, left, right };

// A left factor: element (i, k) of each plane lies at i * row + k * column.
template <typename T>
struct LeftPlanes {
  const T *re, *sum, *difference;
  int64_t row, column;

  RISKERNELS_INLINE LeftPlanes at(int64_t i, int64_t k) const {
    const int64_t offset = i * row + k * column;
    return {re + offset, sum + offset, difference + offset, row, column};
  }
};

// A right factor with contiguous columns. `mixed` is re - im for Conjugate::right, else re + im.
template <typename T>
struct RightPlanes {
  const T *re, *im, *mixed;
  int64_t row;

  RISKERNELS_INLINE RightPlanes at(int64_t k, int64_t j) const {
    const int64_t offset = k * row + j;
    return {re + offset, im + offset, mixed + offset, row};
  }
};

// acc(r, v) (+ or -)= sum_k a(r, k) b(k, v), all real.
template <bool Subtract, typename T, int R, int V>
RISKERNELS_INLINE void multiply_real(int64_t depth, const T* a, int64_t a_row, int64_t a_column,
                                     const T* b, int64_t b_row, typename Simd<T>::V (&acc)[R][V]) {
  using S = Simd<T>;
  for (int64_t k = 0; k < depth; ++k) {
    typename S::V x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = S::load(b + v * S::W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto factor = S::splat(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        if constexpr (Subtract)
          acc[r][v] -= factor * x[v];
        else
          acc[r][v] += factor * x[v];
      }
    }
    a += a_column;
    b += b_row;
  }
}

// R rows and V vectors of out = a b, or out += a b. R * V accumulators are live at a time: 12 of 16
// registers leave room for the operands, and 8 hide the latency of the multiply-adds.
template <Conjugate C, bool Add, int R, int V, typename T>
RISKERNELS_INLINE void gauss_block(int64_t depth, const LeftPlanes<T>& a, const RightPlanes<T>& b,
                                   const Planar<T>& out) {
  using S = Simd<T>;
  typename S::V acc[R][V], shared[R][V];
  const auto copy = [](auto& to, const auto& from) RISKERNELS_INLINE_LAMBDA {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) to[r][v] = from[r][v];
  };
  const auto store = [&](T* to) RISKERNELS_INLINE_LAMBDA {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* const at = to + r * out.row + v * S::W;
        S::store(at, Add ? S::load(at) + acc[r][v] : acc[r][v]);
      }
  };
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = typename S::V{};
  multiply_real<false, T, R, V>(depth, a.re, a.row, a.column, b.mixed, b.row, acc);
  copy(shared, acc);
  multiply_real<C != Conjugate::right, T, R, V>(depth, C == Conjugate::left ? a.difference : a.sum,
                                                a.row, a.column, b.im, b.row, acc);
  store(out.re);
  copy(acc, shared);
  multiply_real<true, T, R, V>(depth, C == Conjugate::left ? a.sum : a.difference, a.row, a.column,
                               b.re, b.row, acc);
  store(out.im);
}

// Not inlined: registers are for its loops alone.
template <Conjugate C, int R, int V, typename T>
__attribute__((noinline)) void gauss_rows(int64_t depth, LeftPlanes<T> a, RightPlanes<T> b,
                                          Planar<T> out) {
  gauss_block<C, false, R, V>(depth, a, b, out);
}

// out(i, j) = sum_k a(i, k) b(k, j), with a or b conjugated, for `vectors` vectors of columns.
template <Conjugate C, typename T>
inline void gauss_product(int64_t rows, int64_t vectors, int64_t depth, const LeftPlanes<T>& a,
                          const RightPlanes<T>& b, const Planar<T>& out) {
  for_vector_groups(vectors, [&](auto group, int64_t first) {
    constexpr int V = decltype(group)::value, Most = V == 1 ? 8 : V == 2 ? 6 : 4;
    const int64_t j = first * Simd<T>::W;
    for_even_blocks<Most>(rows, [&](auto size, int64_t i) {
      gauss_rows<C, decltype(size)::value, V>(depth, a.at(i, 0), b.at(0, j), out.at(i, j));
    });
  });
}

// In place: the transpose of W vectors, as pairs of rows interleaved and then tiles of pairs.
template <typename T>
RISKERNELS_INLINE void transpose_vectors(typename Simd<T>::V (&rows)[Simd<T>::W]) {
  using S = Simd<T>;
  constexpr int kHalf = S::W / 2;
  Tile<T> low, high;
#pragma GCC unroll 8
  for (int p = 0; p < kHalf; ++p)
    S::interleave(rows[2 * p], rows[2 * p + 1], low.row[p], high.row[p]);
  low.transpose();
  high.transpose();
#pragma GCC unroll 8
  for (int p = 0; p < kHalf; ++p) {
    rows[p] = low.row[p];
    rows[kHalf + p] = high.row[p];
  }
}

}  // namespace riskernels::RISKERNELS_ISA
