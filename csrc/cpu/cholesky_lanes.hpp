// SPDX-License-Identifier: Apache-2.0
// Hermitian positive definite systems, one per vector lane: lane w of every vector belongs to
// snapshot w of a group, so no step of the factorisation needs a horizontal operation.
//
// The factor is stored as [M, M] vectors, lower triangle, with the *reciprocals* of the diagonal.
#pragma once

#include "panel.hpp"

namespace riskernels::RISKERNELS_ISA {

// In place: S (lower, the lanes' loadings already on the diagonal) -> Cholesky factor.
//
// No pivot lies below the loading in exact arithmetic. In floating point the Schur complement
// carries noise of a few eps max(S_ii); where that exceeds the loading, dividing noise by the root
// of a smaller pivot would let it grow from column to column until it overflows. The floor is
// therefore the larger of the two, 8 M times the noise unit, below which nothing is resolved
// anyway. Where the loading is below the noise, a pivot also takes what keeps the Schur complement
// C positive semidefinite, max_i |C_ij|^2 / C_ii: noise beyond the floor would else be squared at
// every column. NaN pivots stay NaN.
template <typename T>
inline void cholesky_lanes(int64_t m, Planar<T> s, const T* loadings) {
  using S = Simd<T>;
  const auto loading = S::load(loadings);
  auto largest = S::load(s.re);
  for (int64_t i = 1; i < m; ++i) {
    const auto entry = S::load(s.at(i, i).re);
    largest = entry > largest ? entry : largest;
  }
  const auto noise = largest * S::splat(T(8) * static_cast<T>(m) * S::kEpsilon);
  const auto floor = noise > loading ? noise : loading;
  const auto noisy = noise > loading;
  bool any_noisy = false;
  for (int w = 0; w < S::W; ++w) any_noisy |= noisy[w] != 0;
  // The diagonal of the Schur complement, in the imaginary parts that a Hermitian diagonal lacks.
  for (int64_t i = 0; any_noisy && i < m; ++i) {
    const auto entry = s.at(i, i);
    S::store(entry.im, S::load(entry.re));
  }
  // Left-looking: column j first takes the products of all columns before it, held in registers.
  for (int64_t j = 0; j < m; ++j) {
    const auto pivot_row = s.at(j, 0);
    for_row_blocks(m - j, [&](auto size, int64_t first) {
      constexpr int R = decltype(size)::value;
      const auto rows = s.at(j + first, 0);
      typename S::V re[R], im[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto entry = rows.at(r, j);
        re[r] = S::load(entry.re);
        im[r] = S::load(entry.im);
      }
      for (int64_t k = 0; k < j; ++k) {
        const auto x_re = S::load(pivot_row.re + k * s.column);
        const auto x_im = S::load(pivot_row.im + k * s.column);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const auto c_re = S::load(rows.re + r * s.row + k * s.column);
          const auto c_im = S::load(rows.im + r * s.row + k * s.column);
          re[r] -= c_re * x_re;
          im[r] -= c_im * x_re;
          re[r] -= c_im * x_im;
          im[r] += c_re * x_im;
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto entry = rows.at(r, j);
        S::store(entry.re, re[r]);
        S::store(entry.im, im[r]);
      }
    });
    const auto column = s.at(0, j);
    auto pivot = S::load(column.re + j * s.row);
    pivot = pivot < floor ? floor : pivot;
    if (any_noisy) {
      const auto square = [&](int64_t i) {
        const auto re = S::load(column.re + i * s.row), im = S::load(column.im + i * s.row);
        return re * re + im * im;
      };
      auto needed = pivot;
      for (int64_t i = j + 1; i < m; ++i) {
        const auto own = S::load(s.at(i, i).im);
        const auto quotient = square(i) / (own > floor ? own : floor);
        needed = quotient > needed ? quotient : needed;
      }
      pivot = noisy ? needed : pivot;
      for (int64_t i = j + 1; i < m; ++i) {
        T* const own = s.at(i, i).im;
        S::store(own, S::load(own) - square(i) / pivot);
      }
    }
    alignas(RISKERNELS_VECTOR_BYTES) T lanes[S::W];
    S::store(lanes, pivot);
    for (int w = 0; w < S::W; ++w) lanes[w] = T(1) / __builtin_sqrt(lanes[w]);
    const auto inverse = S::load(lanes);
    S::store(column.re + j * s.row, inverse);
    for (int64_t i = j + 1; i < m; ++i) {
      S::store(column.re + i * s.row, S::load(column.re + i * s.row) * inverse);
      S::store(column.im + i * s.row, S::load(column.im + i * s.row) * inverse);
    }
  }
}

// In place: z (rows m, one vector of lanes) -> S^{-1} z. With `Shared`, every lane uses lane 0 of
// the factor.
template <typename T, bool Shared>
inline void solve_lanes(int64_t m, Planar<const T> factor, Planar<T> z) {
  using S = Simd<T>;
  const auto entry = [](const T* p) { return Shared ? S::splat(*p) : S::load(p); };
  for (int64_t i = 0; i < m; ++i) {
    auto re = S::load(z.re + i * z.row), im = S::load(z.im + i * z.row);
    for (int64_t j = 0; j < i; ++j) {
      const auto f = factor.at(i, j);
      const auto f_re = entry(f.re), f_im = entry(f.im);
      const auto x_re = S::load(z.re + j * z.row), x_im = S::load(z.im + j * z.row);
      re -= f_re * x_re;
      im -= f_re * x_im;
      re += f_im * x_im;
      im -= f_im * x_re;
    }
    const auto inverse = entry(factor.at(i, i).re);
    S::store(z.re + i * z.row, re * inverse);
    S::store(z.im + i * z.row, im * inverse);
  }
  for (int64_t i = m - 1; i >= 0; --i) {
    auto re = S::load(z.re + i * z.row), im = S::load(z.im + i * z.row);
    for (int64_t j = i + 1; j < m; ++j) {
      const auto f = factor.at(j, i);
      const auto f_re = entry(f.re), f_im = entry(f.im);
      const auto x_re = S::load(z.re + j * z.row), x_im = S::load(z.im + j * z.row);
      re -= f_re * x_re;
      im -= f_re * x_im;
      re -= f_im * x_im;
      im += f_im * x_re;
    }
    const auto inverse = entry(factor.at(i, i).re);
    S::store(z.re + i * z.row, re * inverse);
    S::store(z.im + i * z.row, im * inverse);
  }
}

}  // namespace riskernels::RISKERNELS_ISA
