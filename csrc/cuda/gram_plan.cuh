// SPDX-License-Identifier: Apache-2.0
// How the Gram matrices of joint_gram.cuh are dealt to blocks, and what one block sums.
#pragma once

#include "factor_rows.cuh"
#include "launch.cuh"

namespace riskernels::cuda {

constexpr int kGramTile = 4;
constexpr int kGramGroups = 32;   // that share the rows, at most
constexpr int kGramColumns = 88;  // whose tiles of the upper half are no more than kThreads
constexpr int64_t kGramArea = int64_t{kThreads} * kGramTile * kGramTile * 16;  // bytes, at most
// Multiply-adds of a block, at least, where rows are split, and those of a scene. A second launch
// costs as much as half a million.
constexpr int64_t kGramPart = int64_t{1} << 17, kGramSplit = int64_t{1} << 19;

// How the Gram matrices of a call are dealt to blocks.
struct GramPlan {
  int columns;
  int window, windows;  // columns of a window, and how many there are
  int64_t parts, part_rows;
  int64_t area;  // bytes of shared memory that a block stages rows in

  bool one_block() const { return windows == 1 && parts == 1; }
  unsigned pairs() const { return static_cast<unsigned>(windows * (windows + 1) / 2); }
};

// What one block sums: entries of the columns of window i with those of window j, i <= j.
struct GramBlock {
  int first_i, width_i, first_j, width_j;
  int classes_i, classes_j, tiles, groups;
  int staged, chunk;  // complex numbers between staged rows, and rows staged at once
  bool same;          // windows: tiles of the upper half alone

  __host__ __device__ GramBlock(const GramPlan& plan, int pair) {
    int j = 0;
    while (pair > j) pair -= ++j;
    first_i = pair * plan.window;
    first_j = j * plan.window;
    width_i = width_of(plan, first_i);
    width_j = width_of(plan, first_j);
    same = pair == j;
    classes_i = (width_i + kGramTile - 1) / kGramTile;
    classes_j = (width_j + kGramTile - 1) / kGramTile;
    tiles = same ? classes_j * (classes_j + 1) / 2 : classes_i * classes_j;
    staged = staged_stride(same ? width_j : width_i + width_j);
    const int most = static_cast<int>(plan.area / (kGramTile * kGramTile * 16)) / tiles;
    groups = kThreads / tiles < kGramGroups ? kThreads / tiles : kGramGroups;
    groups = groups < most ? groups : most;
    chunk = static_cast<int>(plan.area / (16 * staged));
    chunk = chunk < plan.part_rows ? chunk : static_cast<int>(plan.part_rows);
  }

 private:
  static __host__ __device__ int width_of(const GramPlan& plan, int first) {
    const int rest = plan.columns - first;
    return rest < plan.window ? rest : plan.window;
  }
};

// `occupied`: bytes of shared memory that the one-block kernel takes beside the area.
inline GramPlan gram_plan(const Target& target, int64_t scenes, int64_t elements, int64_t columns,
                          int64_t occupied) {
  GramPlan plan{};
  plan.columns = static_cast<int>(columns);
  const auto within = [&](int64_t limit) {
    return limit < kGramArea ? limit / 16 * 16 : kGramArea;
  };
  constexpr int64_t kTileBytes = kGramTile * kGramTile * 16;
  const int64_t classes = (columns + kGramTile - 1) / kGramTile;
  const int64_t beside = within(target.shared_limit - occupied);
  if (columns <= kGramColumns && classes * (classes + 1) / 2 * kTileBytes <= beside) {
    plan.area = beside;
    plan.window = plan.columns;
  } else {
    plan.area = within(target.shared_limit - kGuard);
    int side = 16;
    while (side > 1 && side * side * kTileBytes > plan.area) --side;
    plan.window = kGramTile * side;
  }
  plan.windows = (plan.columns + plan.window - 1) / plan.window;
  const int64_t work = 2 * elements * columns * columns;
  int64_t parts = 2 * target.multiprocessors / (scenes * plan.pairs());
  if (parts > work / kGramPart) parts = work / kGramPart;
  if (parts < 1 || (plan.windows == 1 && work < kGramSplit)) parts = 1;
  plan.part_rows = (elements + parts - 1) / parts;
  plan.parts = (elements + plan.part_rows - 1) / plan.part_rows;
  // No more than the largest chunk or the tiles of all groups need.
  int64_t needed = 0;
  for (int pair = 0; pair < (plan.windows > 1 ? 2 : 1); ++pair) {
    const GramBlock block(plan, pair);
    const int64_t rows = int64_t{block.chunk} * block.staged * 16;
    const int64_t sums = int64_t{block.groups} * block.tiles * kTileBytes;
    needed = rows > needed ? rows : needed;
    needed = sums > needed ? sums : needed;
  }
  plan.area = needed;
  return plan;
}

}  // namespace riskernels::cuda
