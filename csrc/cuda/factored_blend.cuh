// SPDX-License-Identifier: Apache-2.0
// factored_blend on the device. A block stages tiles of [A, V^T] (backward: of [A, dL/dX_A]) in
// shared memory, sums in double and writes with the scales that follow from the sums; a scene of
// one tile is read once. Where scenes are few, one launch sums parts of the rows and another
// writes them.
#pragma once

#include "../common/blend_problem.hpp"
#include "../common/tikhonov_problem.hpp"
#include "factor_rows.cuh"
#include "launch.cuh"

namespace riskernels::cuda {

constexpr int64_t kBlendArea = 48 * 1024;  // bytes of staged entries, at most
// Entries of a block, at least, where the rows of a scene are split.
constexpr int64_t kBlendPart = 8192;

template <typename T>
struct BlendSources {
  Factor<T> first, second;  // A, and V^T or dL/dX_A
  Factor<T> samples;        // V^T, on whose presence the backward's scale depends
  BlendOptions options;
  int64_t scenes, elements;
  int64_t snapshots;  // L
};

struct BlendPlan {
  int64_t parts, part_rows;
  int chunk, window;  // rows and columns (of A and of dL/dX_A alike) of a tile
  int64_t area;       // bytes
};

enum class BlendPhase { whole, sums, write };

struct BlendMemory {
  int sums = 0, area = 0;  // double [2, kWarps]; Complex<T>
  int64_t bytes;
  explicit BlendMemory(int64_t area_bytes, Carver carver = Carver()) {
    sums = carver.take<double>(2 * kWarps);
    area = carver.take<char>(area_bytes);
    bytes = carver.used();
  }
};

// Whether any sample is not zero. Reached by all threads.
template <typename T>
RISKERNELS_DEVICE bool any_sample(const FactorRows<T>& samples, int64_t elements) {
  for (int column = 0; column < samples.columns; ++column)
    for (int64_t first = 0; first < elements; first += kThreads) {
      const int64_t row = first + threadIdx.x;
      // NaN counts, as it does in a trace.
      const bool found = row < elements && !(square_norm(samples.entry(row, column)) <= 0);
      if (__syncthreads_or(found)) return true;
    }
  return false;
}

// grid: scenes x parts of the rows.
template <typename T, bool Backward>
__global__ void __launch_bounds__(kThreads, 2)
    factored_blend_kernel(const __grid_constant__ BlendSources<T> p, BlendPlan plan,
                          BlendMemory memory, BlendPhase phase, double* partial /* [B, parts, 2] */,
                          T* out, T* rho) {
#if !defined(__CUDACC__)
  BlendMemory(plan.area, Carver(shared_bytes()));
#endif
  const Place at;
  const int64_t scene = blockIdx.x;
  const FactorRows<T> a(p.first, scene), b(p.second, scene);
  const RowMask all{nullptr, 0};
  const int64_t begin = blockIdx.y * plan.part_rows;
  const int64_t end = begin + plan.part_rows < p.elements ? begin + plan.part_rows : p.elements;
  const int columns = Backward ? a.columns : a.columns + b.columns;
  auto* const area = shared_array<Complex<T>>(memory.area);
  auto* const shared = shared_array<double>(memory.sums);
  // f(row, column, entry of A or V^T, entry of dL/dX_A) for every entry. A scene of one tile keeps
  // what an earlier walk staged.
  const bool one_tile = end - begin <= plan.chunk && columns <= plan.window;
  const auto walk = [&](bool staged, const auto& f) {
    for (int64_t first = begin; first < end; first += plan.chunk) {
      const int count = piece(end - first, plan.chunk);
      for (int column = 0; column < columns; column += plan.window) {
        const int width = minimum(plan.window, columns - column);
        const int stride = staged_stride(Backward ? 2 * width : width);
        if (!(staged && one_tile)) {
          // One loop, so that the code for it is there once.
          int of_a = Backward ? width : minimum(a.columns - column, width);
          of_a = of_a < 0 ? 0 : of_a;
          const int of_b = Backward ? width : width - of_a;
          const int skip = Backward ? column : column < a.columns ? 0 : column - a.columns;
          RISKERNELS_UNROLL_BY(1)
          for (int side = 0; side < 2; ++side)
            stage_rows<kStageBatch<T>>(side == 0 ? a.window(column, of_a) : b.window(skip, of_b),
                                       all, first, count, side == 0 ? area : area + of_a, stride);
          __syncthreads();
        }
        const int step_rows = kThreads / width, step_columns = kThreads % width;
        int row = at.thread / width, k = at.thread % width;
        for (int e = at.thread; e < count * width; e += kThreads) {
          const Complex<T>* const entry = area + row * stride + k;
          f(first + row, column + k, entry[0], Backward ? entry[width] : Complex<T>{});
          row += step_rows;
          k += step_columns;
          if (k >= width) {
            k -= width;
            ++row;
          }
        }
        if (!one_tile) __syncthreads();
      }
    }
  };
  // Forward |A|^2 and |V|^2; backward |A|^2 and Re<dL/dX_A, A>.
  double sum[2] = {};
  if (phase == BlendPhase::write) {
    for_block_items(static_cast<int>(gridDim.y), [&](int part) {
      RISKERNELS_UNROLL
      for (int k = 0; k < 2; ++k) sum[k] += partial[2 * (scene * gridDim.y + part) + k];
    });
  } else {
    walk(false, [&](int64_t, int column, Complex<T> entry, Complex<T> incoming) {
      const double power = square_norm(entry);
      if constexpr (Backward) {
        sum[0] += power;
        sum[1] += static_cast<double>(entry.re) * incoming.re +
                  static_cast<double>(entry.im) * incoming.im;
      } else {
        sum[0] += column < a.columns ? power : 0.0;
        sum[1] += column < a.columns ? 0.0 : power;
      }
    });
  }
  block_sums(sum, shared);
  if (phase == BlendPhase::sums) {
    RISKERNELS_UNROLL
    for (int k = 0; k < 2; ++k)
      if (at.thread == 0) partial[2 * (scene * gridDim.y + blockIdx.y) + k] = sum[k];
    return;
  }
  const bool staged = phase == BlendPhase::whole;
  const int64_t first_row = scene * p.elements;
  if constexpr (Backward) {
    const double samples = any_sample(FactorRows<T>(p.samples, scene), p.elements) ? 1.0 : 0.0;
    const double scale = sqrt(blend_coefficients(sum[0], samples, p.elements, p.options).pred);
    const bool present = sum[0] != 0;
    const auto of_grad = static_cast<T>(scale);
    const auto of_factor = static_cast<T>(present ? scale * (sum[1] / sum[0]) : 0.0);
    walk(staged, [&](int64_t row, int column, Complex<T> entry, Complex<T> incoming) {
      const Complex<T> value = incoming * of_grad - entry * of_factor;
      *complex_at(out, (first_row + row) * columns + column) = present ? value : Complex<T>{};
    });
  } else {
    const double count = static_cast<double>(p.snapshots);
    const BlendCoefficients scales =
        blend_coefficients(sum[0], sum[1] / count, p.elements, p.options);
    const auto of_a = static_cast<T>(sqrt(scales.pred));
    const auto of_v = static_cast<T>(sqrt(scales.samp / count));
    walk(staged, [&](int64_t row, int column, Complex<T> entry, Complex<T>) {
      *complex_at(out, (first_row + row) * columns + column) =
          entry * (column < a.columns ? of_a : of_v);
    });
    if (blockIdx.y == 0 && at.thread == 0) rho[scene] = static_cast<T>(scales.diagonal);
  }
}

template <typename T, bool Backward>
void launch_blend(const Target& target, const BlendSources<T>& p, T* out, T* rho) {
  if (p.scenes == 0) return;
  const int64_t columns = Backward ? p.first.columns : p.first.columns + p.second.columns;
  BlendPlan plan{};
  const int64_t left = target.shared_limit - BlendMemory(0).bytes;
  const int64_t entries = (left < kBlendArea ? left : kBlendArea) / (2 * int64_t{sizeof(T)});
  constexpr int kSides = Backward ? 2 : 1;
  int64_t parts = 2 * target.multiprocessors / p.scenes;
  if (parts > p.elements * columns / kBlendPart) parts = p.elements * columns / kBlendPart;
  if (parts < 1) parts = 1;
  plan.part_rows = (p.elements + parts - 1) / parts;
  plan.parts = (p.elements + plan.part_rows - 1) / plan.part_rows;
  // Whole rows where at least a few fit.
  const int64_t widest = entries / 8 / kSides;
  plan.window = static_cast<int>(columns < widest ? columns : widest);
  const int64_t stride = staged_stride(kSides * plan.window);
  const int64_t most = entries / stride;
  plan.chunk = static_cast<int>(most < plan.part_rows ? most : plan.part_rows);
  plan.area = plan.chunk * stride * 2 * int64_t{sizeof(T)};
  const BlendMemory memory(plan.area);
  const dim3 grid(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts));
  double* partial = nullptr;
  const auto start = [&](BlendPhase phase) {
    launch(target, factored_blend_kernel<T, Backward>, grid, kThreads, memory.bytes, p, plan,
           memory, phase, partial, out, rho);
  };
  if (plan.parts == 1) return start(BlendPhase::whole);
  partial =
      static_cast<double*>(target.workspace(p.scenes * plan.parts * 2 * int64_t{sizeof(double)}));
  start(BlendPhase::sums);
  start(BlendPhase::write);
}

template <typename T>
BlendSources<T> blend_sources(const FactoredBlendProblem<T>& p) {
  const int64_t* const a = p.factor_stride;
  const int64_t* const v = p.samples_stride;
  const Factor<T> samples{p.samples, {v[0], v[2], v[1]}, p.snapshots};
  return {{p.factor, {a[0], a[1], a[2]}, p.columns},
          samples,
          samples,
          p.options,
          p.scenes,
          p.elements,
          p.snapshots};
}

template <typename T>
void factored_blend(const Target& target, const FactoredBlendProblem<T>& p, T* out, T* rho) {
  launch_blend<T, false>(target, blend_sources(p), out, rho);
}

// `grad` [B, N, K + L], of which the columns of A are read.
template <typename T>
void factored_blend_backward(const Target& target, const FactoredBlendProblem<T>& p,
                             const IncomingGradient<T>& grad, T* to_factor) {
  BlendSources<T> sources = blend_sources(p);
  const int64_t* const g = grad.stride;
  sources.second = {grad.data, {g[0], g[1], g[2]}, p.columns};
  launch_blend<T, true>(target, sources, to_factor, static_cast<T*>(nullptr));
}

}  // namespace riskernels::cuda
