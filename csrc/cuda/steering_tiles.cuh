// SPDX-License-Identifier: Apache-2.0
// Tiles of steering_power: points x columns of one block, of which a thread has P x C in registers.
//
// Eight lanes run along the columns and sixteen groups along the points. A column is a pair (scene,
// column of its factor): where all scenes share the points, a tile holds several scenes, and each
// entry of a steering vector serves all of them.
#pragma once

#include "steering_vectors.cuh"

namespace riskernels::cuda {

constexpr int kColumnLanes = 8, kPointGroups = kSteeringThreads / kColumnLanes;
constexpr int kProjectRows = 16;                           // elements of a chunk of a^H X
constexpr int kRowsOfThread = 3;                           // of the gradient
constexpr int kSpreadRows = kRowsOfThread * kPointGroups;  // elements of a chunk of a W

template <typename T, int P, int C>
struct SteeringShape {
  using Real = T;
  static constexpr int kOwnPoints = P, kOwnColumns = C;
  static constexpr int kPoints = P * kPointGroups, kColumns = C * kColumnLanes;
  // Complex numbers between rows of the steering tile: rows on 16 bytes, four neighbours in banks
  // of their own.
  static constexpr int kStride = kPoints + 16 / static_cast<int>(sizeof(Complex<T>));
};

// Blocks on a multiprocessor that registers must leave room for: as many as shared memory has for.
template <typename Shape>
constexpr int kSteeringBlocks = Shape::kOwnColumns < (sizeof(typename Shape::Real) == 8 ? 4 : 6) ? 4
                                : sizeof(typename Shape::Real) == 8 ? 2
                                                                    : 3;

// How column tiles and points are dealt to blocks.
struct SteeringPlan {
  int64_t point_tiles;  // of one scene's points
  int64_t tiles;        // column tiles of all scenes
  int windows, width;   // column tiles of one scene, and columns of each, where one is not enough
  int scenes;           // of a column tile; 1 where there are windows or scenes have own points
  bool shared;          // points are those of all scenes
  int64_t group;        // forward: column tiles of a block
  bool kept;            // forward: the block keeps all rows of its steering tile
  int64_t part_tiles, parts;  // backward: point tiles of a block, blocks that share a column tile
};

// Columns of a tile: columns first..first+width-1 of `scene` and the scenes after it.
struct ColumnTile {
  int64_t scene;
  int first, width, columns;

  template <typename T>
  RISKERNELS_DEVICE ColumnTile(const SteeringProblem<T>& p, const SteeringPlan& plan, int64_t tile)
      : scene(tile / plan.windows * plan.scenes),
        first(static_cast<int>(tile % plan.windows) * plan.width),
        width(piece(p.factor.columns - first, plan.width)),
        columns(width * piece(p.scenes - scene, plan.scenes)) {}

  struct Place {
    int64_t scene;
    int column;
  };
  RISKERNELS_DEVICE Place place(int column) const {
    const int of = column / width;
    return {scene + of, first + column - of * width};
  }
};

// Item i of a thread, of Count in Lanes lanes: pairs of neighbours where 16 bytes hold two.
template <typename T, int Count>
constexpr bool kInPairs = Count % 2 == 0 && sizeof(Complex<T>) == 8;
template <typename T, int Count, int Lanes>
RISKERNELS_DEVICE int owned(int lane, int i) {
  return kInPairs<T, Count> ? 2 * (lane + Lanes * (i / 2)) + i % 2 : lane + Lanes * i;
}

// Those items of a row in shared memory.
template <int Lanes, typename T, int Count>
RISKERNELS_DEVICE void load_owned(const Complex<T>* row, int lane, Complex<T> (&to)[Count]) {
  if constexpr (kInPairs<T, Count>) {
    RISKERNELS_UNROLL
    for (int i = 0; i < Count; i += 2) {
      const ComplexPair<T> pair = load_pair(row + owned<T, Count, Lanes>(lane, i));
      to[i] = pair.first;
      to[i + 1] = pair.second;
    }
  } else {
    RISKERNELS_UNROLL
    for (int i = 0; i < Count; ++i) to[i] = row[owned<T, Count, Lanes>(lane, i)];
  }
}

// One column of X as a thread copies it to shared memory: which, and which of the rows.
template <typename Shape>
class ColumnCopy {
  using T = typename Shape::Real;
  static constexpr int kStep = kSteeringThreads / Shape::kColumns;

 public:
  RISKERNELS_DEVICE ColumnCopy(const SteeringProblem<T>& p, const ColumnTile& tile)
      : from_(complex_at(p.factor.data, 0)),
        column_(static_cast<int>(threadIdx.x) % Shape::kColumns),
        row0_(static_cast<int>(threadIdx.x) / Shape::kColumns),
        inside_(column_ < tile.columns) {
    if (!inside_) return;
    const ColumnTile::Place at = tile.place(column_);
    from_ += at.scene * p.factor.stride[0] + at.column * p.factor.stride[2];
  }

  // Rows first.. of a chunk to `to` [kProjectRows, kColumns], zero beyond the last element and the
  // last column. Complete after copies_done() and a barrier.
  RISKERNELS_DEVICE void start(const SteeringProblem<T>& p, int64_t first, Complex<T>* to) const {
    if (row0_ >= kStep) return;
    const int left = inside_ ? piece(p.elements - first, kProjectRows) : 0;
    const Complex<T>* next = from_ + (inside_ ? (first + row0_) * p.factor.stride[1] : 0);
    RISKERNELS_UNROLL
    for (int row = row0_; row < kProjectRows; row += kStep) {
      copy_async(to + row * Shape::kColumns + column_, row < left ? next : from_, row < left);
      next += kStep * p.factor.stride[1];
    }
  }

