// SPDX-License-Identifier: Apache-2.0
// The three complex products that every Tikhonov kernel is made of, on planar (split re/im) data.
// kRows rows are held in registers at a time: 2 kRows accumulators leave room for the operands
// among 16 vector registers, and hide the latency of the multiply-adds.
#pragma once

#include "simd.hpp"

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

template <typename T, int R>
RISKERNELS_INLINE void gemm_conj_block(int64_t depth, Planar<const T> a, Planar<const T> b,
                                       Planar<T> c, bool accumulate) {
  using S = Simd<T>;
  typename S::V re[R], im[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    re[r] = accumulate ? S::load(c.re + r * c.row) : typename S::V{};
    im[r] = accumulate ? S::load(c.im + r * c.row) : typename S::V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const auto b_re = S::load(b.re + k * b.row), b_im = S::load(b.im + k * b.row);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto a_re = S::splat(a.re[r * a.row + k * a.column]);
      const auto a_im = S::splat(a.im[r * a.row + k * a.column]);
      re[r] += a_re * b_re;
      im[r] += a_im * b_re;
      re[r] += a_im * b_im;
      im[r] -= a_re * b_im;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    S::store(c.re + r * c.row, re[r]);
    S::store(c.im + r * c.row, im[r]);
  }
}

// c(i, j) (+)= sum_k a(i, k) conj(b(k, j)); `columns` is a multiple of the vector width, and the
// columns of b and c are contiguous.
template <typename T>
inline void gemm_conj(int64_t rows, int64_t columns, int64_t depth, Planar<const T> a,
                      Planar<const T> b, Planar<T> c, bool accumulate = false) {
  for (int64_t j = 0; j < columns; j += Simd<T>::W) {
    const auto panel = b.at(0, j);
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows)
      gemm_conj_block<T, kRows>(depth, a.at(i, 0), panel, c.at(i, j), accumulate);
    switch (rows - i) {
      case 5:
        gemm_conj_block<T, 5>(depth, a.at(i, 0), panel, c.at(i, j), accumulate);
        break;
      case 4:
        gemm_conj_block<T, 4>(depth, a.at(i, 0), panel, c.at(i, j), accumulate);
        break;
      case 3:
        gemm_conj_block<T, 3>(depth, a.at(i, 0), panel, c.at(i, j), accumulate);
        break;
      case 2:
        gemm_conj_block<T, 2>(depth, a.at(i, 0), panel, c.at(i, j), accumulate);
        break;
      case 1:
        gemm_conj_block<T, 1>(depth, a.at(i, 0), panel, c.at(i, j), accumulate);
        break;
      default:
        break;
    }
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
  int64_t j = 0;
  for (; j + kRows <= rows; j += kRows)
    dot_conj_block<T, kRows>(depth, a_re, a_im, b.at(j, 0), c_re + j * c_step, c_im + j * c_step,
                             c_step);
  for (; j + 2 <= rows; j += 2)
    dot_conj_block<T, 2>(depth, a_re, a_im, b.at(j, 0), c_re + j * c_step, c_im + j * c_step,
                         c_step);
  if (j < rows)
    dot_conj_block<T, 1>(depth, a_re, a_im, b.at(j, 0), c_re + j * c_step, c_im + j * c_step,
                         c_step);
}

template <typename T, int R>
RISKERNELS_INLINE void gemm_weights_block(int64_t depth, Planar<const T> a, const T* weights,
                                          int64_t weights_row, Planar<T> c) {
  using S = Simd<T>;
  typename S::V re[R], im[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) re[r] = im[r] = typename S::V{};
  for (int64_t k = 0; k < depth; ++k) {
    const auto w = S::load(weights + k * weights_row);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      re[r] += S::splat(a.re[r * a.row + k]) * w;
      im[r] += S::splat(a.im[r * a.row + k]) * w;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    S::store(c.re + r * c.row, re[r]);
    S::store(c.im + r * c.row, im[r]);
  }
}

// c(i, lane) = sum_k a(i, k) weights(k, lane) with real weights, for one vector of lanes.
template <typename T>
inline void gemm_weights(int64_t rows, int64_t depth, Planar<const T> a, const T* weights,
                         int64_t weights_row, Planar<T> c) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    gemm_weights_block<T, kRows>(depth, a.at(i, 0), weights, weights_row, c.at(i, 0));
  for (; i < rows; ++i)
    gemm_weights_block<T, 1>(depth, a.at(i, 0), weights, weights_row, c.at(i, 0));
}

}  // namespace riskernels::RISKERNELS_ISA
