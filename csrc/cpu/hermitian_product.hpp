// SPDX-License-Identifier: Apache-2.0
// P x with the Hermitian P = G + G^H, for all right-hand sides x at once: they fill the vector
// lanes. P is formed tile by tile in the first-level cache; a tile serves both
//   out_I += P_IJ x_J  and  out_J += P_IJ^H x_I,
// so G is read once and P never stored.
#pragma once

#include "carver.hpp"
#include "gauss_products.hpp"

namespace riskernels::RISKERNELS_ISA {

template <typename T>
class HermitianProduct {
 public:
  using S = Simd<T>;
  static constexpr int W = S::W;
  // Of a tile: a multiple of all block sizes. Larger ones take fewer loads, but push what has been
  // asked for ahead out of a first-level cache of 32 KiB.
  static constexpr int64_t kEdge = 16;

  // `lanes` (a multiple of W) right-hand sides of `size` rows; out has `rows` rows, at least
  // `padded`, of which those beyond `size` become 0.
  HermitianProduct(Carver& carver, int64_t size, int64_t padded, int64_t lanes)
      : n(size),
        rows(round_up(padded, kEdge)),
        lanes_(lanes),
        rows_ahead_(round_up(kEdge * W, 4 * lanes) / (4 * lanes)),
        parts_(carver.take<T>(kEdge * kPitch)) {}

  // `next` is the matrix of the following run, g itself where there is none.
  void run(const HermitianPart<T>& g, const HermitianPart<T>& next, const RightPlanes<T>& x,
           const Planar<T>& out) {
    clear(out, 0);
    if (ahead_.matrix == nullptr)
      for (int k = 0; k < kAhead; ++k) ahead_.advance(g, next, n);
    // Several tiles of a column follow one another, so that x_J and out_J come from the
    // second-level cache once for all of them.
    for (int64_t top = 0; top < n; top += kColumn) {
      for (int64_t j = top; j < n; j += kEdge) {
        const int64_t last = j < top + kColumn - kEdge ? j : top + kColumn - kEdge;
        for (int64_t i = top; i <= last; i += kEdge) {
          ahead_.advance(g, next, n);
          ahead_.share = i == j ? 2 * rows_ahead_ : rows_ahead_;
          add_tile(g, i, j, x, out);
        }
      }
    }
    clear(out, n);
  }

  const int64_t n, rows;

 private:
  static constexpr int64_t kColumn = 9 * kEdge;
  static constexpr int kAhead = 3;

  // Rows from `first` on.
  void clear(const Planar<T>& out, int64_t first) const {
    for (int64_t i = first * lanes_; i < rows * lanes_; i += W) {
      S::store(out.re + i, typename S::V{});
      S::store(out.im + i, typename S::V{});
    }
  }

  // out_I += P_IJ x_J and, off the diagonal, out_J += P_IJ^H x_I, for the tile at (i, j).
  void add_tile(const HermitianPart<T>& g, int64_t i, int64_t j, const RightPlanes<T>& x,
                const Planar<T>& out) {
    const int64_t height = n - i < kEdge ? n - i : kEdge;
    const int64_t width = n - j < kEdge ? n - j : kEdge;
    form(g, i, j, height, width);
    // The conjugate of P differs by which of the two combinations is the sum.
    T* const combined = parts_ + 2 * kEdge;
    const int64_t conjugated = g.im < T(0);
    const LeftPlanes<T> tile{parts_, combined + conjugated, combined + 1 - conjugated, kPitch, 2};
    multiply<Conjugate::none>(height, width, tile, x.at(j, 0), out.at(i, 0));
    if (i == j) return;
    const LeftPlanes<T> mirror{tile.re, tile.sum, tile.difference, 2, kPitch};
    multiply<Conjugate::left>(width, height, mirror, x.at(i, 0), out.at(j, 0));
  }

  // A row of the tile: kEdge pairs (re, im), then kEdge pairs (re + im, re - im).
  static constexpr int64_t kPitch = 4 * kEdge;

  // Asks for the tile kAhead tiles further on, a few rows before each block of products: hardware
  // foresees few of its lines, and asking for all at once would have the products wait for free
  // buffers. Goes through the tiles in the order of run(), and on into the matrix that follows.
  struct Ahead {
    const T *matrix = nullptr, *direct = nullptr, *mirror = nullptr;
    int64_t row = 0, left = 0;      // of the rows of the tile, those not yet asked for
    int64_t share = 0;              // rows before each block
    int64_t top = 0, i = 0, j = 0;  // the tile's place

