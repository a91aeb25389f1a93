// SPDX-License-Identifier: Apache-2.0
// R = sum_l x_l x_l^H for vectors x_l of n complex elements, tile by tile: a tile on or above the
// diagonal is computed once and written twice, as it is and as its conjugate transpose.
//
// A complex product takes three real ones. With x = a + ib and the sums over l implied,
//   P1 = a_i a_j,  P2 = b_i b_j,  P3 = (a_i + b_i) (a_j - b_j),
//   Re x_i conj(x_j) = P1 + P2,  Im x_i conj(x_j) = P3 - P1 + P2.
// Every P is bounded by 2 |x_i| |x_j|, and so is, in units of rounding, the error of what they add
// up to: that of the usual four products, but for a constant. One set of accumulators takes all
// three in turn: -P1, then P2 - P1, which with 2 P1 is the real part, then P3 + P2 - P1.
#pragma once

#include "hermitian_tiles.hpp"
#include "panel.hpp"

namespace riskernels::RISKERNELS_ISA {

template <typename T>
class HermitianOuter {
 public:
  using S = Simd<T>;
  static constexpr int W = S::W;
  // Rows and vectors of accumulators: 12 of 32 registers, which leave as many for the real parts
  // while the imaginary ones are added up; of 16 registers 8, which hide the latency of the
  // multiply-adds and leave so many that nothing is spilled between the three products.
  static constexpr int kBlockRows = W < 4 ? W : 4;
  static constexpr int kVectors = RISKERNELS_VECTOR_BYTES == 64 ? 3 : 8 / kBlockRows;
  // Rows that are mirrored at once: the blocks that fill cache lines of the mirror image.
  static constexpr int kLine = 64 / (2 * static_cast<int>(sizeof(T)));
  static constexpr int kStripRows =
      RISKERNELS_VECTOR_BYTES == 16 || kBlockRows > kLine ? kBlockRows : kLine;

  // Elements lie in panels of up to kVectors vectors, as even as can be.
  HermitianOuter(int64_t elements, int64_t terms)
      : n_(elements),
        depth_(terms),
        vectors_((elements + W - 1) / W),
        panels_((vectors_ + kVectors - 1) / kVectors) {}

  int64_t packed_size() const { return panels_ * panel_size(); }
  // The work of write() in equal shares: one for a tile on the diagonal, two for one above it.
  int64_t shares() const { return panels_ * panels_; }

  // Packs columns [j, j + columns), both multiples of W, of x = scale * (a - mean of a over its
  // rows, where `center`); a(l, column, re, im) gives one vector of row l of `terms`.
  template <typename F>
  void pack(const F& a, T scale, bool center, int64_t j, int64_t columns, T* packed) const {
    const auto scales = S::splat(scale);
    const auto share = S::splat(T(1) / static_cast<T>(depth_));
    const int64_t part = depth_ * kPitch, end = (j + columns) / W;
    for (int64_t v = j / W; v < end && v < vectors_; ++v) {
      typename S::V re, im, mean_re{}, mean_im{};
      for (int64_t l = 0; center && l < depth_; ++l) {
        a(l, v * W, re, im);
        mean_re += re;
        mean_im += im;
      }
      mean_re *= share;
      mean_im *= share;
      const int64_t panel = panel_of(v);
      T* to = packed + panel * panel_size() + (v - first_vector(panel)) * W;
      for (int64_t l = 0; l < depth_; ++l, to += kPitch) {
        a(l, v * W, re, im);
        re = S::to_lane_order((re - mean_re) * scales);
        im = S::to_lane_order((im - mean_im) * scales);
        S::store(to, re);
        S::store(to + part, im);
        S::store(to + 2 * part, re + im);
        S::store(to + 3 * part, re - im);
      }
    }
  }

  // Whether all rows of R consist of whole cache lines.
  bool whole_lines(const T* out) const {
    return n_ % kLine == 0 && reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
  }

  // Writes the tiles whose first share lies in [begin, end), and their mirror images, into R [n,
  // n]. With `stream`, rows that consist of whole cache lines go past the caches.
  void write(const T* packed, T* out, bool stream, int64_t begin, int64_t end) const {
    if (stream && whole_lines(out)) {
      write_tiles<true>(packed, out, begin, end);
      S::stream_fence();
    } else {
      write_tiles<false>(packed, out, begin, end);
    }
  }

 private:
  static constexpr int64_t kPitch = kVectors * W;
  static constexpr int kSize = Tile<T>::kSize;
  static constexpr int kTiles = kStripRows / kSize;  // square tiles along the rows of a strip

  template <bool Stream>
  void write_tiles(const T* packed, T* out, int64_t begin, int64_t end) const {
    int64_t share = 0;
    for (int64_t i = 0; i < panels_; ++i)
      for (int64_t j = i; j < panels_; share += i == j ? 1 : 2, ++j)
        if (begin <= share && share < end) tile<Stream>(packed, out, i, j);
  }

