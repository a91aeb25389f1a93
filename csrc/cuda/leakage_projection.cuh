// SPDX-License-Identifier: Apache-2.0
// Forward of subspace_leakage: a block finds the basis Q of its scene, reads R once for |R|^2 and
// W = Q^H R, and finishes the scene. Few large scenes are split into strips of columns, with
// kernels of their own before and after.
#pragma once

#include "leakage_pass.cuh"

namespace riskernels::cuda {

// Writes |R|^2 and the leakage of this block's scene. `total`: what this thread knows of |R|^2.
// Reached by all threads.
template <typename T>
RISKERNELS_DEVICE void finish_leakage(const LeakageProblem<T>& p, const LeakageState<T>& state,
                                      const Complex<T>* w, const Complex<T>* q, int64_t q_pitch,
                                      double total, double* shared /* [3, kWarp] */) {
  const int n = static_cast<int>(p.elements), columns = static_cast<int>(p.columns);
  const int lane = threadIdx.x % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  double sum[3] = {total, 0, 0};
  for (int64_t item = threadIdx.x; item < static_cast<int64_t>(columns) * n; item += blockDim.x)
    sum[1] += norm(widened(w[item]));
  for (int pair = threadIdx.x / kWarp; pair < columns * columns; pair += warps) {
    const int k = pair / columns, l = pair - k * columns;
    const auto u = lane_product(w + static_cast<int64_t>(k) * n, q + l, q_pitch, n);
    if (lane == 0) sum[2] += norm(u);
  }
  add_over_block(sum, shared);
  if (threadIdx.x != 0) return;
  const double outside = sum[0] - 2 * sum[1] + sum[2];
  const double positive = outside < 0 ? 0.0 : outside;  // NaN stays
  state.total[blockIdx.x] = static_cast<T>(sum[0]);
  state.leakage[blockIdx.x] = static_cast<T>(sum[0] == 0 ? 0.0 : positive / sum[0]);
}

// Where a forward block's arrays lie in shared memory.
struct LeakageLayout {
  int sums;         // double [3, kWarp]
  int basis;        // Complex<T> [kBasisRows, basis_pitch]
  int groups;       // Complex<T> [groups, Columns, columns of a panel]
  int algebra = 0;  // Complex<double> [basis_algebra_size], where it lies there
  int64_t bytes;
};

template <typename T, int Width, int Columns>
LeakageLayout leakage_layout(int64_t elements, int64_t algebra, unsigned threads,
                             Carver carver = Carver()) {
  const int64_t rows = elements < kBasisRows ? elements : kBasisRows;
  LeakageLayout at{};
  at.sums = carver.take<double>(3 * kWarp);
  at.basis = carver.take<Complex<T>>(rows * basis_pitch(Columns));
  at.groups = carver.take<Complex<T>>(int64_t{threads} * Width * Columns);
  if (algebra > 0) at.algebra = carver.take<Complex<double>>(algebra);
  at.bytes = carver.used();
  return at;
}

// grid: scenes. The basis of a scene that is split; `algebra` [scenes, basis_algebra_size] is null
// where there is room in shared memory.
template <typename T>
__global__ void __launch_bounds__(kLeakageThreads<T>, kLeakageBlocks)
    leakage_basis_kernel(const __grid_constant__ LeakageProblem<T> p, Complex<double>* algebra,
                         T* basis /* [B, N, K] */) {
  Complex<double>* const memory = algebra == nullptr
                                      ? shared_array<Complex<double>>(0)
                                      : algebra + blockIdx.x * basis_algebra_size(p.columns);
  leakage_basis<T>(p, BasisAlgebra(memory, p.columns),
                   complex_at(basis, blockIdx.x * p.elements * p.columns), nullptr, 0);
}

// grid: scenes x strips. With one strip it does everything that a scene needs, else `partial`
// [scenes, strips] takes the sums of |R|^2.
template <typename T, int Width, int Columns>
__global__ void __launch_bounds__(kLeakageThreads<T>, kLeakageBlocks)
    leakage_kernel(const __grid_constant__ LeakageProblem<T> p, LeakageWalk walk,
                   LeakageLayout memory, Complex<double>* algebra, LeakageState<T> state,
                   double* partial) {
  constexpr int kBatch = leakage_batch(Columns);
  const int n = static_cast<int>(p.elements), columns = static_cast<int>(p.columns);
  const bool whole = partial == nullptr;
#if !defined(__CUDACC__)
  // Makes an access between two arrays an error.
  leakage_layout<T, Width, Columns>(n,
                                    whole && algebra == nullptr ? basis_algebra_size(columns) : 0,
                                    blockDim.x, Carver(shared_bytes()));
#endif
  const int64_t scene_columns = static_cast<int64_t>(blockIdx.x) * n * columns;
  Complex<T>* const basis = complex_at(state.basis, scene_columns);
  Complex<T>* const projected = complex_at(state.projected, scene_columns);
  auto* const staged = shared_array<Complex<T>>(memory.basis);
  auto* const parts = shared_array<Complex<T>>(memory.groups);
  const int first = static_cast<int>(blockIdx.y) * walk.share;
  const int end = minimum(first + walk.share, n);
  const bool resident = whole && n <= kBasisRows && columns <= Columns;
  if (whole) {
    prefetch_rows(p, 0, walk.prefetch, first, end);
    Complex<double>* const small = algebra == nullptr
                                       ? shared_array<Complex<double>>(memory.algebra)
                                       : algebra + blockIdx.x * basis_algebra_size(columns);
    leakage_basis<T>(p, BasisAlgebra(small, columns), basis, resident ? staged : nullptr,
                     basis_pitch(Columns));
    __syncthreads();
  }
  const LeakageThread<Width> thread(walk);
  double total = 0;
  int panel = 0;
  for (int k0 = 0; k0 < columns; k0 += Columns) {
    for (int left = first; left < end; left += walk.slots * Width) {
      panel = minimum(end - left, walk.slots * Width);
      Complex<T> sum[Columns][Width] = {};
      for (int top = 0; top < n; top += kBasisRows) {
        const int rows = minimum(n - top, kBasisRows);
        if (!resident) {
          __syncthreads();
          stage_basis<T, Columns>(basis, columns, top, rows, k0, staged);
          __syncthreads();
        }
        if (!thread.active(panel)) continue;
        const Complex<T>* next = complex_at(p.cov, blockIdx.x * p.cov_stride[0] +
                                                       (top + thread.group) * p.cov_stride[1] +
                                                       (left + thread.column) * p.cov_stride[2]);
        for (int row = thread.group; row < rows; row += kBatch * thread.groups) {
          Entries<T, Width> r[kBatch];
          RISKERNELS_UNROLL
          for (int u = 0; u < kBatch; ++u) {
            r[u] = {};
            if (row + u * thread.groups < rows)
              r[u] = *reinterpret_cast<const Entries<T, Width>*>(next);
            next += thread.groups * p.cov_stride[1];
          }
          T power = 0;
          RISKERNELS_UNROLL
          for (int u = 0; u < kBatch; ++u) {
            Complex<T> q[Columns];
            basis_row<T, Columns>(staged, minimum(row + u * thread.groups, rows - 1), q);
            RISKERNELS_UNROLL
            for (int w = 0; w < Width; ++w) {
              RISKERNELS_UNROLL
              for (int k = 0; k < Columns; ++k) add_product_conj(sum[k][w], r[u].at[w], q[k]);
              power += norm(r[u].at[w]);
            }
          }
          if (k0 == 0) total += static_cast<double>(power);
        }
      }
      // Adds the groups up in their order; the first one's place keeps W.
      __syncthreads();
      if (thread.active(panel)) {
        RISKERNELS_UNROLL
        for (int k = 0; k < Columns; ++k) {
          RISKERNELS_UNROLL
          for (int w = 0; w < Width; ++w)
            parts[(thread.group * Columns + k) * panel + thread.column + w] = sum[k][w];
        }
      }
      __syncthreads();
      for (int item = threadIdx.x; item < Columns * panel; item += blockDim.x) {
        Complex<T> entry = parts[item];
        for (int group = 1; group < thread.groups; ++group)
          entry = entry + parts[group * Columns * panel + item];
        parts[item] = entry;
        const int k = item / panel;
        if (k0 + k < columns)
          projected[static_cast<int64_t>(k0 + k) * n + left + item - k * panel] = entry;
      }
    }
  }
  __syncthreads();
  auto* const sums = shared_array<double>(memory.sums);
  if (!whole) {
    double part[1] = {total};
    add_over_block(part, sums);
    if (threadIdx.x == 0)
      partial[static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y] = part[0];
    return;
  }
  const bool near = resident && panel == n;  // W and Q are still in shared memory
  finish_leakage<T>(p, state, near ? parts : projected, near ? staged : basis,
                    near ? basis_pitch(Columns) : columns, total, sums);
}

constexpr unsigned kLeakageFinishThreads = 256;

// grid: scenes.
template <typename T>
__global__ void __launch_bounds__(kLeakageFinishThreads)
    leakage_finish_kernel(const __grid_constant__ LeakageProblem<T> p, LeakageState<T> state,
                          const double* partial, int strips) {
  double total = 0;
  for (int strip = threadIdx.x; strip < strips; strip += blockDim.x)
    total += partial[static_cast<int64_t>(blockIdx.x) * strips + strip];
  const int64_t scene_columns = blockIdx.x * p.elements * p.columns;
  finish_leakage<T>(p, state, complex_at(static_cast<const T*>(state.projected), scene_columns),
                    complex_at(static_cast<const T*>(state.basis), scene_columns), p.columns, total,
                    shared_array<double>(0));
}

}  // namespace riskernels::cuda
