// SPDX-License-Identifier: Apache-2.0
// R = sum_l a_l a_l^H from estimates in shared memory. A warp computes one or two stacked
// tiles of 16 x 16 on or above the diagonal in registers, and writes them as they are and as their
// conjugate transpose: each half of R is computed once, and every store fills whole sectors.
#pragma once

#include "estimates.cuh"

namespace riskernels::cuda {

constexpr int kTile = 16;

// The part of a warp's tiles that a lane holds: 2 rows per tile and 4 columns. Columns come as two
// pairs, 8 apart, so that the lanes of one store cover 64 consecutive bytes of complex64.
struct TileLane {
  int row, column[2];

  RISKERNELS_DEVICE explicit TileLane(int lane)
      : row(lane / 4 * 2), column{lane % 4 * 2, lane % 4 * 2 + 8} {}
};

template <typename T, int H>
struct TileSums {
  Complex<T> entry[H][2][4];
};

// Adds a(l, rows) conj(a(l, columns)) over `snapshots` rows of two arrays of estimates, whose
// columns start at the tiles' first row and first column.
template <typename T, int H>
RISKERNELS_DEVICE void accumulate_tiles(const TileLane& at, const Complex<T>* rows,
                                        const Complex<T>* columns, int pitch, int snapshots,
                                        TileSums<T, H>& sums) {
  const Complex<T>* x = rows + at.row;
  const Complex<T>* y = columns + at.column[0];
  RISKERNELS_UNROLL_BY(1)
  for (int l = 0; l < snapshots; ++l, x += pitch, y += pitch) {
    const ComplexPair<T> low = load_pair(y), high = load_pair(y + kTile / 2);
    const Complex<T> column[4] = {low.first, low.second, high.first, high.second};
    RISKERNELS_UNROLL
    for (int h = 0; h < H; ++h) {
      const ComplexPair<T> row = load_pair(x + h * kTile);
      RISKERNELS_UNROLL
      for (int c = 0; c < 4; ++c) {
        add_product_conj(sums.entry[h][0][c], row.first, column[c]);
        add_product_conj(sums.entry[h][1][c], row.second, column[c]);
      }
    }
  }
}

// Writes the tile whose first row and column are i0 <= j0 into R, n x n.
template <typename T>
RISKERNELS_DEVICE void store_tile(const TileLane& at, Complex<T>* out, int64_t n, int64_t i0,
                                  int64_t j0, const Complex<T> (&entry)[2][4]) {
  // Inside a tile, 32-bit offsets do.
  const int pitch = static_cast<int>(n);
  Complex<T>* const direct = out + i0 * n + j0 + at.row * pitch + at.column[0];
  Complex<T>* const mirror = out + j0 * n + i0 + at.column[0] * pitch + at.row;
  // A tile inside R whose rows all start on 16 bytes.
  if (i0 != j0 && j0 + kTile <= n && (sizeof(T) == 8 || n % 2 == 0)) {
    RISKERNELS_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      const int right = pair * kTile / 2;
      RISKERNELS_UNROLL
      for (int r = 0; r < 2; ++r)
        store_pair(direct + r * pitch + right, entry[r][2 * pair], entry[r][2 * pair + 1]);
      RISKERNELS_UNROLL
      for (int c = 0; c < 2; ++c)
        store_pair(mirror + (right + c) * pitch, conj(entry[0][2 * pair + c]),
                   conj(entry[1][2 * pair + c]));
    }
    return;
  }
  // Multiply-adds round (i, j) and (j, i) differently: the half above the diagonal counts.
  RISKERNELS_UNROLL
  for (int r = 0; r < 2; ++r) {
    RISKERNELS_UNROLL
    for (int c = 0; c < 4; ++c) {
      const int right = c / 2 * kTile / 2 + c % 2;
      const int64_t i = i0 + at.row + r, j = j0 + at.column[0] + right;
      if (i > j || j >= n) continue;
      Complex<T> value = entry[r][c];
      if (i == j) value.im = T(0);
      direct[r * pitch + right] = value;
      if (i < j) mirror[right * pitch + r] = conj(value);
    }
  }
}

// Stacks of tiles left of column block j: ceil((c + 1) / 2) for each block c < j.
__host__ __device__ constexpr int stacks_before(int j) { return (j + 1) * (j + 1) / 4; }

// All of R = sum_l a_l a_l^H from a(l, 0..pitch-1), zero past the last element; the warps of
// `parts` blocks share the work, this block being number `part`.
template <typename T>
RISKERNELS_DEVICE void outer_products(const Place& at, Rows<T> a, int snapshots, int n, int part,
                                      int parts, Complex<T>* out) {
  const TileLane lane(at.lane());
  const int blocks = (n + kTile - 1) / kTile, stacks = stacks_before(blocks);
  int j = 0;
  for (int stack = part * kWarps + at.warp(); stack < stacks; stack += parts * kWarps) {
    while (stacks_before(j + 1) <= stack) ++j;
    const int i = 2 * (stack - stacks_before(j));
    const Complex<T>* const rows = a.data + i * kTile;
    const Complex<T>* const columns = a.data + j * kTile;
    if (i < j) {
      TileSums<T, 2> sums{};
      accumulate_tiles(lane, rows, columns, a.pitch, snapshots, sums);
      RISKERNELS_UNROLL
      for (int h = 0; h < 2; ++h)
        store_tile(lane, out, n, (i + h) * kTile, j * kTile, sums.entry[h]);
    } else {
      TileSums<T, 1> sums{};
      accumulate_tiles(lane, rows, columns, a.pitch, snapshots, sums);
      store_tile(lane, out, n, i * kTile, j * kTile, sums.entry[0]);
    }
  }
}

}  // namespace riskernels::cuda
