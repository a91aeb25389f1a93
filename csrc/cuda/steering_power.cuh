// SPDX-License-Identifier: Apache-2.0
// steering_power on the device: one launch forward; backward one, and a second that adds up parts
// of the points where columns alone do not fill the device.
#pragma once

#include "steering_plan.cuh"

namespace riskernels::cuda {

template <typename Shape, typename T>
using RowsOf = SteeringRows<T, Shape::kPoints, Shape::kStride>;

// Squares of z [points, columns] to shared memory, and their sums over the columns of each scene.
// Begins behind what other threads still read there, and ends with a barrier.
template <typename Shape, typename T>
RISKERNELS_DEVICE void write_scene_powers(
    const SteeringProblem<T>& p, const ColumnTile& tile, int64_t first_point,
    const Complex<T> (&z)[Shape::kOwnPoints][Shape::kOwnColumns], T* squares, T* power) {
  constexpr int kStride = Shape::kColumns + 1;
  const int lane = static_cast<int>(threadIdx.x) % kColumnLanes;
  const int group = static_cast<int>(threadIdx.x) / kColumnLanes;
  __syncthreads();
  RISKERNELS_UNROLL
  for (int i = 0; i < Shape::kOwnPoints; ++i) {
    RISKERNELS_UNROLL
    for (int j = 0; j < Shape::kOwnColumns; ++j)
      squares[owned<T, Shape::kOwnPoints, kPointGroups>(group, i) * kStride +
              owned<T, Shape::kOwnColumns, kColumnLanes>(lane, j)] = norm(z[i][j]);
  }
  __syncthreads();
  const int scenes = tile.columns / tile.width,
            points = piece(p.points - first_point, Shape::kPoints);
  const int point = static_cast<int>(threadIdx.x) % Shape::kPoints;
  constexpr int kStep = kSteeringThreads / Shape::kPoints;
  for (int s = static_cast<int>(threadIdx.x) / Shape::kPoints; s < scenes; s += kStep) {
    if (point >= points) break;
    T sum{};
    for (int j = 0; j < tile.width; ++j) sum += squares[point * kStride + s * tile.width + j];
    power[(tile.scene + s) * p.points + first_point + point] = sum / static_cast<T>(p.elements);
  }
  __syncthreads();
}

// A block: one tile of points, and column tiles one after the other.
template <typename T, int P, int C>
__global__ void __launch_bounds__(kSteeringThreads, kSteeringBlocks<SteeringShape<T, P, C>>)
    steering_power_kernel(const __grid_constant__ SteeringProblem<T> p,
                          const __grid_constant__ SteeringPlan plan, SteeringBytes bytes,
                          SteeringMemory memory, T* power /* [B, G] */) {
  using Shape = SteeringShape<T, P, C>;
  guard_steering_memory(bytes);
  const int64_t group = blockIdx.x / plan.point_tiles;
  const int64_t first_point = (blockIdx.x - group * plan.point_tiles) * Shape::kPoints;
  const int64_t begin = group * plan.group;
  const int64_t end = begin + plan.group < plan.tiles ? begin + plan.group : plan.tiles;
  auto* const steering = shared_array<Complex<T>>(memory.steering);
  auto* const columns = shared_array<Complex<T>>(memory.columns);
  RowsOf<Shape, T> rows(p, shared_array<Quad<T>>(memory.table));
  rows.select(plan.shared ? 0 : begin / plan.windows, first_point);
  int turn = 0;
  T sum[Shape::kOwnPoints] = {};
  for (int64_t t = begin; t < end; ++t) {
    const ColumnTile tile(p, plan, t);
    Complex<T> z[Shape::kOwnPoints][Shape::kOwnColumns] = {};
    project<Shape>(p, tile, rows, plan.kept, !plan.kept || t == begin, turn, steering, columns, z);
    if (plan.scenes > 1) {
      write_scene_powers<Shape>(p, tile, first_point, z, shared_array<T>(memory.columns), power);
      continue;
    }
    const bool last = t % plan.windows == plan.windows - 1;
    RISKERNELS_UNROLL
    for (int i = 0; i < Shape::kOwnPoints; ++i) {
      RISKERNELS_UNROLL
      for (int j = 0; j < Shape::kOwnColumns; ++j) sum[i] += norm(z[i][j]);
      if (!last) continue;
      RISKERNELS_UNROLL
      for (int offset = kColumnLanes / 2; offset > 0; offset /= 2)
        sum[i] += __shfl_xor_sync(kFullWarp, sum[i], offset);
      const int lane = static_cast<int>(threadIdx.x) % kColumnLanes;
      const int of = static_cast<int>(threadIdx.x) / kColumnLanes;
      const int64_t point = first_point + owned<T, Shape::kOwnPoints, kPointGroups>(of, i);
      if (lane == 0 && point < p.points)
        power[tile.scene * p.points + point] = sum[i] / static_cast<T>(p.elements);
      sum[i] = T(0);
    }
  }
}

// dL/dP, strides in elements.
template <typename T>
struct PowerGradient {
  const T* data;
  int64_t stride[2];
};

// w = (2 / N) gbar z [points, columns] to shared memory, zero beyond the last point.
template <typename Shape, typename T>
RISKERNELS_DEVICE void write_weights(const SteeringProblem<T>& p, const ColumnTile& tile,
                                     const PowerGradient<T>& grad, int64_t first_point,
                                     const Complex<T> (&z)[Shape::kOwnPoints][Shape::kOwnColumns],
                                     Complex<T>* weights) {
  const int lane = static_cast<int>(threadIdx.x) % kColumnLanes;
  const int group = static_cast<int>(threadIdx.x) / kColumnLanes;
  const T scale = T(2) / static_cast<T>(p.elements);
  RISKERNELS_UNROLL
  for (int j = 0; j < Shape::kOwnColumns; ++j) {
    const int column = owned<T, Shape::kOwnColumns, kColumnLanes>(lane, j);
    const bool inside = column < tile.columns;
    const int64_t scene = inside ? tile.place(column).scene : 0;
    RISKERNELS_UNROLL
    for (int i = 0; i < Shape::kOwnPoints; ++i) {
      const int own = owned<T, Shape::kOwnPoints, kPointGroups>(group, i);
      Complex<T> w{};
      if (inside && first_point + own < p.points)
        w = z[i][j] *
            (scale * grad.data[scene * grad.stride[0] + (first_point + own) * grad.stride[1]]);
      weights[own * Shape::kColumns + column] = w;
    }
  }
}

// A block: one tile of columns, and tiles of points one after the other, whose share of the
// gradient it adds to its own part of the output. An entry of the part is touched by one thread.
template <typename T, int P, int C>
__global__ void __launch_bounds__(kSteeringThreads, kSteeringBlocks<SteeringShape<T, P, C>>)
    steering_gradient_kernel(const __grid_constant__ SteeringProblem<T> p,
                             const __grid_constant__ SteeringPlan plan, SteeringBytes bytes,
                             SteeringMemory memory, const __grid_constant__ PowerGradient<T> grad,
                             T* gradient /* [parts, B, N, k] */) {
  using Shape = SteeringShape<T, P, C>;
  guard_steering_memory(bytes);
  const int64_t t = blockIdx.x / plan.parts, part = blockIdx.x - t * plan.parts;
  const int64_t begin = part * plan.part_tiles;
  const int64_t end =
      begin + plan.part_tiles < plan.point_tiles ? begin + plan.part_tiles : plan.point_tiles;
  const ColumnTile tile(p, plan, t);
  const int64_t k = p.factor.columns;
  auto* const steering = shared_array<Complex<T>>(memory.steering);
  auto* const columns = shared_array<Complex<T>>(memory.columns);
  auto* const out = complex_at(gradient, part * p.scenes * p.elements * k);
  const int group = static_cast<int>(threadIdx.x) / kColumnLanes;
  int64_t offset[Shape::kOwnColumns];  // of entry (0, column); -1 beyond the last column
  RISKERNELS_UNROLL
  for (int j = 0; j < Shape::kOwnColumns; ++j) {
    const int lane = static_cast<int>(threadIdx.x) % kColumnLanes;
    const int column = owned<T, Shape::kOwnColumns, kColumnLanes>(lane, j);
    const ColumnTile::Place at = tile.place(column < tile.columns ? column : 0);
    offset[j] = column < tile.columns ? at.scene * p.elements * k + at.column : -1;
  }
  RowsOf<Shape, T> rows(p, shared_array<Quad<T>>(memory.table));
  int turn = 0;
  for (int64_t point_tile = begin; point_tile < end; ++point_tile) {
    const int64_t first_point = point_tile * Shape::kPoints;
    rows.select(plan.shared ? 0 : tile.scene, first_point);
    {
      Complex<T> z[Shape::kOwnPoints][Shape::kOwnColumns] = {};
      project<Shape>(p, tile, rows, false, true, turn, steering, columns, z);
      __syncthreads();
      write_weights<Shape>(p, tile, grad, first_point, z, columns);
    }
    for (int64_t first = 0; first < p.elements; first += kSpreadRows) {
      Complex<T> d[kRowsOfThread][Shape::kOwnColumns] = {};
      const auto entry = [&](int i, int j) -> Complex<T>* {
        const int64_t row = first + group + i * kPointGroups;
        return offset[j] >= 0 && row < p.elements ? out + offset[j] + row * k : nullptr;
      };
      // Read before the steering vectors are made, which takes as long as the reads.
      if (point_tile > begin) {
        RISKERNELS_UNROLL
        for (int i = 0; i < kRowsOfThread; ++i) {
          RISKERNELS_UNROLL
          for (int j = 0; j < Shape::kOwnColumns; ++j)
            if (const Complex<T>* const from = entry(i, j)) d[i][j] = *from;
        }
      }
      rows.template make<kSpreadRows>(first, steering);
      __syncthreads();
      spread_tile<Shape>(steering, columns, d);
      RISKERNELS_UNROLL
      for (int i = 0; i < kRowsOfThread; ++i) {
        RISKERNELS_UNROLL
        for (int j = 0; j < Shape::kOwnColumns; ++j)
          if (Complex<T>* const to = entry(i, j)) *to = d[i][j];
      }
      __syncthreads();
    }
  }
}

constexpr unsigned kSteeringSumThreads = 256;

// Adds up the parts in their order; zero where there are none.
template <typename T>
__global__ void __launch_bounds__(kSteeringSumThreads)
    steering_parts_kernel(const T* partial /* [parts, size] */, int64_t parts, int64_t size,
                          T* gradient) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; e < size;
       e += step) {
    T sum{};
    RISKERNELS_UNROLL_BY(4)
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + e];
    gradient[e] = sum;
  }
}

