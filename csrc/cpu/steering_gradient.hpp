// SPDX-License-Identifier: Apache-2.0
// Products of weighted projections with steering vectors, elements in the lanes.
#pragma once

#include "gauss_products.hpp"
#include "steering_products.hpp"

namespace riskernels::RISKERNELS_ISA {

// Steering vectors with elements in the lanes: point g, element n at re[g * pitch + n].
template <typename T>
inline void turn_steering(int64_t count, const T* a, int64_t pitch, T* re, T* im) {
  using S = Simd<T>;
  for (int64_t n = 0; n < count; n += S::W)
    for (int half = 0; half < 2; ++half)
      for (int v = 0; v < kPointVectors; ++v) {
        typename S::V rows[S::W];
        const T* const from = a + 2 * kPoints<T> * n + half * kPoints<T> + v * S::W;
#pragma GCC unroll 16
        for (int i = 0; i < S::W; ++i) rows[i] = S::load(from + 2 * kPoints<T> * i);
        transpose_vectors<T>(rows);
        T* const to = (half == 0 ? re : im) + v * S::W * pitch + n;
#pragma GCC unroll 16
        for (int g = 0; g < S::W; ++g) S::store(to + g * pitch, rows[g]);
      }
}

// out_j += sum_g d_jg a_g for J columns and V vectors of elements. Not inlined: registers are for
// this loop alone.
template <int J, int V, typename T>
__attribute__((noinline)) void add_outer_block(const T* d, const T* re, const T* im, int64_t pitch,
                                               T* out_re, T* out_im, int64_t out_pitch) {
  using S = Simd<T>;
  typename S::V sum_re[J][V], sum_im[J][V];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sum_re[j][v] = S::load(out_re + j * out_pitch + v * S::W);
      sum_im[j][v] = S::load(out_im + j * out_pitch + v * S::W);
    }
  for (int64_t g = 0; g < kPoints<T>; ++g, re += pitch, im += pitch) {
    typename S::V a_re[V], a_im[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      a_re[v] = S::load(re + v * S::W);
      a_im[v] = S::load(im + v * S::W);
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const auto d_re = S::splat(d[2 * kPoints<T> * j + g]);
      const auto d_im = S::splat(d[2 * kPoints<T> * j + kPoints<T> + g]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        sum_re[j][v] += d_re * a_re[v];
        sum_im[j][v] += d_re * a_im[v];
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        sum_re[j][v] -= d_im * a_im[v];
        sum_im[j][v] += d_im * a_re[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      S::store(out_re + j * out_pitch + v * S::W, sum_re[j][v]);
      S::store(out_im + j * out_pitch + v * S::W, sum_im[j][v]);
    }
}

// out [k, out_pitch] += d [k, 2, kPoints] times the turned steering vectors of `vectors` vectors of
// elements.
template <typename T>
inline void add_outer(int64_t columns, int64_t vectors, const T* d, const T* re, const T* im,
                      int64_t pitch, T* out_re, T* out_im, int64_t out_pitch) {
  for_column_blocks(columns, [&](auto size, int64_t j) {
    constexpr int J = decltype(size)::value;
    for_even_blocks<2>(vectors, [&](auto width, int64_t first) {
      constexpr int V = decltype(width)::value;
      const int64_t n = first * Simd<T>::W, at = j * out_pitch + n;
      add_outer_block<J, V>(d + 2 * kPoints<T> * j, re + n, im + n, pitch, out_re + at, out_im + at,
                            out_pitch);
    });
  });
}

}  // namespace riskernels::RISKERNELS_ISA
