// SPDX-License-Identifier: Apache-2.0
// Hermitian positive definite systems, one per vector lane: lane w of every vector belongs to
// snapshot w of a group, so no step of the factorisation needs a horizontal operation. A system
// that all snapshots share has its rows in the lanes instead.
//
// The factor is stored as [M, M] vectors, lower triangle, with the *reciprocals* of the diagonal.
#pragma once

#include "hermitian_tiles.hpp"
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

// The same for one matrix, stored column by column, every column padded to whole vectors: the rows
// of a column lie in the lanes. What lies above the diagonal and in the padding is overwritten, and
// never reaches the factor. `own` is room for m numbers.
template <typename T>
inline void cholesky_columns(int64_t m, Planar<T> s, T loading, T* own) {
  using S = Simd<T>;
  T largest = *s.re;
  for (int64_t i = 1; i < m; ++i) {
    const T entry = *s.at(i, i).re;
    largest = entry > largest ? entry : largest;
  }
  const T noise = largest * (T(8) * static_cast<T>(m) * S::kEpsilon);
  const bool noisy = noise > loading;
  const T floor = noisy ? noise : loading;
  // The diagonal of the Schur complement.
  for (int64_t i = 0; noisy && i < m; ++i) own[i] = *s.at(i, i).re;
  // Right-looking: the next pivot waits for one product only.
  for (int64_t j = 0; j < m; ++j) {
    const auto column = s.at(0, j);
    T pivot = column.re[j];
    pivot = pivot < floor ? floor : pivot;
    if (noisy) {
      const auto square = [&](int64_t i) {
        return column.re[i] * column.re[i] + column.im[i] * column.im[i];
      };
      for (int64_t i = j + 1; i < m; ++i) {
        const T quotient = square(i) / (own[i] > floor ? own[i] : floor);
        pivot = quotient > pivot ? quotient : pivot;
      }
      for (int64_t i = j + 1; i < m; ++i) own[i] -= square(i) / pivot;
    }
    const T inverse = T(1) / __builtin_sqrt(pivot);
    for (int64_t i = j / S::W * S::W; i < m; i += S::W) {
      S::store(column.re + i, S::load(column.re + i) * S::splat(inverse));
      S::store(column.im + i, S::load(column.im + i) * S::splat(inverse));
    }
    column.re[j] = inverse;
    for (int64_t k = j + 1; k < m; ++k) {
      const auto to = s.at(0, k);
      const auto x_re = S::splat(column.re[k]), x_im = S::splat(column.im[k]);
      for (int64_t i = k / S::W * S::W; i < m; i += S::W) {
        const auto c_re = S::load(column.re + i), c_im = S::load(column.im + i);
        S::store(to.re + i, S::load(to.re + i) - c_re * x_re - c_im * x_im);
        S::store(to.im + i, S::load(to.im + i) - c_im * x_re + c_re * x_im);
      }
    }
  }
}

// In place: z (rows m, V vectors of lanes) -> S^{-1} z. With `Shared`, every lane uses lane 0 of
// the factor. Each product has an accumulator of its own: the sums would else wait for each other.
template <typename T, bool Shared, int V>
inline void solve_lanes(int64_t m, Planar<const T> factor, Planar<T> z) {
  using S = Simd<T>;
  struct Sum {
    typename S::V re, im, crossed_re, crossed_im;
  };
  const auto entry = [](const T* p, int v) {
    return Shared ? S::splat(*p) : S::load(p + v * S::W);
  };
  const auto begin = [&](int64_t i, Sum(&sum)[V]) RISKERNELS_INLINE_LAMBDA {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const auto at = z.at(i, v * S::W);
      sum[v] = {S::load(at.re), S::load(at.im), typename S::V{}, typename S::V{}};
    }
  };
  // Takes f z_j, or conj(f) z_j once the sign of `crossed` is turned, from the sum.
  const auto take = [&](Planar<const T> f, int64_t j, Sum(&sum)[V]) RISKERNELS_INLINE_LAMBDA {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const auto x = z.at(j, v * S::W);
      const auto f_re = entry(f.re, v), f_im = entry(f.im, v);
      const auto x_re = S::load(x.re), x_im = S::load(x.im);
      sum[v].re -= f_re * x_re;
      sum[v].im -= f_re * x_im;
      sum[v].crossed_re += f_im * x_im;
      sum[v].crossed_im -= f_im * x_re;
    }
  };
  const auto finish = [&](int64_t i, const Sum(&sum)[V], T sign) RISKERNELS_INLINE_LAMBDA {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const auto inverse = entry(factor.at(i, i).re, v);
      const auto at = z.at(i, v * S::W);
      S::store(at.re, (sum[v].re + sign * sum[v].crossed_re) * inverse);
      S::store(at.im, (sum[v].im + sign * sum[v].crossed_im) * inverse);
    }
  };
  for (int64_t i = 0; i < m; ++i) {
    Sum sum[V];
    begin(i, sum);
    for (int64_t j = 0; j < i; ++j) take(factor.at(i, j), j, sum);
    finish(i, sum, T(1));
  }
  for (int64_t i = m - 1; i >= 0; --i) {
    Sum sum[V];
    begin(i, sum);
    for (int64_t j = i + 1; j < m; ++j) take(factor.at(j, i), j, sum);
    finish(i, sum, T(-1));
  }
}

}  // namespace riskernels::RISKERNELS_ISA
