// SPDX-License-Identifier: Apache-2.0
// blend_covariance on the device. Both traces come from the diagonals, which every block sums by
// itself where it has work enough for that, and a small kernel does elsewhere. Then each matrix is
// read once and the result written once. The backward needs the inner product of the gradient and
// the prediction for the diagonal alone: its entries are finished last.
#pragma once

#include <type_traits>

#include "../common/blend_problem.hpp"
#include "../common/tikhonov_problem.hpp"
#include "hermitian_tiles.cuh"
#include "launch.cuh"

namespace riskernels::cuda {

// Blocks on a multiprocessor, with 96 KiB (complex64) or 128 KiB of loads in flight.
template <typename T>
constexpr int kBlendBlocks = sizeof(T) == 8 ? 2 : 3;

// Where a block's arrays lie in shared memory.
struct BlendLayout {
  int sums;     // double [2, kWarp]
  int factors;  // double [4]
  int tiles;    // Complex<T> [2, kEdge, kEdgePitch]
  int64_t bytes;
};

template <typename T>
BlendLayout blend_layout(Carver carver = Carver()) {
  BlendLayout at{};
  at.sums = carver.take<double>(2 * kWarp);
  at.factors = carver.take<double>(4);
  at.tiles = carver.take<Complex<T>>(2 * kEdge * kEdgePitch);
  at.bytes = carver.used();
  return at;
}

// On the block executor: makes an access between two arrays an error.
template <typename T>
RISKERNELS_DEVICE void guard_blend_arrays() {
#if !defined(__CUDACC__)
  blend_layout<T>(Carver(shared_bytes()));
#endif
}

template <typename T>
struct BlendMatrices {
  int elements;
  HermitianPart<T> pred, samp;
  BlendOptions options;
};

template <typename T>
BlendMatrices<T> blend_matrices(const BlendProblem<T>& p) {
  return {static_cast<int>(p.elements), hermitian_part(p.pred, p.pred_stride),
          hermitian_part(p.samp, p.samp_stride), p.options};
}

// Real traces of both matrices of this block's scene, in its first warp. Every block of kThreads
// threads comes to the same bits.
template <typename T>
RISKERNELS_DEVICE void sum_traces(const BlendMatrices<T>& m, double (&trace)[2], double* shared) {
  const auto entry = [](const HermitianPart<T>& of, int i) {
    return static_cast<double>(
        complex_at(of.data, blockIdx.x * of.stride[0] + i * (of.stride[1] + of.stride[2]))->re);
  };
  trace[0] = trace[1] = 0;
  for (int i = threadIdx.x; i < m.elements; i += kThreads) {
    trace[0] += entry(m.pred, i);
    trace[1] += entry(m.samp, i);
  }
  add_over_block(trace, shared);
}

// What a block's threads need to know of the traces.
struct BlendFactors {
  double pred, samp, diagonal, trace_pred;
};

// Reached by all threads; ends with a barrier. `traces` [B, 2] is null where the block sums them.
template <typename T>
RISKERNELS_DEVICE BlendFactors blend_factors(const BlendMatrices<T>& m, const double* traces,
                                             const BlendLayout& memory) {
  double trace[2];
  if (traces == nullptr) {
    sum_traces(m, trace, shared_array<double>(memory.sums));
  } else {
    trace[0] = traces[2 * static_cast<int64_t>(blockIdx.x)];
    trace[1] = traces[2 * static_cast<int64_t>(blockIdx.x) + 1];
  }
  auto* const factors = shared_array<double>(memory.factors);
  // By one thread, since divisions in double are slow.
  if (threadIdx.x == 0) {
    const auto c = blend_coefficients(trace[0], trace[1], m.elements, m.options);
    factors[0] = c.pred;
    factors[1] = c.samp;
    factors[2] = c.diagonal;
    factors[3] = trace[0];
  }
  __syncthreads();
  return {factors[0], factors[1], factors[2], factors[3]};
}

// grid: scenes.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    blend_traces_kernel(const __grid_constant__ BlendMatrices<T> m, double* traces /* [B, 2] */) {
  double trace[2];
  sum_traces(m, trace, shared_array<double>(0));
  if (threadIdx.x != 0) return;
  traces[2 * static_cast<int64_t>(blockIdx.x)] = trace[0];
  traces[2 * static_cast<int64_t>(blockIdx.x) + 1] = trace[1];
}

