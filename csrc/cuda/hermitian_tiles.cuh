// SPDX-License-Identifier: Apache-2.0
// Hermitian parts of dense matrices, tile by tile. A block takes tile (I, J) together with (J, I):
// each is read once along its rows, and what one owes to the conjugate transpose of the other goes
// through shared memory.
#pragma once

#include "entries.cuh"
#include "lanes.cuh"

namespace riskernels::cuda {

constexpr int kEdge = 32;              // rows and columns of a tile
constexpr int kEdgePitch = kEdge + 1;  // columns of a tile lie in different banks

// A matrix of which only the Hermitian part counts. Where columns are contiguous and rows are not,
// the transpose is read in its place: its Hermitian part is the conjugate.
template <typename T>
struct HermitianPart {
  const T* data;
  int64_t stride[3];
  T sign;  // of the imaginary parts
};

template <typename T>
HermitianPart<T> hermitian_part(const T* data, const int64_t* stride /* [3] */) {
  const bool transposed = stride[1] == 1 && stride[2] != 1;
  return {data,
          {stride[0], stride[transposed ? 2 : 1], stride[transposed ? 1 : 2]},
          transposed ? T(-1) : T(1)};
}

// What a thread holds of a tile: `Width` neighbours in every kRows-th row.
template <int Width>
struct TilePlace {
  static constexpr int kRows = kThreads * Width / kEdge;
  static constexpr int kPasses = kEdge / kRows;
  int row, column;

  RISKERNELS_DEVICE TilePlace()
      : row(static_cast<int>(threadIdx.x) * Width / kEdge),
        column(static_cast<int>(threadIdx.x) * Width % kEdge) {}
};

template <typename T, int Width>
struct TilePart {
  Entries<T, Width> pass[TilePlace<Width>::kPasses];
};

// The tile whose first entry is (i0, j0), zero outside of the matrix.
template <typename T, int Width>
RISKERNELS_DEVICE void load_tile(const TilePlace<Width>& at, const HermitianPart<T>& from, int n,
                                 int i0, int j0, TilePart<T, Width>& tile) {
  using Place = TilePlace<Width>;
  const int i = i0 + at.row, j = j0 + at.column;
  const Complex<T>* next =
      complex_at(from.data, blockIdx.x * from.stride[0] + i * from.stride[1] + j * from.stride[2]);
  RISKERNELS_UNROLL
  for (int u = 0; u < Place::kPasses; ++u) {
    tile.pass[u] = {};
    if (i + u * Place::kRows < n && j < n)
      tile.pass[u] = *reinterpret_cast<const Entries<T, Width>*>(next);
    next += Place::kRows * from.stride[1];
  }
}

// Tiles (I, J) and (J, I) with I <= J, number `pair` of them.
struct TilePair {
  int first[2];  // I and J in entries; tile `half` starts at (first[half], first[1 - half])
  int tiles;     // 1 on the diagonal, where both are the same

  RISKERNELS_DEVICE explicit TilePair(int pair) {
    const TrianglePosition at(pair);
    first[0] = at.column * kEdge;
    first[1] = at.row * kEdge;
    tiles = at.row == at.column ? 1 : 2;
  }
};

__host__ __device__ constexpr int tile_pairs(int64_t n) {
  const int tiles = static_cast<int>((n + kEdge - 1) / kEdge);
  return tiles * (tiles + 1) / 2;
}

template <typename T, int Width>
RISKERNELS_DEVICE void load_pair(const TilePlace<Width>& at, const HermitianPart<T>& from, int n,
                                 const TilePair& pair, TilePart<T, Width> (&tiles)[2]) {
  RISKERNELS_UNROLL
  for (int half = 0; half < 2; ++half)
    if (half < pair.tiles)
      load_tile(at, from, n, pair.first[half], pair.first[1 - half], tiles[half]);
}

// Both tiles of a block in shared memory.
template <typename T>
struct SharedTiles {
  Complex<T>* data;  // [2, kEdge, kEdgePitch]

  template <int Width>
  RISKERNELS_DEVICE void put(const TilePlace<Width>& at, const TilePair& pair,
                             const TilePart<T, Width> (&tiles)[2]) const {
    RISKERNELS_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (half >= pair.tiles) continue;
      Complex<T>* const to = data + (half * kEdge + at.row) * kEdgePitch + at.column;
      RISKERNELS_UNROLL
      for (int u = 0; u < TilePlace<Width>::kPasses; ++u) {
        RISKERNELS_UNROLL
        for (int w = 0; w < Width; ++w)
          to[u * TilePlace<Width>::kRows * kEdgePitch + w] = tiles[half].pass[u].at[w];
      }
    }
  }

  // Where the entry opposite to a thread's first one of tile `half` lies. That of pass u and
  // neighbour w is u * kRows + w * kEdgePitch further.
  template <int Width>
  RISKERNELS_DEVICE const Complex<T>* opposite(const TilePlace<Width>& at, const TilePair& pair,
                                               int half) const {
    const int other = pair.tiles == 1 ? 0 : 1 - half;
    return data + (other * kEdge + at.column) * kEdgePitch + at.row;
  }
};

// Runs f(half, u, w, opposite, i, j + w) -> value of every entry that this thread holds, and writes
// the values to the n x n matrix `out`.
template <typename T, int Width, typename F>
RISKERNELS_DEVICE void write_pair(const TilePlace<Width>& at, const TilePair& pair,
                                  const SharedTiles<T>& shared, int n, Complex<T>* out,
                                  const F& f) {
  using Place = TilePlace<Width>;
  RISKERNELS_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (half >= pair.tiles) continue;
    const Complex<T>* const opposite = shared.opposite(at, pair, half);
    const int i = pair.first[half] + at.row, j = pair.first[1 - half] + at.column;
    Complex<T>* const to = out + static_cast<int64_t>(i) * n + j;
    RISKERNELS_UNROLL
    for (int u = 0; u < Place::kPasses; ++u) {
      if (i + u * Place::kRows >= n || j >= n) continue;
      Entries<T, Width> entries;
      RISKERNELS_UNROLL
      for (int w = 0; w < Width; ++w)
        entries.at[w] = f(half, u, w, opposite[u * Place::kRows + w * kEdgePitch],
                          i + u * Place::kRows == j + w);
      *reinterpret_cast<Entries<T, Width>*>(to + static_cast<int64_t>(u) * Place::kRows * n) =
          entries;
    }
  }
}

}  // namespace riskernels::cuda