 private:
  const Complex<T>* from_;
  int column_, row0_;
  bool inside_;
};

// z += a^H x over a chunk of elements.
template <typename Shape, typename T>
RISKERNELS_DEVICE void project_chunk(const Complex<T>* steering, const Complex<T>* columns,
                                     Complex<T> (&z)[Shape::kOwnPoints][Shape::kOwnColumns]) {
  const int lane = static_cast<int>(threadIdx.x) % kColumnLanes;
  const int group = static_cast<int>(threadIdx.x) / kColumnLanes;
  constexpr int kAtOnce = Shape::kOwnColumns < 6 ? 4 : 2;
  RISKERNELS_UNROLL_BY(kAtOnce)
  for (int row = 0; row < kProjectRows; ++row) {
    Complex<T> a[Shape::kOwnPoints], x[Shape::kOwnColumns];
    load_owned<kPointGroups>(steering + row * Shape::kStride, group, a);
    load_owned<kColumnLanes>(columns + row * Shape::kColumns, lane, x);
    RISKERNELS_UNROLL
    for (int i = 0; i < Shape::kOwnPoints; ++i) {
      RISKERNELS_UNROLL
      for (int j = 0; j < Shape::kOwnColumns; ++j) add_product_conj(z[i][j], x[j], a[i]);
    }
  }
}

// d += a w over the points of a tile.
template <typename Shape, typename T>
RISKERNELS_DEVICE void spread_tile(const Complex<T>* steering, const Complex<T>* weights,
                                   Complex<T> (&d)[kRowsOfThread][Shape::kOwnColumns]) {
  const int lane = static_cast<int>(threadIdx.x) % kColumnLanes;
  const int group = static_cast<int>(threadIdx.x) / kColumnLanes;
  constexpr int kAtOnce = sizeof(Complex<T>) == 8 ? 2 : 1;
  RISKERNELS_UNROLL_BY(2)
  for (int point = 0; point < Shape::kPoints; point += kAtOnce) {
    Complex<T> a[kRowsOfThread][kAtOnce];
    RISKERNELS_UNROLL
    for (int i = 0; i < kRowsOfThread; ++i) {
      const Complex<T>* const from = steering + (group + i * kPointGroups) * Shape::kStride + point;
      if constexpr (kAtOnce == 2) {
        const ComplexPair<T> pair = load_pair(from);
        a[i][0] = pair.first;
        a[i][1] = pair.second;
      } else {
        a[i][0] = *from;
      }
    }
    RISKERNELS_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      Complex<T> w[Shape::kOwnColumns];
      load_owned<kColumnLanes>(weights + (point + u) * Shape::kColumns, lane, w);
      RISKERNELS_UNROLL
      for (int i = 0; i < kRowsOfThread; ++i) {
        RISKERNELS_UNROLL
        for (int j = 0; j < Shape::kOwnColumns; ++j) add_product(d[i][j], a[i][u], w[j]);
      }
    }
  }
}

// Where a block's arrays lie in shared memory.
struct SteeringMemory {
  int table = 0;     // Quad<T> [up to kTableRows]
  int steering = 0;  // Complex<T> [rows, kStride]
  int columns = 0;   // Complex<T> [2, kProjectRows, kColumns], and what takes its place
  int64_t bytes;
  SteeringMemory(int64_t table_bytes, int64_t steering_bytes, int64_t column_bytes,
                 Carver carver = Carver()) {
    table = carver.take<char>(table_bytes);
    steering = carver.take<char>(steering_bytes);
    columns = carver.take<char>(column_bytes);
    bytes = carver.used();
  }
};

struct SteeringBytes {
  int64_t table, steering, columns;
  SteeringMemory memory() const { return {table, steering, columns}; }
};

// On the block executor: makes an access between two arrays an error.
RISKERNELS_DEVICE void guard_steering_memory(const SteeringBytes& of) {
#if !defined(__CUDACC__)
  SteeringMemory(of.table, of.steering, of.columns, Carver(shared_bytes()));
#else
  (void)of;
#endif
}

// z = a^H X for one point tile and one column tile. With `make` the steering tile is made; without,
// all its rows are there. `turn` alternates between two buffers, so that one barrier a chunk is
// enough. Ends without a barrier.
template <typename Shape, typename Rows, typename T>
RISKERNELS_DEVICE void project(const SteeringProblem<T>& p, const ColumnTile& tile, Rows& rows,
                               bool kept, bool make, int& turn, Complex<T>* steering,
                               Complex<T>* columns,
                               Complex<T> (&z)[Shape::kOwnPoints][Shape::kOwnColumns]) {
  const ColumnCopy<Shape> copy(p, tile);
  for (int64_t first = 0; first < p.elements; first += kProjectRows) {
    Complex<T>* const a = steering + (kept ? first : turn * kProjectRows) * Shape::kStride;
    Complex<T>* const x = columns + turn * kProjectRows * Shape::kColumns;
    copy.start(p, first, x);
    if (make) rows.template make<kProjectRows>(first, a);
    copies_done();
    __syncthreads();
    project_chunk<Shape>(a, x, z);
    turn ^= 1;
  }
}

}  // namespace riskernels::cuda
