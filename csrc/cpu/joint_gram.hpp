// SPDX-License-Identifier: Apache-2.0
// The Gram matrix of one scene's factors side by side, G = [X, Z]^H [X, Z], in double.
//
// Rows are converted to double a chunk at a time, small enough to stay in the first-level cache
// while every pair of columns passes over it. Only blocks on and above the diagonal are computed.
#pragma once

#include "interleaved_rows.hpp"

namespace riskernels::RISKERNELS_ISA {

class JointGram {
 public:
  using S = Simd<double>;

  // Doubles of scratch for `columns` columns of X and Z together.
  static int64_t doubles(int64_t columns) {
    return (chunk_rows_of(columns) + padded(columns)) * pitch_of(columns);
  }

  JointGram(int64_t columns, double* scratch)
      : pitch(pitch_of(columns)),
        chunk_rows(chunk_rows_of(columns)),
        chunk(scratch),
        gram(scratch + chunk_rows * pitch) {}

  // Sums over n rows. Rows whose mask is false count as zeros, whatever they hold; a null mask
  // keeps all. f(first, count) sees each chunk before it is used: rows [first, first + count) of
  // [X, Z] as interleaved doubles, `pitch` apart.
  template <typename T, typename F>
  void sum(int64_t n, const Rows<T>& x, const Rows<T>& z, const bool* mask, int64_t mask_stride,
           const F& f) const {
    const int64_t columns = x.columns + z.columns, wide = padded(columns);
    for (int64_t k = 0; k < padded(columns) * pitch; ++k) gram[k] = 0;
    for (int64_t i = 0; i < chunk_rows; ++i)
      for (int64_t k = 2 * columns; k < 2 * wide; ++k) chunk[i * pitch + k] = 0;
    for (int64_t first = 0; first < n; first += chunk_rows) {
      const int64_t count = n - first < chunk_rows ? n - first : chunk_rows;
      pack_rows(x, first, count, 1.0, chunk, pitch);
      pack_rows(z, first, count, 1.0, chunk + 2 * x.columns, pitch);
      for (int64_t i = 0; mask != nullptr && i < count; ++i)
        if (!mask[(first + i) * mask_stride])
          for (int64_t k = 0; k < 2 * columns; ++k) chunk[i * pitch + k] = 0;
      f(first, count);
      for (int64_t i = 0; i < wide; i += kRowsAtOnce)
        for_vector_groups((wide - i) / kPerVector, [&](auto size, int64_t v) {
          add_block<decltype(size)::value>(count, i, i + v * kPerVector);
        });
    }
  }

  // Entry (i, j) = column_i^H column_j for i <= j, as (re, im).
  const double* entry(int64_t i, int64_t j) const { return gram + i * pitch + 2 * j; }

  // The whole Hermitian matrix, interleaved, to `out` [total, total]; what lies beyond the first
  // `columns` rows and columns is 0.
  void store(int64_t columns, int64_t total, double* out) const {
    for (int64_t i = 0; i < total; ++i) {
      double* const row = out + 2 * i * total;
      for (int64_t j = i; j < total; ++j) {
        const bool inside = j < columns;
        const double re = inside ? entry(i, j)[0] : 0.0;
        const double im = inside && j != i ? entry(i, j)[1] : 0.0;
        row[2 * j] = re;
        row[2 * j + 1] = im;
        out[2 * (j * total + i)] = re;
        out[2 * (j * total + i) + 1] = j == i ? im : -im;
      }
    }
  }

  const int64_t pitch, chunk_rows;
  double* const chunk;  // [chunk_rows, pitch]
  double* const gram;   // [padded columns, pitch], upper triangle

 private:
  static constexpr int kPerVector = S::W / 2;  // complex numbers
  // A block starts on the diagonal at a whole vector.
  static constexpr int kRowsAtOnce = kPairs / 3;
  static_assert(kRowsAtOnce % kPerVector == 0, "blocks of rows start at whole vectors");

  static int64_t padded(int64_t columns) { return round_up(columns, kRowsAtOnce); }
  static int64_t pitch_of(int64_t columns) { return 2 * padded(columns); }
  static int64_t chunk_rows_of(int64_t columns) {
    constexpr int64_t kChunkDoubles = 2048;
    const int64_t rows = kChunkDoubles / pitch_of(columns) / 8 * 8;
    return rows < 8 ? 8 : rows;
  }

  // Rows [i, i + kRowsAtOnce) of the Gram matrix, V vectors from column j on. Not inlined:
  // registers are for this loop alone.
  template <int V>
  __attribute__((noinline)) void add_block(int64_t count, int64_t i, int64_t j) const {
    constexpr int R = kRowsAtOnce;
    S::V by_re[R][V], by_im[R][V];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) by_re[r][v] = by_im[r][v] = S::V{};
    const double *left = chunk + 2 * i, *right = chunk + 2 * j;
    for (int64_t n = 0; n < count; ++n, left += pitch, right += pitch) {
      S::V x[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[v] = S::load(right + v * S::W);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const auto re = S::splat(left[2 * r]), im = S::splat(left[2 * r + 1]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          by_re[r][v] += re * x[v];
          by_im[r][v] += im * x[v];
        }
      }
    }
    // conj(a) b: the products with im(a) change places, and sign in the imaginary part.
    const auto sign = Tile<double>::signs(1.0, -1.0);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        double* const to = gram + (i + r) * pitch + 2 * j + v * S::W;
        S::store(to, S::load(to) + (by_re[r][v] + sign * swap_pairs<double>(by_im[r][v])));
      }
  }
};

}  // namespace riskernels::RISKERNELS_ISA
