// SPDX-License-Identifier: Apache-2.0
// Which tile of steering_power, and how tiles are dealt to blocks: by sizes and device alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <tuple>

#include "launch.cuh"
#include "steering_tiles.cuh"

namespace riskernels::cuda {

// Tiles that are compiled, (P, C) of a thread. One point for a handful of points, several columns
// so that tiles are full for every number of them.
template <typename T>
struct SteeringShapes;
template <>
struct SteeringShapes<float> {
  using All =
      std::tuple<SteeringShape<float, 4, 8>, SteeringShape<float, 4, 6>, SteeringShape<float, 4, 4>,
                 SteeringShape<float, 4, 3>, SteeringShape<float, 4, 2>, SteeringShape<float, 4, 1>,
                 SteeringShape<float, 1, 8>, SteeringShape<float, 1, 4>,
                 SteeringShape<float, 1, 1>>;
};
template <>
struct SteeringShapes<double> {
  using All = std::tuple<SteeringShape<double, 4, 4>, SteeringShape<double, 4, 2>,
                         SteeringShape<double, 4, 1>, SteeringShape<double, 1, 4>,
                         SteeringShape<double, 1, 1>>;
};

// Largest workspace of the backward where parts of the points are summed apart, and parts that are
// allowed whatever they take.
constexpr int64_t kSteeringWorkspace = int64_t{128} << 20, kSteeringParts = 16;

// Instructions of a thread for one row of a tile: its share of the steering vectors, the products
// and their loads. Only ratios count.
template <typename Shape>
constexpr double row_cost() {
  constexpr double kEntry = 45.0;
  return kEntry * Shape::kPoints / kSteeringThreads + 4.0 * Shape::kOwnPoints * Shape::kOwnColumns +
         Shape::kOwnPoints + Shape::kOwnColumns;
}

template <typename T>
bool shared_points(const SteeringProblem<T>& p) {
  return p.shared || p.scenes == 1;
}

// Tiles of this shape.
template <typename Shape, typename T>
SteeringPlan tiled(const SteeringProblem<T>& p) {
  SteeringPlan plan{};
  const int64_t k = p.factor.columns;
  plan.shared = shared_points(p);
  plan.point_tiles = (p.points + Shape::kPoints - 1) / Shape::kPoints;
  plan.windows = static_cast<int>((k + Shape::kColumns - 1) / Shape::kColumns);
  plan.width = static_cast<int>((k + plan.windows - 1) / plan.windows);
  const int64_t scenes = plan.shared && plan.windows == 1 ? Shape::kColumns / k : 1;
  plan.scenes = static_cast<int>(std::min(scenes, p.scenes));
  plan.tiles = (p.scenes + plan.scenes - 1) / plan.scenes * plan.windows;
  return plan;
}

template <typename Shape, typename T>
SteeringBytes forward_bytes(const SteeringProblem<T>& p, const SteeringPlan& plan) {
  const int64_t entry = sizeof(Complex<T>);
  const int64_t rows = plan.kept ? round_up(p.elements, kProjectRows) : int64_t{2} * kProjectRows;
  const int64_t staged = 2 * kProjectRows * Shape::kColumns * entry;
  const int64_t squares =
      plan.scenes == 1 ? 0 : Shape::kPoints * (Shape::kColumns + 1) * int64_t{sizeof(T)};
  return {table_rows(p.elements) * int64_t{sizeof(Quad<T>)}, rows * Shape::kStride * entry,
          std::max(staged, squares)};
}

template <typename Shape, typename T>
SteeringBytes backward_bytes(const SteeringProblem<T>& p) {
  const int64_t entry = sizeof(Complex<T>);
  constexpr int64_t kRows = std::max(2 * kProjectRows, kSpreadRows);
  constexpr int64_t kColumnRows = std::max(2 * kProjectRows, Shape::kPoints);
  return {table_rows(p.elements) * int64_t{sizeof(Quad<T>)}, kRows * Shape::kStride * entry,
          kColumnRows * Shape::kColumns * entry};
}

template <typename Shape, typename T>
SteeringPlan forward_plan(const Target& target, const SteeringProblem<T>& p) {
  SteeringPlan plan = tiled<Shape>(p);
  // A block takes several column tiles where there are blocks enough, and always all windows of a
  // scene, whose squares it adds up.
  plan.group = plan.windows;
  if (plan.shared) {
    const int64_t enough = int64_t{8} * target.multiprocessors;
    const int64_t several = plan.point_tiles * plan.tiles / (enough * plan.windows);
    plan.group *= std::clamp<int64_t>(several, 1, plan.tiles / plan.windows);
  }
  // Two blocks must fit on a multiprocessor, so that one computes while the other waits.
  plan.kept = plan.group > 1;
  if (2 * forward_bytes<Shape>(p, plan).memory().bytes > target.shared_limit) plan.kept = false;
  return plan;
}

template <typename Shape, typename T>
SteeringPlan backward_plan(const Target& target, const SteeringProblem<T>& p) {
  SteeringPlan plan = tiled<Shape>(p);
  const int64_t output = p.scenes * p.elements * p.factor.columns * int64_t{sizeof(Complex<T>)};
  const int64_t wanted = int64_t{4} * target.multiprocessors / plan.tiles;
  const int64_t parts = std::min(wanted, std::max(kSteeringParts, kSteeringWorkspace / output));
  plan.parts = std::clamp<int64_t>(parts, 1, std::max<int64_t>(plan.point_tiles, 1));
  plan.part_tiles = (plan.point_tiles + plan.parts - 1) / plan.parts;
  if (plan.part_tiles > 0) plan.parts = (plan.point_tiles + plan.part_tiles - 1) / plan.part_tiles;
  return plan;
}

// f(shape) with the tile that takes least, of those that fit shared memory.
template <typename T, typename F>
void with_shape(const Target& target, const SteeringProblem<T>& p, bool backward, const F& f) {
  using All = typename SteeringShapes<T>::All;
  std::size_t best = std::tuple_size_v<All> - 1, index = 0;
  double least = -1;
  const auto consider = [&]<typename Shape>(Shape) {
    SteeringPlan plan = tiled<Shape>(p);
    const auto bytes = backward ? backward_bytes<Shape>(p) : forward_bytes<Shape>(p, plan);
    // One after the other in a block: the windows of a scene, forward.
    const int windows = backward ? 1 : plan.windows;
    const auto blocks = static_cast<double>(plan.point_tiles * (plan.tiles / windows));
    const double cost =
        row_cost<Shape>() * windows * std::max(blocks, 2.0 * target.multiprocessors);
    if (bytes.memory().bytes <= target.shared_limit && (least < 0 || cost < least)) {
      least = cost;
      best = index;
    }
    ++index;
  };
  std::apply([&](auto... shape) { (consider(shape), ...); }, All{});
  index = 0;
  const auto take = [&](auto shape) {
    if (index++ == best) f(shape);
  };
  std::apply([&](auto... shape) { (take(shape), ...); }, All{});
}

}  // namespace riskernels::cuda