// grid: scenes x parts; a block takes every parts-th pair of tiles.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kBlendBlocks<T>)
    blend_kernel(const __grid_constant__ BlendMatrices<T> m, BlendLayout memory,
                 const double* traces, T* out /* [B, N, N] */) {
  guard_blend_arrays<T>();
  const int n = m.elements, pairs = tile_pairs(n);
  const TilePlace<Width> at;
  const SharedTiles<T> shared{shared_array<Complex<T>>(memory.tiles)};
  Complex<T>* const matrix = complex_at(out, static_cast<int64_t>(blockIdx.x) * n * n);
  // Of either matrix for its real and imaginary parts, half of it for each of the two tiles.
  Complex<T> of_pred{}, of_samp{};
  T diagonal{};
  for (int item = blockIdx.y; item < pairs; item += gridDim.y) {
    const TilePair pair(item);
    TilePart<T, Width> pred[2], samp[2];
    load_pair(at, m.pred, n, pair, pred);
    load_pair(at, m.samp, n, pair, samp);
    if (item == static_cast<int>(blockIdx.y)) {
      const BlendFactors factors = blend_factors(m, traces, memory);
      const T half_pred = static_cast<T>(factors.pred) / 2;
      const T half_samp = static_cast<T>(factors.samp) / 2;
      of_pred = {half_pred, half_pred * m.pred.sign};
      of_samp = {half_samp, half_samp * m.samp.sign};
      diagonal = static_cast<T>(factors.diagonal);
    } else {
      __syncthreads();
    }
    RISKERNELS_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (half >= pair.tiles) continue;
      RISKERNELS_UNROLL
      for (int u = 0; u < TilePlace<Width>::kPasses; ++u) {
        RISKERNELS_UNROLL
        for (int w = 0; w < Width; ++w) {
          Complex<T>& x = pred[half].pass[u].at[w];
          const Complex<T> y = samp[half].pass[u].at[w];
          x = {of_pred.re * x.re + of_samp.re * y.re, of_pred.im * x.im + of_samp.im * y.im};
        }
      }
    }
    shared.put(at, pair, pred);
    __syncthreads();
    // Both entries of a pair add the same two numbers, so the result is exactly Hermitian.
    write_pair(at, pair, shared, n, matrix,
               [&](int half, int u, int w, Complex<T> opposite, bool on_diagonal) -> Complex<T> {
                 const Complex<T> sum = pred[half].pass[u].at[w] + conj(opposite);
                 return {on_diagonal ? sum.re + diagonal : sum.re, sum.im};
               });
  }
}

// What the diagonal of the gradient to pred lacks: s c_P / t_P, 0 where pred is left out.
RISKERNELS_DEVICE double blend_shift(double inner, double ratio) {
  return ratio == 0 ? 0.0 : inner * ratio;
}

template <typename T>
RISKERNELS_DEVICE void shift_diagonal(T* matrices, int n, double shift) {
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    complex_at(matrices, (static_cast<int64_t>(blockIdx.x) * n + i) * n + i)->re -=
        static_cast<T>(shift);
}

// grid: scenes x parts. With one part per scene it finishes the diagonal, else `partial`
// [scenes, parts] takes the inner products and `ratio` [scenes] the factors c_P / t_P.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kBlendBlocks<T>)
    blend_gradient_kernel(const __grid_constant__ BlendMatrices<T> m,
                          const __grid_constant__ HermitianPart<T> grad, BlendLayout memory,
                          const double* traces, T* grad_pred /* [B, N, N] */, double* partial,
                          double* ratio) {
  guard_blend_arrays<T>();
  const int n = m.elements, pairs = tile_pairs(n);
  const TilePlace<Width> at;
  const SharedTiles<T> shared{shared_array<Complex<T>>(memory.tiles)};
  Complex<T>* const matrix = complex_at(grad_pred, static_cast<int64_t>(blockIdx.x) * n * n);
  T scale{};
  bool included = false;
  double inner[1] = {}, scene_ratio = 0;
  for (int item = blockIdx.y; item < pairs; item += gridDim.y) {
    const TilePair pair(item);
    TilePart<T, Width> pred[2], incoming[2];
    load_pair(at, grad, n, pair, incoming);
    load_pair(at, m.pred, n, pair, pred);
    if (item == static_cast<int>(blockIdx.y)) {
      const BlendFactors factors = blend_factors(m, traces, memory);
      scale = static_cast<T>(factors.pred);
      included = !(factors.trace_pred <= 0);
      if (threadIdx.x == 0) scene_ratio = included ? factors.pred / factors.trace_pred : 0.0;
    } else {
      __syncthreads();
    }
    shared.put(at, pair, incoming);
    __syncthreads();
    T part = 0;
    write_pair(at, pair, shared, n, matrix,
               [&](int half, int u, int w, Complex<T> opposite, bool) -> Complex<T> {
                 const Complex<T> g = incoming[half].pass[u].at[w], p = pred[half].pass[u].at[w];
                 const T re = (g.re + opposite.re) / 2;
                 const T im = grad.sign * ((g.im - opposite.im) / 2);
                 part += re * p.re + im * (m.pred.sign * p.im);
                 return {included ? scale * re : T(0), included ? scale * im : T(0)};
               });
    inner[0] += static_cast<double>(part);
  }
  // The first warp has read the sums of the traces before the last barrier.
  add_over_block(inner, shared_array<double>(memory.sums));
  if (partial != nullptr) {
    if (threadIdx.x != 0) return;
    partial[static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y] = inner[0];
    if (blockIdx.y == 0) ratio[blockIdx.x] = scene_ratio;
    return;
  }
  auto* const factors = shared_array<double>(memory.factors);
  if (threadIdx.x == 0) factors[0] = blend_shift(inner[0], scene_ratio);
  __syncthreads();
  shift_diagonal(grad_pred, n, factors[0]);
}

