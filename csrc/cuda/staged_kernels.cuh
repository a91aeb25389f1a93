// SPDX-License-Identifier: Apache-2.0
// The stages after the solve, each a kernel over global memory, for sizes that no block holds.
// Arrays of a scene are contiguous: z, w [L, M] and a, g [L, N].
#pragma once

#include "gradients.cuh"
#include "hermitian_product.cuh"
#include "outer_product.cuh"

namespace riskernels::cuda {

constexpr int kSpan = 128;  // elements of the surface that one block has
constexpr int kEdge = 64;   // edge of a block's tile of R
constexpr int kDepth = 16;  // snapshots of it at a time

template <typename T>
RISKERNELS_DEVICE GlobalChannel<T> global_channel(const TikhonovProblem<T>& p, int64_t b) {
  return {complex_at(p.h, b * p.h_stride[0]), p.h_stride[1], p.h_stride[2], p.h_stride[3],
          static_cast<int>(p.antennas)};
}
template <typename T>
RISKERNELS_DEVICE Strided<T> global_codes(const TikhonovProblem<T>& p, int64_t b) {
  return {complex_at(p.codes, b * p.codes_stride[0]), p.codes_stride[1], p.codes_stride[2]};
}

// a_l = Phi_l^H z_l
template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_back_project(const __grid_constant__ TikhonovProblem<T> p, Complex<T>* z,
                        Complex<T>* a) {
  const int64_t b = blockIdx.x, n = p.elements;
  const GlobalRows<T> solutions{z + b * p.snapshots * p.antennas, p.antennas};
  const GlobalRows<T> estimates{a + b * p.snapshots * n, n};
  const auto sink = [&](int64_t l, int64_t k, Complex<T> value) { estimates.put(l, k, value); };
  const int m = static_cast<int>(p.antennas), snapshots = static_cast<int>(p.snapshots);
  for (int64_t begin = static_cast<int64_t>(blockIdx.y) * kSpan; begin < n;
       begin += static_cast<int64_t>(gridDim.y) * kSpan) {
    const int64_t end = begin + kSpan < n ? begin + kSpan : n;
    if (p.h_per_snapshot)
      back_project<1, T>(Place(), m, begin, end, 0, snapshots, global_channel(p, b),
                         global_codes(p, b), solutions, sink);
    else
      back_project<4, T>(Place(), m, begin, end, 0, snapshots, global_channel(p, b),
                         global_codes(p, b), solutions, sink);
  }
}

// Subtracts from rows [L, N] their mean over l.
template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_center(int snapshots, int64_t n, Complex<T>* rows) {
  Complex<T>* const of_scene = rows + static_cast<int64_t>(blockIdx.x) * snapshots * n;
  const T scale = reciprocal(static_cast<T>(snapshots));
  for (int64_t k = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x; k < n;
       k += static_cast<int64_t>(gridDim.y) * kThreads) {
    Complex<T> mean = of_scene[k];
    for (int l = 1; l < snapshots; ++l) mean = mean + of_scene[l * n + k];
    mean = mean * scale;
    for (int l = 0; l < snapshots; ++l) of_scene[l * n + k] = of_scene[l * n + k] - mean;
  }
}

// A block's 64 x 64 of R = (1/L) sum_l a_l a_l^H, on or above the diagonal, and its mirror image.
template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_outer_product(int snapshots, int64_t n, const Complex<T>* a, T* out) {
  const Place at;
  const int edge = static_cast<int>((n + kEdge - 1) / kEdge), tiles = edge * (edge + 1) / 2;
  const int64_t b = blockIdx.x / tiles;
  const TrianglePosition tile(static_cast<int>(blockIdx.x) % tiles);
  const int64_t i0 = static_cast<int64_t>(tile.column) * kEdge;
  const int64_t j0 = static_cast<int64_t>(tile.row) * kEdge;
  Complex<T>* const rows = reinterpret_cast<Complex<T>*>(shared_bytes());
  Complex<T>* const columns = rows + kDepth * kEdge;
  const Complex<T>* const of_scene = a + b * snapshots * n;
  const TileLane lane(at.lane());
  const int row = at.warp() / 4 * 2 * kTile, column = at.warp() % 4 * kTile;
  TileSums<T, 2> sums{};
  for (int first = 0; first < snapshots; first += kDepth) {
    const int count = minimum(kDepth, snapshots - first);
    for (int e = at.thread; e < count * kEdge; e += kThreads) {
      const int64_t l = first + e / kEdge, i = i0 + e % kEdge, j = j0 + e % kEdge;
      rows[e] = i < n ? of_scene[l * n + i] : Complex<T>{T(0), T(0)};
      columns[e] = j < n ? of_scene[l * n + j] : Complex<T>{T(0), T(0)};
    }
    __syncthreads();
    accumulate_tiles(lane, rows + row, columns + column, kEdge, count, sums);
    __syncthreads();
  }
  const T scale = reciprocal(static_cast<T>(snapshots));
  RISKERNELS_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int64_t i = i0 + row + h * kTile, j = j0 + column;
    if (i > j || j >= n) continue;
    RISKERNELS_UNROLL
    for (int e = 0; e < 8; ++e) sums.entry[h][e / 4][e % 4] = sums.entry[h][e / 4][e % 4] * scale;
    store_tile(lane, complex_at(out, b * n * n), n, i, j, sums.entry[h]);
  }
}

