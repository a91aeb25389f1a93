// SPDX-License-Identifier: Apache-2.0
// Gram matrix of the columns of [X, Z] in double: entry (i, j) = column_i^H column_j, summed over
// the elements in use.
//
// A block stages chunks of rows in shared memory, widened to double once. A thread sums a tile of
// 4 x 4 entries in registers; tiles of the upper half are dealt to the threads, and where there are
// fewer tiles than threads, groups of threads take different rows and are added up in a fixed
// order. The columns of a tile are those of two classes modulo the number of classes, so that
// neighbouring lanes read neighbouring columns.
//
// Up to kGramColumns columns a scene is one window of columns and may be one block. Beyond, pairs
// of windows are blocks of their own; and where scenes are few, so are parts of the rows. These
// write partial sums, which a second kernel adds up.
#pragma once

#include <type_traits>

#include "gram_plan.cuh"
#include "joint_rows.cuh"

namespace riskernels::cuda {

// Sums rows begin..end-1. chunk(first, rows): behind the barrier that completes a chunk of staged
// rows. emit(i, j, value), i <= j: once for every entry, by some thread; the diagonal is real.
// Reached by all threads; ends behind a barrier.
template <typename T, typename Chunk, typename Emit>
RISKERNELS_DEVICE void joint_gram(const JointRows<T>& rows, int64_t begin, int64_t end,
                                  const GramBlock& block, Complex<double>* area, const Chunk& chunk,
                                  const Emit& emit) {
  const Place at;
  const int tile = at.thread % block.tiles, group = at.thread / block.tiles;
  const auto row_class = [&](int of) {
    return block.same ? TrianglePosition(of).column : of % block.classes_i;
  };
  const auto column_class = [&](int of) {
    return block.same ? TrianglePosition(of).row : of / block.classes_i;
  };
  int at_i[kGramTile], at_j[kGramTile];
  RISKERNELS_UNROLL
  for (int a = 0; a < kGramTile; ++a) {
    // Beyond the window a column is summed again, and left out in the end.
    at_i[a] = minimum(row_class(tile) + a * block.classes_i, block.width_i - 1);
    at_j[a] = minimum(column_class(tile) + a * block.classes_j, block.width_j - 1) +
              (block.same ? 0 : block.width_i);
  }
  const auto stage = [&]<int Batch>(std::integral_constant<int, Batch>, int64_t first) {
    const int count = piece(end - first, block.chunk);
    RISKERNELS_UNROLL_BY(1)
    for (int side = 0; side < (block.same ? 1 : 2); ++side)
      rows.template stage<Batch>(side == 0 ? block.first_i : block.first_j,
                                 side == 0 ? block.width_i : block.width_j, first, count,
                                 side == 0 ? area : area + block.width_i, block.staged);
  };
  stage(std::integral_constant<int, kStageBatch<T>>{}, begin);
  Complex<double> sum[kGramTile][kGramTile] = {};
  for (int64_t first = begin; first < end; first += block.chunk) {
    const int count = piece(end - first, block.chunk);
    __syncthreads();
    chunk(first, count);
    if (group < block.groups) {
      const Complex<double>* row = area + group * block.staged;
      for (int n = group; n < count; n += block.groups, row += block.groups * block.staged) {
        Complex<double> left[kGramTile], right[kGramTile];
        RISKERNELS_UNROLL
        for (int a = 0; a < kGramTile; ++a) {
          left[a] = row[at_i[a]];
          right[a] = row[at_j[a]];
        }
        RISKERNELS_UNROLL
        for (int a = 0; a < kGramTile; ++a) {
          RISKERNELS_UNROLL
          for (int b = 0; b < kGramTile; ++b) add_product_conj(sum[a][b], right[b], left[a]);
        }
      }
    }
    __syncthreads();
    if (first + block.chunk < end)
      stage(std::integral_constant<int, kStageBatchBeside>{}, first + block.chunk);
  }
  // The staged rows make room for the sums of the groups: [tile entry, group, tile].
  if (group < block.groups) {
    RISKERNELS_UNROLL
    for (int a = 0; a < kGramTile; ++a) {
      RISKERNELS_UNROLL
      for (int b = 0; b < kGramTile; ++b)
        area[((a * kGramTile + b) * block.groups + group) * block.tiles + tile] = sum[a][b];
    }
  }
  __syncthreads();
  for (int item = at.thread; item < block.tiles * kGramTile * kGramTile; item += kThreads) {
    const int entry = item / block.tiles, of = item % block.tiles;
    const int a = entry / kGramTile, b = entry % kGramTile;
    const int class_i = row_class(of), class_j = column_class(of);
    const int i = class_i + a * block.classes_i, j = class_j + b * block.classes_j;
    // A tile on the diagonal has every pair of columns twice.
    if (i >= block.width_i || j >= block.width_j || (block.same && class_i == class_j && a > b))
      continue;
    Complex<double> value{};
    const Complex<double>* next = area + entry * block.groups * block.tiles + of;
    for (int g = 0; g < block.groups; ++g, next += block.tiles) value = value + *next;
    if (block.same && i == j) value.im = 0;
    if (block.same && i > j)
      emit(block.first_j + j, block.first_i + i, conj(value));
    else
      emit(block.first_i + i, block.first_j + j, value);
  }
  __syncthreads();
}

// Entry (i, j), i <= j, and its mirror image.
RISKERNELS_DEVICE void write_gram(Complex<double>* gram /* [columns, columns] */, int columns,
                                  int i, int j, Complex<double> value) {
  gram[static_cast<int64_t>(i) * columns + j] = value;
  if (i != j) gram[static_cast<int64_t>(j) * columns + i] = conj(value);
}

// grid: scenes x parts x pairs of windows.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    gram_parts_kernel(const __grid_constant__ JointProblem<T> p,
                      const __grid_constant__ GramPlan plan,
                      double* partial /* [B, parts, columns, columns], upper half */) {
  auto* const area = shared_array<Complex<double>>(0);
#if !defined(__CUDACC__)
  guard(shared_bytes() + plan.area, kGuard);
#endif
  const int64_t begin = blockIdx.y * plan.part_rows;
  const int64_t end = begin + plan.part_rows < p.elements ? begin + plan.part_rows : p.elements;
  const int64_t entries = static_cast<int64_t>(plan.columns) * plan.columns;
  Complex<double>* const sums =
      complex_at(partial, (static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * entries);
  joint_gram(
      JointRows<T>(p, blockIdx.x), begin, end, GramBlock(plan, static_cast<int>(blockIdx.z)), area,
      [](int64_t, int) {},
      [&](int i, int j, Complex<double> value) {
        sums[static_cast<int64_t>(i) * plan.columns + j] = value;
      });
}

// Adds up the parts of a scene: emit(i, j, value), i <= j, as joint_gram's.
template <typename Emit>
RISKERNELS_DEVICE void sum_gram_parts(const GramPlan& plan, const double* partial, int64_t scene,
                                      const Emit& emit) {
  const int64_t entries = static_cast<int64_t>(plan.columns) * plan.columns;
  const Complex<double>* const first = complex_at(partial, scene * plan.parts * entries);
  for_block_items(plan.columns * plan.columns, [&](int item) {
    const int i = item / plan.columns, j = item % plan.columns;
    if (i > j) return;
    Complex<double> value{};
    for (int64_t part = 0; part < plan.parts; ++part) value = value + first[part * entries + item];
    emit(i, j, value);
  });
}

// The partial sums of a plan with more than one block per scene.
template <typename T>
double* gram_parts(const Target& target, const JointProblem<T>& p, const GramPlan& plan) {
  const int64_t entries = int64_t{plan.columns} * plan.columns;
  auto* const partial =
      static_cast<double*>(target.workspace(p.scenes * plan.parts * entries * 16));
  launch(target, gram_parts_kernel<T>,
         dim3(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts), plan.pairs()),
         kThreads, plan.area + kGuard, p, plan, partial);
  return partial;
}

}  // namespace riskernels::cuda