constexpr unsigned kBlendDiagonalThreads = 128;

// grid: scenes.
template <typename T>
__global__ void __launch_bounds__(kBlendDiagonalThreads)
    blend_diagonal_kernel(int n, const double* partial, int parts, const double* ratio,
                          T* grad_pred) {
  double inner = 0;
  for (int part = threadIdx.x % kWarp; part < parts; part += kWarp)
    inner += partial[static_cast<int64_t>(blockIdx.x) * parts + part];
  shift_diagonal(grad_pred, n, blend_shift(lane_sum(inner), ratio[blockIdx.x]));
}

struct BlendPlan {
  int parts;
  const double* traces;
};

// Chosen from the shape and the device alone: as few pairs of tiles to a block as leave about eight
// blocks to a multiprocessor. A block reads a sector for every diagonal entry; where that is much
// beside its tiles, the traces are worth a launch of their own.
template <typename T>
BlendPlan blend_plan(const Target& target, const BlendMatrices<T>& m, int64_t scenes) {
  const int64_t pairs = tile_pairs(m.elements), blocks = int64_t{8} * target.multiprocessors;
  int64_t share = (scenes * pairs + blocks - 1) / blocks;
  if (share > pairs) share = pairs;
  if ((pairs + share - 1) / share > 65535) share = (pairs + 65534) / 65535;
  BlendPlan plan{static_cast<int>((pairs + share - 1) / share), nullptr};
  if (m.elements > 256 * share) {
    auto* const traces =
        static_cast<double*>(target.workspace(2 * scenes * int64_t{sizeof(double)}));
    launch(target, blend_traces_kernel<T>, dim3(static_cast<unsigned>(scenes)), kThreads,
           int64_t{2 * kWarp * sizeof(double)}, m, traces);
    plan.traces = traces;
  }
  return plan;
}

template <typename T>
void blend_covariance(const Target& target, const BlendProblem<T>& p, T* out) {
  if (p.scenes == 0) return;
  const BlendMatrices<T> m = blend_matrices(p);
  const bool pairs = takes_pairs(p.scenes, p.elements, m.pred.data, m.pred.stride) &&
                     takes_pairs(p.scenes, p.elements, m.samp.data, m.samp.stride);
  const BlendPlan plan = blend_plan(target, m, p.scenes);
  const BlendLayout memory = blend_layout<T>();
  const dim3 grid(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts));
  const auto kernel = pairs ? blend_kernel < T, sizeof(T) == 4 ? 2 : 1 > : blend_kernel<T, 1>;
  launch(target, kernel, grid, kThreads, memory.bytes, m, memory, plan.traces, out);
}

template <typename T>
void blend_covariance_backward(const Target& target, const BlendProblem<T>& p,
                               const IncomingGradient<T>& incoming, T* grad_pred) {
  if (p.scenes == 0) return;
  const BlendMatrices<T> m = blend_matrices(p);
  const HermitianPart<T> grad = hermitian_part(incoming.data, incoming.stride);
  const bool pairs = takes_pairs(p.scenes, p.elements, m.pred.data, m.pred.stride) &&
                     takes_pairs(p.scenes, p.elements, grad.data, grad.stride);
  const BlendPlan plan = blend_plan(target, m, p.scenes);
  const BlendLayout memory = blend_layout<T>();
  double* partial = nullptr;
  double* ratio = nullptr;
  if (plan.parts > 1) {
    partial =
        static_cast<double*>(target.workspace(p.scenes * plan.parts * int64_t{sizeof(double)}));
    ratio = static_cast<double*>(target.workspace(p.scenes * int64_t{sizeof(double)}));
  }
  const dim3 grid(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts));
  const auto kernel = pairs           ? blend_gradient_kernel < T,
             sizeof(T) == 4 ? 2 : 1 > : blend_gradient_kernel<T, 1>;
  launch(target, kernel, grid, kThreads, memory.bytes, m, grad, memory, plan.traces, grad_pred,
         partial, ratio);
  if (partial != nullptr)
    launch(target, blend_diagonal_kernel<T>, dim3(grid.x), kBlendDiagonalThreads, 0, m.elements,
           static_cast<const double*>(partial), plan.parts, static_cast<const double*>(ratio),
           grad_pred);
}

}  // namespace riskernels::cuda