// g_l(i) = (1/L) sum_j P_ij a_l(j) for 16 rows i and 16 snapshots at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_hermitian_product(IncomingGradient<T> grad, int snapshots, int64_t n,
                             const Complex<T>* a, Complex<T>* g) {
  const Place at;
  const int64_t b = blockIdx.x;
  const Strided<T> incoming{complex_at(grad.data, b * grad.stride[0]), grad.stride[1],
                            grad.stride[2]};
  constexpr int kPitch = kSpan + 2;
  Complex<T>* const panel = reinterpret_cast<Complex<T>*>(shared_bytes());
  const Rows<T> part{panel + kPanel * kPitch, kSpan};
  const T scale = reciprocal(static_cast<T>(snapshots));
  const int l = at.team() / 4 * 4, r = at.team() % 4 * 4;
  const int64_t depths = (snapshots + kDepth - 1) / kDepth, panels = (n + kPanel - 1) / kPanel;
  for (int64_t item = blockIdx.y; item < depths * panels; item += gridDim.y) {
    const int first = static_cast<int>(item % depths) * kDepth;
    const int count = minimum(kDepth, snapshots - first);
    const int64_t i0 = item / depths * kPanel;
    Complex<T> sum[16] = {};
    for (int64_t j0 = 0; j0 < n; j0 += kSpan) {
      const int64_t rest = round_up(n - j0, kPanel);
      const int columns = static_cast<int>(rest < kSpan ? rest : kSpan);
      for (int k = at.warp(); k < kDepth; k += kWarps)
        for (int c = at.lane(); c < columns; c += kWarp)
          part.row(k)[c] = k < count && j0 + c < n ? a[(b * snapshots + first + k) * n + j0 + c]
                                                   : Complex<T>{T(0), T(0)};
      load_panel<T>(at, incoming, n, i0, j0, columns, panel, kPitch);
      add_panel<T>(at, panel, kPitch, columns, part, l, r, sum);
      __syncthreads();
    }
    const Complex<T> whole = exchange_sums(sum, at.term());
    const int64_t k = first + l + at.term() / 4, i = i0 + r + at.term() % 4;
    if (k < snapshots && i < n) g[(b * snapshots + k) * n + i] = whole * scale;
  }
}

