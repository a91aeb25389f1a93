// SPDX-License-Identifier: Apache-2.0
// hermitian_nmse on the device: one read of both matrices forward, one read and one write per
// gradient backward. Batches of vectors are summed in the working precision and added up in double,
// by thread, warp and block in a fixed order.
#pragma once

#include <type_traits>
#include <utility>

#include "nmse_walk.cuh"

namespace riskernels::cuda {

// Threads of a block, at most: with 1024 of them, each may have 64 registers.
constexpr unsigned nmse_sum_threads(bool masked) { return masked ? 512 : 1024; }
constexpr unsigned kNmseGradientThreads = 512;
// Vectors of a block, at least, where a scene is split. A second launch costs as much as the sums
// over some ten thousand vectors; without one, blocks may be smaller.
constexpr int64_t kNmseSumChunk = 8192, kNmseGradientChunk = 1024;

// Where a block's arrays lie in shared memory.
struct NmseLayout {
  int sums = 0;  // double [4, kWarp]
  int mask = 0;  // unsigned char [N]
  int64_t bytes;
  NmseLayout(int64_t elements, bool has_sums, bool has_mask, Carver carver = Carver()) {
    if (has_sums) sums = carver.take<double>(4 * kWarp);
    if (has_mask) mask = carver.take<unsigned char>(elements);
    bytes = carver.used();
  }
};

// On the block executor: makes an access between two arrays an error.
RISKERNELS_DEVICE void guard_nmse_arrays(int64_t elements, bool has_sums, bool has_mask) {
#if !defined(__CUDACC__)
  NmseLayout(elements, has_sums, has_mask, Carver(shared_bytes()));
#else
  (void)elements, (void)has_sums, (void)has_mask;
#endif
}

// Sums over diagonal and off-diagonal entries, as the operator's sums [B, 4] lie.
struct NmseSums {
  double value[4];  // e_D, e_O, t_D, t_O
};

RISKERNELS_DEVICE void warp_sum(NmseSums& sums) {
  RISKERNELS_UNROLL
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    RISKERNELS_UNROLL
    for (int k = 0; k < 4; ++k) sums.value[k] += __shfl_xor_sync(kFullWarp, sums.value[k], offset);
  }
}

// In thread 0, the block's sums. Reached by all threads of the block.
RISKERNELS_DEVICE void block_sum(NmseSums& sums, double* shared /* [4, kWarp] */) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  warp_sum(sums);
  RISKERNELS_UNROLL
  for (int k = 0; k < 4; ++k)
    if (lane == 0) shared[k * kWarp + warp] = sums.value[k];
  __syncthreads();
  if (warp != 0) return;
  const bool used = lane < static_cast<int>(blockDim.x) / kWarp;
  RISKERNELS_UNROLL
  for (int k = 0; k < 4; ++k) sums.value[k] = used ? shared[k * kWarp + lane] : 0.0;
  warp_sum(sums);
}

// One thread writes what the operator returns for one scene.
template <typename T>
RISKERNELS_DEVICE void write_nmse(const NmseProblem<T>& p, int64_t scene, const NmseSums& sums,
                                  T* nmse, T* rounded) {
  T s[4];
  RISKERNELS_UNROLL
  for (int k = 0; k < 4; ++k) rounded[4 * scene + k] = s[k] = static_cast<T>(sums.value[k]);
  const double parts = p.lam_diag * s[0] / (s[2] + p.eps) + p.lam_off * s[1] / (s[3] + p.eps);
  nmse[scene] = static_cast<T>(parts / (p.lam_diag + p.lam_off));
}

