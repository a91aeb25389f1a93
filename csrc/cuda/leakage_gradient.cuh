// SPDX-License-Identifier: Apache-2.0
// Backward of subspace_leakage: dL/dR = s ((1 - leakage) R - Q V) with s = 2g/|R|^2, one read of R
// and one write. A block takes some rows; what it needs of U = W Q and of V = 2W - U Q^H it
// computes by itself.
#pragma once

#include "leakage_pass.cuh"

namespace riskernels::cuda {

// Where a block's arrays lie in shared memory.
struct LeakageGradientLayout {
  int basis;    // Complex<T> [rows of the block, basis_pitch]
  int panel;    // Complex<T> [Columns, columns of a panel], -s V
  int product;  // Complex<double> [Columns, K], rows of U
  int64_t bytes;
};

template <typename T, int Width, int Columns>
LeakageGradientLayout leakage_gradient_layout(const LeakageWalk& walk, int64_t columns,
                                              Carver carver = Carver()) {
  LeakageGradientLayout at{};
  at.basis = carver.take<Complex<T>>(int64_t{walk.share} * basis_pitch(Columns));
  at.panel = carver.take<Complex<T>>(int64_t{Columns} * walk.slots * Width);
  at.product = carver.take<Complex<double>>(Columns * columns);
  at.bytes = carver.used();
  return at;
}

// grid: scenes x parts of their rows.
template <typename T, int Width, int Columns>
__global__ void __launch_bounds__(kLeakageThreads<T>, kLeakageBlocks)
    leakage_gradient_kernel(const __grid_constant__ LeakageProblem<T> p, LeakageWalk walk,
                            LeakageGradientLayout memory, LeakageState<T> state,
                            const T* grad /* [B] */, int64_t grad_stride,
                            T* grad_cov /* [B, N, N] */) {
#if !defined(__CUDACC__)
  // Makes an access between two arrays an error.
  leakage_gradient_layout<T, Width, Columns>(walk, p.columns, Carver(shared_bytes()));
#endif
  constexpr int kBatch = leakage_batch(Columns);
  const int n = static_cast<int>(p.elements), columns = static_cast<int>(p.columns);
  const int first = static_cast<int>(blockIdx.y) * walk.share;
  const int rows = minimum(walk.share, n - first);
  prefetch_rows(p, first, minimum(rows, walk.prefetch), 0, n);
  const int64_t scene_columns = static_cast<int64_t>(blockIdx.x) * n * columns;
  const Complex<T>* const basis = complex_at(static_cast<const T*>(state.basis), scene_columns);
  const Complex<T>* const projected =
      complex_at(static_cast<const T*>(state.projected), scene_columns);
  Complex<T>* const out = complex_at(grad_cov, (static_cast<int64_t>(blockIdx.x) * n + first) * n);
  auto* const staged = shared_array<Complex<T>>(memory.basis);
  auto* const panel = shared_array<Complex<T>>(memory.panel);
  auto* const product = shared_array<Complex<double>>(memory.product);
  const double total = state.total[blockIdx.x];
  const double scale = total == 0 ? 0.0 : 2 * double{grad[blockIdx.x * grad_stride]} / total;
  const T of_cov = static_cast<T>(scale * (1 - double{state.leakage[blockIdx.x]}));
  const LeakageThread<Width> thread(walk);
  for (int k0 = 0; k0 < columns; k0 += Columns) {
    const int present = minimum(Columns, columns - k0),
              warps = static_cast<int>(blockDim.x) / kWarp;
    for (int pair = threadIdx.x / kWarp; pair < present * columns; pair += warps) {
      const int k = pair / columns, l = pair - k * columns;
      const auto u =
          lane_product(projected + static_cast<int64_t>(k0 + k) * n, basis + l, columns, n);
      if (threadIdx.x % kWarp == 0) product[pair] = u;
    }
    stage_basis<T, Columns>(basis, columns, first, rows, k0, staged);
    for (int left = 0; left < n; left += walk.slots * Width) {
      const int width = minimum(n - left, walk.slots * Width);
      __syncthreads();
      for (int item = threadIdx.x; item < Columns * width; item += blockDim.x) {
        const int k = item / width, j = left + item - k * width;
        Complex<double> v{};
        if (k < present) {
          v = widened(projected[static_cast<int64_t>(k0 + k) * n + j]) * 2.0;
          for (int l = 0; l < columns; ++l)
            subtract_product(v, product[k * columns + l],
                             conj(widened(basis[static_cast<int64_t>(j) * columns + l])));
        }
        panel[item] = {static_cast<T>(-scale * v.re), static_cast<T>(-scale * v.im)};
      }
      __syncthreads();
      if (!thread.active(width)) continue;
      Complex<T> v[Columns][Width];
      RISKERNELS_UNROLL
      for (int k = 0; k < Columns; ++k) {
        RISKERNELS_UNROLL
        for (int w = 0; w < Width; ++w) v[k][w] = panel[k * width + thread.column + w];
      }
      // Further columns of Q add to what the thread wrote before.
      const bool again = k0 > 0;
      const int64_t step = again ? n : p.cov_stride[1];
      Complex<T>* to = out + static_cast<int64_t>(thread.group) * n + left + thread.column;
      const Complex<T>* next =
          again ? to
                : complex_at(p.cov, blockIdx.x * p.cov_stride[0] +
                                        (first + thread.group) * p.cov_stride[1] +
                                        (left + thread.column) * p.cov_stride[2]);
      const T factor = again ? T(1) : of_cov;
      for (int row = thread.group; row < rows; row += kBatch * thread.groups) {
        Entries<T, Width> r[kBatch];
        RISKERNELS_UNROLL
        for (int u = 0; u < kBatch; ++u) {
          r[u] = {};
          if (row + u * thread.groups < rows)
            r[u] = *reinterpret_cast<const Entries<T, Width>*>(next);
          next += thread.groups * step;
        }
        RISKERNELS_UNROLL
        for (int u = 0; u < kBatch; ++u) {
          const bool inside = row + u * thread.groups < rows;
          Complex<T> q[Columns];
          basis_row<T, Columns>(staged, inside ? row + u * thread.groups : rows - 1, q);
          RISKERNELS_UNROLL
          for (int w = 0; w < Width; ++w) {
            Complex<T> entry = r[u].at[w] * factor;
            RISKERNELS_UNROLL
            for (int k = 0; k < Columns; ++k) add_product(entry, q[k], v[k][w]);
            r[u].at[w] = entry;
          }
          if (inside) *reinterpret_cast<Entries<T, Width>*>(to) = r[u];
          to += static_cast<int64_t>(thread.groups) * n;
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace riskernels::cuda
