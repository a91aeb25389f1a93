// SPDX-License-Identifier: Apache-2.0
// Complex products with a conjugated second factor, on planar (split re/im) data.
// kRows rows are held in registers at a time: 2 kRows accumulators leave room for the operands
// among 16 vector registers, and hide the latency of the multiply-adds.
#pragma once

#include "even_blocks.hpp"

namespace riskernels::RISKERNELS_ISA {

constexpr int kRows = 5;

// A planar complex matrix: element (i, k) lies at i * row + k * column.
template <typename T>
struct Planar {
  T* re;
  T* im;
  int64_t row;
  int64_t column = 1;

  RISKERNELS_INLINE Planar at(int64_t i, int64_t k) const {
    return {re + i * row + k * column, im + i * row + k * column, row, column};
  }
};

template <typename F>
RISKERNELS_INLINE void for_row_blocks(int64_t rows, const F& f) {
  for_even_blocks<kRows>(rows, f);
}

// re, im (+)= sum_k a(r, k) conj(b(k, .)) for R rows and one vector of columns.
template <typename T, int R>
RISKERNELS_INLINE void multiply_block(int64_t depth, Planar<const T> a, Planar<const T> b,
                                      typename Simd<T>::V (&re)[R], typename Simd<T>::V (&im)[R]) {
  using S = Simd<T>;
  for (int64_t k = 0; k < depth; ++k) {
    const auto b_re = S::load(b.re), b_im = S::load(b.im);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto a_re = S::splat(a.re[r * a.row]);
      const auto a_im = S::splat(a.im[r * a.row]);
      re[r] += a_re * b_re;
      im[r] += a_im * b_re;
      re[r] += a_im * b_im;
      im[r] -= a_re * b_im;
    }
    a.re += a.column;
    a.im += a.column;
    b.re += b.row;
    b.im += b.row;
  }
}

// c(i, j) (+)= sum_k a(i, k) conj(b(k, j)); `columns` is a multiple of the vector width, and the
// columns of b and c are contiguous.
template <typename T>
inline void gemm_conj(int64_t rows, int64_t columns, int64_t depth, Planar<const T> a,
                      Planar<const T> b, Planar<T> c, bool accumulate = false) {
  using S = Simd<T>;
  for (int64_t j = 0; j < columns; j += S::W) {
    for_row_blocks(rows, [&](auto size, int64_t i) {
      constexpr int R = decltype(size)::value;
      const auto out = c.at(i, j);
      typename S::V re[R], im[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        re[r] = accumulate ? S::load(out.re + r * c.row) : typename S::V{};
        im[r] = accumulate ? S::load(out.im + r * c.row) : typename S::V{};
      }
      multiply_block<T, R>(depth, a.at(i, 0), b.at(0, j), re, im);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        S::store(out.re + r * c.row, re[r]);
        S::store(out.im + r * c.row, im[r]);
      }
    });
  }
}

template <typename T, int R>
RISKERNELS_INLINE void dot_conj_block(int64_t depth, const T* a_re, const T* a_im,
                                      Planar<const T> b, T* c_re, T* c_im, int64_t c_step) {
  using S = Simd<T>;
  typename S::V re[R], im[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) re[r] = im[r] = typename S::V{};
  for (int64_t k = 0; k < depth; k += S::W) {
    const auto x_re = S::load(a_re + k), x_im = S::load(a_im + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto b_re = S::load(b.re + r * b.row + k), b_im = S::load(b.im + r * b.row + k);
      re[r] += x_re * b_re;
      im[r] += x_im * b_re;
      re[r] += x_im * b_im;
      im[r] -= x_re * b_im;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    c_re[r * c_step] = S::sum(re[r]);
    c_im[r * c_step] = S::sum(im[r]);
  }
}

// c(j) = sum_k a(k) conj(b(j, k)) for `rows` rows of b; `depth` is a multiple of the vector width
// (zero padding), c(j) lies at j * c_step.
template <typename T>
inline void dot_conj(int64_t rows, int64_t depth, const T* a_re, const T* a_im, Planar<const T> b,
                     T* c_re, T* c_im, int64_t c_step) {
  for_row_blocks(rows, [&](auto size, int64_t j) {
    dot_conj_block<T, decltype(size)::value>(depth, a_re, a_im, b.at(j, 0), c_re + j * c_step,
                                             c_im + j * c_step, c_step);
  });
}

}  // namespace riskernels::RISKERNELS_ISA