  int64_t panel_size() const { return 4 * depth_ * kPitch; }
  int64_t first_vector(int64_t panel) const { return panel * vectors_ / panels_; }
  int64_t panel_of(int64_t v) const {
    int64_t panel = v * panels_ / vectors_;
    while (first_vector(panel + 1) <= v) ++panel;
    return panel;
  }

  // The panels' parts of one product: rows as scalars, columns as vectors.
  template <bool Negative, int R, int V>
  static RISKERNELS_INLINE void accumulate(int64_t depth, const T* rows, const T* columns,
                                           typename S::V (&sum)[R][V]) {
    for (int64_t l = 0; l < depth; ++l, rows += kPitch, columns += kPitch) {
      typename S::V x[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[v] = S::load(columns + v * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto s = S::splat(rows[S::position_in_lane_order(r)]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          if constexpr (Negative)
            sum[r][v] -= s * x[v];
          else
            sum[r][v] += s * x[v];
        }
      }
    }
  }

  // R rows of R, interleaved, to `strip`. Not inlined: registers are for these loops.
  template <int R, int V>
  __attribute__((noinline)) void products(const T* rows, const T* columns, T* strip) const {
    // Whether the registers hold a second set of accumulators; else it lies in `strip`.
    constexpr bool kTwoSets = 2 * R * V + V + 1 <= (RISKERNELS_VECTOR_BYTES == 64 ? 32 : 16);
    const int64_t part = depth_ * kPitch;
    const auto at = [strip](int r, int v) { return strip + 2 * W * (r * V + v); };
    const auto each = [](const auto& f) RISKERNELS_INLINE_LAMBDA {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) f(r, v);
    };
    typename S::V sum[R][V], aside[R][V];
    const auto put_aside = [&](int r, int v, typename S::V x) RISKERNELS_INLINE_LAMBDA {
      if constexpr (kTwoSets)
        aside[r][v] = x;
      else
        S::store(at(r, v), x);
    };
    const auto get_aside = [&](int r, int v) RISKERNELS_INLINE_LAMBDA {
      if constexpr (kTwoSets)
        return aside[r][v];
      else
        return S::load(at(r, v));
    };
    // The compiler would else keep what lies in memory in registers, and spill others.
    const auto forget = []() RISKERNELS_INLINE_LAMBDA {
      if constexpr (!kTwoSets) asm volatile("" ::: "memory");
    };
    each([&](int r, int v) RISKERNELS_INLINE_LAMBDA { sum[r][v] = typename S::V{}; });
    accumulate<true, R, V>(depth_, rows, columns, sum);
    each([&](int r, int v) RISKERNELS_INLINE_LAMBDA { put_aside(r, v, sum[r][v]); });
    accumulate<false, R, V>(depth_, rows + part, columns + part, sum);
    forget();
    const auto two = S::splat(T(2));
    each([&](int r, int v)
             RISKERNELS_INLINE_LAMBDA { put_aside(r, v, sum[r][v] - two * get_aside(r, v)); });
    accumulate<false, R, V>(depth_, rows + 2 * part, columns + 3 * part, sum);
    forget();
    each([&](int r, int v) RISKERNELS_INLINE_LAMBDA {
      typename S::V low, high;
      S::interleave_lane_order(get_aside(r, v), sum[r][v], low, high);
      S::store(at(r, v), low);
      S::store(at(r, v) + W, high);
    });
  }

  // The first `count` complex numbers of a vector.
  static RISKERNELS_INLINE void put_some(T* to, typename S::V v, int64_t count) {
#pragma GCC unroll 8
    for (int k = 0; k < kSize; ++k) {
      if (k >= count) return;
      to[2 * k] = v[2 * k];
      to[2 * k + 1] = v[2 * k + 1];
    }
  }

  static RISKERNELS_INLINE Tile<T> load_tile(const T* strip, int64_t strip_row) {
    Tile<T> tile;
#pragma GCC unroll 8
    for (int r = 0; r < kSize; ++r) tile.row[r] = S::load(strip + r * strip_row);
    return tile;
  }

  static RISKERNELS_INLINE void conjugate_transpose(Tile<T>& tile) {
    using I = typename S::I;
    const auto sign = reinterpret_cast<I>(Tile<T>::signs(T(0), T(-0.0)));
    tile.transpose();
#pragma GCC unroll 8
    for (int r = 0; r < kSize; ++r)
      tile.row[r] = reinterpret_cast<typename S::V>(reinterpret_cast<I>(tile.row[r]) ^ sign);
  }

  // A tile on the diagonal: rounding differs above and below, so the upper triangle decides.
  static RISKERNELS_INLINE void make_hermitian(Tile<T>& tile) {
    Tile<T> mirror = tile;
    conjugate_transpose(mirror);
    select_upper(tile, mirror, std::make_integer_sequence<int, kSize>());
  }
  template <int... R>
  static RISKERNELS_INLINE void select_upper(Tile<T>& tile, const Tile<T>& lower,
                                             std::integer_sequence<int, R...>) {
    using Lanes = std::make_integer_sequence<typename S::Int, W>;
    ((tile.row[R] = select_row<R>(tile.row[R], lower.row[R], Lanes())), ...);
  }
  // Lanes of a row of the diagonal tile, as bit masks: from above, from below, or zero.
  template <int R, typename S::Int... K>
  static RISKERNELS_INLINE typename S::V select_row(typename S::V above, typename S::V below,
                                                    std::integer_sequence<typename S::Int, K...>) {
    using I = typename S::I;
    const I keep{(K == 2 * R || K > 2 * R + 1 ? -1 : 0)...}, take{(K < 2 * R ? -1 : 0)...};
    return reinterpret_cast<typename S::V>((reinterpret_cast<I>(above) & keep) |
                                           (reinterpret_cast<I>(below) & take));
  }