// grid: scenes x parts. With one part per scene it finishes the scene, else `partial`
// [scenes, parts] takes the sums.
template <typename T, int Width, bool Masked>
__global__ void __launch_bounds__(nmse_sum_threads(Masked))
    nmse_sums_kernel(const __grid_constant__ NmseProblem<T> p,
                     const __grid_constant__ NmseWalk walk, NmseLayout memory, T* nmse /* [B] */,
                     T* rounded /* [B, 4] */, NmseSums* partial) {
  guard_nmse_arrays(p.elements, true, Masked);
  const NmseMask<T, Masked> mask(p, shared_array<unsigned char>(memory.mask));
  NmseSums sums{};
  NmseBatch<T, Width> batch;
  for (NmseReader<T, Width> reader(p, walk); reader.more();) {
    reader.read(batch);
    T part[4] = {};
    RISKERNELS_UNROLL
    for (int u = 0; u < kNmseBatch; ++u) {
      RISKERNELS_UNROLL
      for (int w = 0; w < Width; ++w) {
        const int row = batch.row[u], column = batch.column[u] + w;
        const bool keep = mask.keeps(row, column), diagonal = row == column;
        const Complex<T> t = batch.target[u].entry[w];
        const T re = batch.estimate[u].entry[w].re - t.re;
        const T im = batch.estimate[u].entry[w].im - t.im;
        const T error = keep ? re * re + im * im : T(0);
        const T power = keep ? t.re * t.re + t.im * t.im : T(0);
        part[0] += diagonal ? error : T(0);
        part[1] += diagonal ? T(0) : error;
        part[2] += diagonal ? power : T(0);
        part[3] += diagonal ? T(0) : power;
      }
    }
    RISKERNELS_UNROLL
    for (int k = 0; k < 4; ++k) sums.value[k] += part[k];
  }
  block_sum(sums, shared_array<double>(memory.sums));
  if (threadIdx.x != 0) return;
  if (partial == nullptr)
    write_nmse(p, blockIdx.x, sums, nmse, rounded);
  else
    partial[static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y] = sums;
}

// grid: scenes. One warp adds up the parts of a scene.
template <typename T>
__global__ void nmse_parts_kernel(const __grid_constant__ NmseProblem<T> p, const NmseSums* partial,
                                  int parts, T* nmse, T* rounded) {
  NmseSums sums{};
  for (int part = threadIdx.x; part < parts; part += kWarp) {
    const NmseSums more = partial[static_cast<int64_t>(blockIdx.x) * parts + part];
    RISKERNELS_UNROLL
    for (int k = 0; k < 4; ++k) sums.value[k] += more.value[k];
  }
  warp_sum(sums);
  if (threadIdx.x == 0) write_nmse(p, blockIdx.x, sums, nmse, rounded);
}

// Factors of the gradients: destimate = scale E, dtarget = -(scale E + ratio T).
template <typename T>
struct NmseFactors {
  T scale, ratio;
};

// Of diagonal and off-diagonal entries. Even lanes compute the former and odd ones the latter,
// since divisions in double are slow. Reached by whole warps.
template <typename T>
RISKERNELS_DEVICE void nmse_factors(const NmseProblem<T>& p, T grad, const T* sums /* [4] */,
                                    NmseFactors<T>& at_diagonal, NmseFactors<T>& at_off) {
  const int kind = threadIdx.x % 2;
  const double weight = (kind == 0 ? p.lam_diag : p.lam_off), power = sums[2 + kind] + p.eps;
  const double exact = 2 * grad * weight / ((p.lam_diag + p.lam_off) * power);
  const T scale = static_cast<T>(exact), ratio = static_cast<T>(exact * sums[kind] / power);
  at_diagonal = {__shfl_sync(kFullWarp, scale, 0), __shfl_sync(kFullWarp, ratio, 0)};
  at_off = {__shfl_sync(kFullWarp, scale, 1), __shfl_sync(kFullWarp, ratio, 1)};
}

// grid: scenes x parts.
template <typename T, int Width, bool Masked, bool Estimate, bool Target>
__global__ void __launch_bounds__(kNmseGradientThreads)
    nmse_gradient_kernel(const __grid_constant__ NmseProblem<T> p,
                         const __grid_constant__ NmseWalk walk, NmseLayout memory,
                         const T* grad /* [B] */, int64_t grad_stride, const T* sums /* [B, 4] */,
                         T* grad_estimate /* [B, N, N] */, T* grad_target /* [B, N, N] */) {
  guard_nmse_arrays(p.elements, false, Masked);
  const NmseMask<T, Masked> mask(p, shared_array<unsigned char>(memory.mask));
  NmseFactors<T> at_diagonal, at_off;
  nmse_factors(p, grad[blockIdx.x * grad_stride], sums + 4 * static_cast<int64_t>(blockIdx.x),
               at_diagonal, at_off);
  const int64_t scene = blockIdx.x * p.elements * p.elements;
  auto* const estimate_out = reinterpret_cast<Complex<T>*>(grad_estimate) + (Estimate ? scene : 0);
  auto* const target_out = reinterpret_cast<Complex<T>*>(grad_target) + (Target ? scene : 0);
  NmseBatch<T, Width> batch;
  for (NmseReader<T, Width> reader(p, walk); reader.more();) {
    reader.read(batch);
    RISKERNELS_UNROLL
    for (int u = 0; u < kNmseBatch; ++u) {
      NmseVector<T, Width> to_estimate, to_target;
      RISKERNELS_UNROLL
      for (int w = 0; w < Width; ++w) {
        const int row = batch.row[u], column = batch.column[u] + w;
        const bool keep = mask.keeps(row, column);
        const NmseFactors<T> factors = row == column ? at_diagonal : at_off;
        const Complex<T> t = batch.target[u].entry[w];
        const T re = factors.scale * (batch.estimate[u].entry[w].re - t.re);
        const T im = factors.scale * (batch.estimate[u].entry[w].im - t.im);
        // Products are blanked, not factors: NaN of a masked entry stays out, and so does that of
        // an infinite scale (no power where eps = 0).
        to_estimate.entry[w] = {keep ? re : T(0), keep ? im : T(0)};
        to_target.entry[w] = {keep ? -(re + factors.ratio * t.re) : T(0),
                              keep ? -(im + factors.ratio * t.im) : T(0)};
      }
      if (batch.row[u] < 0) continue;
      const int64_t offset = batch.row[u] * p.elements + batch.column[u];
      if constexpr (Estimate)
        *reinterpret_cast<NmseVector<T, Width>*>(estimate_out + offset) = to_estimate;
      if constexpr (Target)
        *reinterpret_cast<NmseVector<T, Width>*>(target_out + offset) = to_target;
    }
  }
}

