// SPDX-License-Identifier: Apache-2.0
// Products of a block of steering vectors (points in the lanes) with the columns of a factor.
#pragma once

#include "even_blocks.hpp"
#include "interleaved_rows.hpp"
#include "steering_lanes.hpp"

namespace riskernels::RISKERNELS_ISA {

// Columns whose sums are in registers at a time: two vectors for each of their two parts, of 32
// registers or of 16.
constexpr int kColumns = RISKERNELS_VECTOR_BYTES == 64 ? 6 : 2;

// Calls f(size, first) for the blocks of columns that a factor is cut into.
template <typename F>
RISKERNELS_INLINE void for_column_blocks(int64_t columns, const F& f) {
  for_even_blocks<kColumns>(columns, f);
}

// One scene of a factor, its blocks of columns one after the other: element n of column j of the
// block that begins at column i lies at 2 N i + 2 (n J + j), J being the block's size.
template <typename T>
inline void pack_columns(const Rows<T>& from, int64_t elements, T* to) {
  for_column_blocks(from.columns, [&](auto size, int64_t i) {
    constexpr int J = decltype(size)::value;
    const T* row = from.data + 2 * i * from.column;
    T* out = to + 2 * elements * i;
    for (int64_t n = 0; n < elements; ++n, row += 2 * from.row, out += 2 * J)
      for (int j = 0; j < J; ++j) {
        out[2 * j] = row[2 * j * from.column];
        out[2 * j + 1] = row[2 * j * from.column + 1];
      }
  });
}

// c_j (+)= sum_n conj(a_n) x_nj for J columns and one block of points. Not inlined: registers are
// for this loop alone.
template <int J, typename T>
__attribute__((noinline)) void project_columns(int64_t count, const T* a, const T* x, T* c,
                                               bool accumulate) {
  using S = Simd<T>;
  constexpr int V = kPointVectors;
  constexpr int64_t kCount = kPoints<T>;
  typename S::V re[J][V], im[J][V];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const T* const from = c + 2 * kCount * j + v * S::W;
      re[j][v] = accumulate ? S::load(from) : typename S::V{};
      im[j][v] = accumulate ? S::load(from + kCount) : typename S::V{};
    }
  for (int64_t n = 0; n < count; ++n, a += 2 * kCount, x += 2 * J) {
    typename S::V a_re[V], a_im[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      a_re[v] = S::load(a + v * S::W);
      a_im[v] = S::load(a + kCount + v * S::W);
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const auto x_re = S::splat(x[2 * j]), x_im = S::splat(x[2 * j + 1]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        re[j][v] += a_re[v] * x_re;
        im[j][v] += a_re[v] * x_im;
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        re[j][v] += a_im[v] * x_im;
        im[j][v] -= a_im[v] * x_re;
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* const to = c + 2 * kCount * j + v * S::W;
      S::store(to, re[j][v]);
      S::store(to + kCount, im[j][v]);
    }
}

// c [k, 2, kPoints] (+)= A^H X for elements [n, n + count) of the packed factor x.
template <typename T>
inline void project(int64_t n, int64_t count, int64_t elements, int64_t columns, const T* a,
                    const T* x, T* c) {
  for_column_blocks(columns, [&](auto size, int64_t i) {
    constexpr int J = decltype(size)::value;
    project_columns<J>(count, a, x + 2 * (elements * i + J * n), c + 2 * kPoints<T> * i, n > 0);
  });
}

}  // namespace riskernels::RISKERNELS_ISA