  // One vector of columns of a strip that lies above the diagonal, from row i and column j on.
  template <bool Stream>
  RISKERNELS_INLINE void write_square(const T* strip, int64_t strip_row, T* out, int64_t i,
                                      int64_t j) const {
    T* const direct = out + 2 * (i * n_ + j);
#pragma GCC unroll 8
    for (int r = 0; r < kStripRows; ++r) {
      S::template put<Stream>(direct + 2 * r * n_, S::load(strip + r * strip_row));
      S::template put<Stream>(direct + 2 * r * n_ + W, S::load(strip + r * strip_row + W));
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Tile<T> tile[kTiles];
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
        tile[t] = load_tile(strip + t * kSize * strip_row + half * W, strip_row);
        conjugate_transpose(tile[t]);
      }
      T* const mirror = out + 2 * ((j + half * kSize) * n_ + i);
#pragma GCC unroll 8
      for (int r = 0; r < kSize; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t)
          S::template put<Stream>(mirror + 2 * r * n_ + t * W, tile[t].row[r]);
    }
  }

  // The same where the strip may cross the diagonal or the end of the matrix.
  __attribute__((noinline)) void write_edge(const T* strip, int64_t strip_row, T* out, int64_t i0,
                                            int64_t j0) const {
    for (int64_t t = 0; t < kTiles; ++t)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t i = i0 + t * kSize, j = j0 + half * kSize;
        if (j < i || j >= n_) continue;
        const int64_t rows = n_ - i < kSize ? n_ - i : kSize;
        const int64_t columns = n_ - j < kSize ? n_ - j : kSize;
        auto tile = load_tile(strip + t * kSize * strip_row + half * W, strip_row);
        if (i == j) make_hermitian(tile);
        store_rows(tile, out + 2 * (i * n_ + j), rows, columns);
        if (i == j) continue;
        conjugate_transpose(tile);
        store_rows(tile, out + 2 * (j * n_ + i), columns, rows);
      }
  }

  RISKERNELS_INLINE void store_rows(const Tile<T>& tile, T* to, int64_t rows,
                                    int64_t columns) const {
#pragma GCC unroll 8
    for (int r = 0; r < kSize; ++r) {
      if (r >= rows) return;
      if (columns == kSize)
        S::store(to + 2 * r * n_, tile.row[r]);
      else
        put_some(to + 2 * r * n_, tile.row[r], columns);
    }
  }

  template <int V, bool Stream>
  __attribute__((noinline)) void strip(const T* rows, const T* columns, T* out, int64_t i,
                                       int64_t j) const {
    alignas(64) T strip[2 * kStripRows * V * W];
    constexpr int64_t kRow = 2 * V * W;
    constexpr int R = V == 1 ? kStripRows : kBlockRows;
    for (int r = 0; r < kStripRows; r += R)
      products<R, V>(rows + S::position_in_lane_order(r), columns, strip + r * kRow);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t column = j + v * W;
      if (column > i && i + kStripRows <= n_ && column + W <= n_)
        write_square<Stream>(strip + 2 * v * W, kRow, out, i, column);
      else
        write_edge(strip + 2 * v * W, kRow, out, i, column);
    }
  }

  template <bool Stream>
  void tile(const T* packed, T* out, int64_t i, int64_t j) const {
    static_assert(kVectors <= 4, "lists the numbers of vectors");
    const int64_t row0 = first_vector(i) * W, end = first_vector(i + 1) * W;
    const int64_t first = first_vector(j), last = first_vector(j + 1);
    for (int64_t row = row0; row < end && row < n_; row += kStripRows) {
      const int64_t in_panel = row - row0, skip = i == j ? in_panel / W : 0;
      const T* const rows = packed + i * panel_size() + in_panel / W * W +
                            S::position_in_lane_order(static_cast<int>(in_panel % W));
      const T* const columns = packed + j * panel_size() + skip * W;
      const int64_t column = (first + skip) * W;
      switch (last - first - skip) {
        case 1:
          strip<1, Stream>(rows, columns, out, row, column);
          break;
        case 2:
          strip<2, Stream>(rows, columns, out, row, column);
          break;
        case 3:
          if constexpr (kVectors > 2) strip<3, Stream>(rows, columns, out, row, column);
          break;
        default:
          if constexpr (kVectors > 3) strip<4, Stream>(rows, columns, out, row, column);
      }
    }
  }

  const int64_t n_, depth_, vectors_, panels_;
};

}  // namespace riskernels::RISKERNELS_ISA