template <typename T>
void steering_power_forward(const Target& target, const SteeringProblem<T>& p, T* power) {
  if (p.scenes == 0 || p.points == 0) return;
  with_shape(target, p, false, [&]<typename Shape>(Shape) {
    const SteeringPlan plan = forward_plan<Shape>(target, p);
    const SteeringBytes bytes = forward_bytes<Shape>(p, plan);
    const SteeringMemory memory = bytes.memory();
    const int64_t groups = (plan.tiles + plan.group - 1) / plan.group;
    launch(target, steering_power_kernel<T, Shape::kOwnPoints, Shape::kOwnColumns>,
           dim3(static_cast<unsigned>(plan.point_tiles * groups)), kSteeringThreads, memory.bytes,
           p, plan, bytes, memory, power);
  });
}

template <typename T>
void steering_power_backward(const Target& target, const SteeringProblem<T>& p,
                             const PowerGradient<T>& grad, T* gradient) {
  if (p.scenes == 0) return;
  const int64_t size = 2 * p.scenes * p.elements * p.factor.columns;
  const auto add_up = [&](const T* partial, int64_t parts) {
    const int64_t blocks = (size + kSteeringSumThreads - 1) / kSteeringSumThreads;
    const int64_t most = int64_t{8} * target.multiprocessors;
    launch(target, steering_parts_kernel<T>, dim3(static_cast<unsigned>(std::min(blocks, most))),
           kSteeringSumThreads, 0, partial, parts, size, gradient);
  };
  if (p.points == 0) return add_up(nullptr, 0);
  with_shape(target, p, true, [&]<typename Shape>(Shape) {
    const SteeringPlan plan = backward_plan<Shape>(target, p);
    const SteeringBytes bytes = backward_bytes<Shape>(p);
    const SteeringMemory memory = bytes.memory();
    T* const partial =
        plan.parts == 1 ? gradient
                        : static_cast<T*>(target.workspace(plan.parts * size * int64_t{sizeof(T)}));
    launch(target, steering_gradient_kernel<T, Shape::kOwnPoints, Shape::kOwnColumns>,
           dim3(static_cast<unsigned>(plan.tiles * plan.parts)), kSteeringThreads, memory.bytes, p,
           plan, bytes, memory, grad, partial);
    if (plan.parts > 1) add_up(partial, plan.parts);
  });
}

}  // namespace riskernels::cuda