    void advance(const HermitianPart<T>& g, const HermitianPart<T>& next, int64_t n) {
      if (matrix == nullptr) {
        matrix = g.data;
      } else if (i < j && i < top + kColumn - kEdge) {
        i += kEdge;
      } else if (j + kEdge < n) {
        i = top;
        j += kEdge;
      } else if (top + kColumn < n) {
        top = i = j = top + kColumn;
      } else {
        top = i = j = 0;
        matrix = next.data;
      }
      direct = matrix + 2 * (i * g.row + j);
      mirror = matrix + 2 * (j * g.row + i);
      row = g.row;
      left = g.column == 1 ? (n - j < kEdge ? n - j : kEdge) : 0;
    }
    RISKERNELS_INLINE void fetch(int64_t rows) {
      for (; rows > 0 && left > 0; --rows, --left) {
        fetch_row(direct);
        fetch_row(mirror);
        direct += 2 * row;
        mirror += 2 * row;
      }
    }
    static RISKERNELS_INLINE void fetch_row(const T* from) {
#pragma GCC unroll 8
      for (int64_t k = 0; k < 2 * kEdge; k += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(from + k);
      if (reinterpret_cast<std::uintptr_t>(from) % 64 != 0)
        __builtin_prefetch(from + 2 * kEdge - 1);
    }
  };

  // The part of the tile at (i, j) that exists, height x width.
  __attribute__((noinline)) void form(const HermitianPart<T>& g, int64_t i, int64_t j,
                                      int64_t height, int64_t width) {
    constexpr int64_t kSize = Tile<T>::kSize;
    if (g.column != 1 || height < kSize || width < kSize) {
      for (int64_t y = 0; y < height; y += kSize)
        for (int64_t x = 0; x < width; x += kSize) {
          const int64_t rows = height - y < kSize ? height - y : kSize;
          const int64_t columns = width - x < kSize ? width - x : kSize;
          put(g.template tile<false>(i + y, j + x, rows, columns),
              g.template tile<false>(j + x, i + y, columns, rows), parts_ + y * kPitch + 2 * x);
        }
      return;
    }
    // The last blocks of a row or column may overlap those before them.
    const T* const direct = g.data + 2 * (i * g.row + j);
    const T* const mirror = g.data + 2 * (j * g.row + i);
    for (int64_t next_y = 0; next_y < height; next_y += kSize) {
      const int64_t y = next_y + kSize < height ? next_y : height - kSize;
      for (int64_t next_x = 0; next_x < width; next_x += kSize) {
        const int64_t x = next_x + kSize < width ? next_x : width - kSize;
        const T* const here = direct + 2 * (y * g.row + x);
        const T* const there = mirror + 2 * (x * g.row + y);
        Tile<T> a, b;
#pragma GCC unroll 8
        for (int r = 0; r < kSize; ++r) {
          a.row[r] = S::load(here + 2 * r * g.row);
          b.row[r] = S::load(there + 2 * r * g.row);
        }
        put(a, b, parts_ + y * kPitch + 2 * x);
      }
    }
  }

  // p = direct + mirrored^H, and the sums and differences of its parts.
  static RISKERNELS_INLINE void put(const Tile<T>& direct, Tile<T> mirrored, T* to) {
    const auto sign = Tile<T>::signs(T(1), T(-1));
    mirrored.transpose();
#pragma GCC unroll 8
    for (int r = 0; r < Tile<T>::kSize; ++r) {
      const auto p = direct.row[r] + sign * mirrored.row[r];
      S::store(to + r * kPitch, p);
      S::store(to + r * kPitch + 2 * kEdge, swap_pairs<T>(p) + sign * p);
    }
  }

  // out (rows) += tile x. Rows are rounded up to whole blocks; run() clears what they leave beyond
  // N.
  template <Conjugate C>
  void multiply(int64_t rows, int64_t depth, const LeftPlanes<T>& tile, const RightPlanes<T>& x,
                const Planar<T>& out) {
    for_vector_groups(lanes_ / W, [&](auto group, int64_t first) {
      multiply_lanes<C, decltype(group)::value>(rows, depth, tile, x.at(0, first * W),
                                                out.at(0, first * W));
    });
  }

  template <Conjugate C, int V>
  __attribute__((noinline)) void multiply_lanes(int64_t rows, int64_t depth, LeftPlanes<T> tile,
                                                const RightPlanes<T>& x, Planar<T> out) {
    constexpr int R = V == 1 ? 8 : 4;
    static_assert(kEdge % R == 0);
    // Constants, which leave registers to the loops.
    tile.row = C == Conjugate::none ? kPitch : 2;
    tile.column = C == Conjugate::none ? 2 : kPitch;
    for (int64_t i = 0; i < rows; i += R) {
      ahead_.fetch(ahead_.share);
      gauss_block<C, true, R, V>(depth, tile, x, out);
      tile = tile.at(R, 0);
      out = out.at(R, 0);
    }
  }

  const int64_t lanes_;
  const int64_t rows_ahead_;  // a tile's rows for each of the 4 lanes / W blocks of two products
  T* const parts_;            // [kEdge, kPitch]
  Ahead ahead_;
};

}  // namespace riskernels::RISKERNELS_ISA