template <typename T>
void hermitian_nmse_forward(const Target& target, NmseProblem<T> p, T* nmse, T* sums) {
  if (p.scenes == 0) return;
  // The sums are those of the transposes: read along columns where these are the contiguous ones.
  if (p.estimate_stride[1] == 1 && p.target_stride[1] == 1) {
    std::swap(p.estimate_stride[1], p.estimate_stride[2]);
    std::swap(p.target_stride[1], p.target_stride[2]);
  }
  const bool pairs = nmse_takes_pairs(p);
  const NmsePlan plan =
      nmse_plan(target, p, pairs ? 2 : 1, kNmseSumChunk, nmse_sum_threads(p.mask != nullptr));
  auto* const partial = plan.parts == 1 ? nullptr
                                        : static_cast<NmseSums*>(target.workspace(
                                              p.scenes * plan.parts * int64_t{sizeof(NmseSums)}));
  const dim3 grid(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts));
  const NmseLayout memory(p.elements, true, p.mask != nullptr);
  constexpr int kPair = sizeof(T) == 4 ? 2 : 1;
  const auto kernel =
      p.mask == nullptr
          ? (pairs ? nmse_sums_kernel<T, kPair, false> : nmse_sums_kernel<T, 1, false>)
          : (pairs ? nmse_sums_kernel<T, kPair, true> : nmse_sums_kernel<T, 1, true>);
  launch(target, kernel, grid, plan.threads, memory.bytes, p, plan.walk, memory, nmse, sums,
         partial);
  if (partial != nullptr)
    launch(target, nmse_parts_kernel<T>, dim3(grid.x), kWarp, 0, p, partial,
           static_cast<int>(plan.parts), nmse, sums);
}

// Null where a gradient is not needed.
template <typename T>
void hermitian_nmse_backward(const Target& target, const NmseProblem<T>& p, const T* grad,
                             int64_t grad_stride, const T* sums, T* grad_estimate, T* grad_target) {
  if (p.scenes == 0 || (grad_estimate == nullptr && grad_target == nullptr)) return;
  const bool pairs = nmse_takes_pairs(p);
  const NmsePlan plan =
      nmse_plan(target, p, pairs ? 2 : 1, kNmseGradientChunk, kNmseGradientThreads);
  const dim3 grid(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts));
  const auto start = [&](auto width, auto masked) {
    constexpr int kWidth = decltype(width)::value;
    constexpr bool kMasked = decltype(masked)::value;
    const NmseLayout memory(p.elements, false, kMasked);
    const auto kernel =
        grad_target == nullptr     ? nmse_gradient_kernel<T, kWidth, kMasked, true, false>
        : grad_estimate == nullptr ? nmse_gradient_kernel<T, kWidth, kMasked, false, true>
                                   : nmse_gradient_kernel<T, kWidth, kMasked, true, true>;
    launch(target, kernel, grid, plan.threads, memory.bytes, p, plan.walk, memory, grad,
           grad_stride, sums, grad_estimate, grad_target);
  };
  using One = std::integral_constant<int, 1>;
  using Pair = std::integral_constant<int, sizeof(T) == 4 ? 2 : 1>;
  if (p.mask == nullptr)
    pairs ? start(Pair{}, std::false_type{}) : start(One{}, std::false_type{});
  else
    pairs ? start(Pair{}, std::true_type{}) : start(One{}, std::true_type{});
}

}  // namespace riskernels::cuda