// u_l = Phi_l g_l for 16 snapshots.
template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_project(const __grid_constant__ TikhonovProblem<T> p, Complex<T>* g, Complex<T>* u) {
  const int64_t b = blockIdx.x;
  const int m = static_cast<int>(p.antennas), n = static_cast<int>(p.elements);
  const int snapshots = static_cast<int>(p.snapshots);
  const GlobalRows<T> gradients{g + b * p.snapshots * p.elements, p.elements};
  const GlobalRows<T> out{u + b * p.snapshots * p.antennas, p.antennas};
  const auto sink = [&](int l, int i, Complex<T> value) { out.put(l, i, value); };
  for (int begin = static_cast<int>(blockIdx.y) * kDepth; begin < snapshots;
       begin += static_cast<int>(gridDim.y) * kDepth) {
    const int end = minimum(begin + kDepth, snapshots);
    if (p.h_per_snapshot)
      project<true, T>(Place(), m, n, begin, end, global_channel(p, b), global_codes(p, b),
                       gradients, sink);
    else
      project<false, T>(Place(), m, n, begin, end, global_channel(p, b), global_codes(p, b),
                        gradients, sink);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_loading_terms(const __grid_constant__ TikhonovProblem<T> p, Complex<T>* z, Complex<T>* w,
                         T* terms) {
  const int64_t b = blockIdx.x, size = p.snapshots * p.antennas;
  loading_terms<T>(Place(), static_cast<int>(p.antennas), p.elements, p.alpha, 0,
                   static_cast<int>(p.snapshots), GlobalRows<T>{z + b * size, p.antennas},
                   GlobalRows<T>{w + b * size, p.antennas}, terms + b * p.snapshots);
}

// The gradients to codes and channel of 128 elements; g becomes q. terms is null unless the loading
// is relative.
template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_finish(const __grid_constant__ TikhonovProblem<T> p, Complex<T>* z, Complex<T>* w,
                  Complex<T>* a, Complex<T>* g, const T* terms, TikhonovGradients<T> out) {
  const int64_t b = blockIdx.x, n = p.elements, size = p.snapshots * n;
  const int m = static_cast<int>(p.antennas), snapshots = static_cast<int>(p.snapshots);
  const GlobalRows<T> solution{z + b * p.snapshots * p.antennas, p.antennas};
  const GlobalRows<T> second{w + b * p.snapshots * p.antennas, p.antennas};
  const GlobalRows<T> estimates{a + b * size, n}, gradients{g + b * size, n};
  const T* const of_scene = terms != nullptr ? terms + b * p.snapshots : nullptr;
  const auto channel = global_channel(p, b);
  const auto codes = global_codes(p, b);
  Complex<T>* const to_codes = out.codes != nullptr ? complex_at(out.codes, b * size) : nullptr;
  for (int64_t begin = static_cast<int64_t>(blockIdx.y) * kSpan; begin < n;
       begin += static_cast<int64_t>(gridDim.y) * kSpan) {
    const int64_t end = begin + kSpan < n ? begin + kSpan : n;
    if (p.h_per_snapshot)
      finish_codes<1, T>(Place(), m, begin, end, n, 0, snapshots, channel, codes, estimates,
                         gradients, solution, second, of_scene, to_codes);
    else
      finish_codes<4, T>(Place(), m, begin, end, n, 0, snapshots, channel, codes, estimates,
                         gradients, solution, second, of_scene, to_codes);
    __syncthreads();
    if (out.h == nullptr) continue;
    if (p.h_per_snapshot)
      finish_channels<T>(Place(), m, begin, end, n, 0, snapshots, channel, codes, estimates,
                         gradients, solution, second, of_scene,
                         complex_at(out.h, b * size * p.antennas));
    else
      finish_channel<T>(Place(), m, begin, end, n, snapshots, channel, codes, estimates, gradients,
                        solution, second, of_scene, complex_at(out.h, b * p.antennas * n));
  }
}

// A gradient of any strides as contiguous [B, L, N].
template <typename T>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_copy(IncomingGradient<T> from, int64_t snapshots, int64_t n, Complex<T>* to) {
  const int64_t b = blockIdx.x;
  const Strided<T> rows{complex_at(from.data, b * from.stride[0]), from.stride[1], from.stride[2]};
  for (int64_t e = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x; e < snapshots * n;
       e += static_cast<int64_t>(gridDim.y) * kThreads)
    to[b * snapshots * n + e] = rows(e / n, e % n);
}

}  // namespace riskernels::cuda
