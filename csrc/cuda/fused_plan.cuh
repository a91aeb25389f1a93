// SPDX-License-Identifier: Apache-2.0
// Whether a scene fits one block, and how the fused kernels are then started.
#pragma once

#include <cmath>

#include "fused_scene.cuh"
#include "hermitian_product.cuh"
#include "launch.cuh"
#include "outer_product.cuh"

namespace riskernels::cuda {

// Blocks of a multiprocessor, which bounds the registers of a thread: as many as hide each other's
// factorisations and loads without spilling.
template <typename T, int MP, bool Backward>
constexpr int kBlocks = sizeof(T) == 8 || (MP == 32 && Backward) ? 1
                        : MP == 32 || Backward                   ? 2
                                                                 : 3;

// Shared memory with which three blocks find room on a multiprocessor of 227 KiB.
constexpr int64_t kSharedTarget = 74 * 1024;

template <typename T>
struct FusedPlan {
  bool fits;
  int panel_elements;
  T root;  // 1 / sqrt(L): with this factor outer products add up to their mean
  FusedLayout<T> layout;
};

// Depends on sizes and device alone, never on data.
template <typename T>
FusedPlan<T> fused_plan(const Target& target, const TikhonovProblem<T>& p, bool backward,
                        bool covariance) {
  constexpr int64_t kLargest =
      1 << 18;  // beyond it nothing fits, and 32-bit offsets would overflow
  const bool small = p.antennas <= kFusedAntennas<T> && p.elements <= kLargest &&
                     p.snapshots <= kLargest && p.snapshots * p.elements <= kLargest;
  const int panel =
      small && backward && covariance ? kPanel * panel_pitch(static_cast<int>(p.elements)) : 0;
  const auto layout = [&](int group) { return FusedLayout<T>(p, group, backward, panel); };
  if (!small) return {false, 0, T(1), layout(1)};
  int group = kGroup;
  if (p.h_per_snapshot) {
    while (group > p.snapshots) group /= 2;
    while (group > 1 && layout(group).bytes > kSharedTarget) group /= 2;
  }
  const auto chosen = layout(group);
  const T root = T(1) / std::sqrt(static_cast<T>(p.snapshots));
  return {chosen.bytes <= target.shared_limit, panel, root, chosen};
}

// On the block executor: makes an access between two arrays an error.
template <typename T>
RISKERNELS_DEVICE void guard_arrays(const TikhonovProblem<T>& p, const FusedPlan<T>& plan,
                                    bool backward) {
#if !defined(__CUDACC__)
  if (threadIdx.x == 0)
    FusedLayout<T>(p, plan.layout.group, backward, plan.panel_elements, Carver(shared_bytes()));
  __syncthreads();
#else
  (void)p, (void)plan, (void)backward;
#endif
}

template <typename T, int MP>
__global__ void __launch_bounds__(kThreads, kBlocks<T, MP, false>)
    fused_snapshots(const __grid_constant__ TikhonovProblem<T> p,
                    const __grid_constant__ FusedPlan<T> plan, T* out) {
  const FusedLayout<T>& memory = plan.layout;
  guard_arrays(p, plan, false);
  const int b = static_cast<int>(blockIdx.x);
  FusedScene<T, MP> scene(p, memory, b);
  Complex<T>* const to = complex_at(out, b * p.snapshots * p.elements);
  scene.load();
  scene.estimate([&](int l, int64_t n, Complex<T> value) {
    if (n < memory.n) to[l * p.elements + n] = value;
  });
}

// The blocks of one blockIdx.x estimate the same scene and share its outer products.
template <typename T, int MP>
__global__ void __launch_bounds__(kThreads, kBlocks<T, MP, false>)
    fused_covariance(const __grid_constant__ TikhonovProblem<T> p,
                     const __grid_constant__ FusedPlan<T> plan, T* out) {
  const FusedLayout<T>& memory = plan.layout;
  guard_arrays(p, plan, false);
  const int b = static_cast<int>(blockIdx.x);
  FusedScene<T, MP> scene(p, memory, b);
  scene.load();
  scene.estimate(
      [&](int l, int64_t n, Complex<T> value) { memory.a().row(l)[n] = value * plan.root; });
  if (p.center) scene.subtract_mean(memory.a());
  outer_products(Place(), memory.a(), memory.snapshots, memory.n, static_cast<int>(blockIdx.y),
                 static_cast<int>(gridDim.y), complex_at(out, b * p.elements * p.elements));
}

// Gradients of one scene; null ones stay null.
template <typename T>
RISKERNELS_DEVICE TikhonovGradients<T> of_scene(const TikhonovGradients<T>& all,
                                                const TikhonovProblem<T>& p, int64_t b) {
  const int64_t channels = p.h_per_snapshot ? p.snapshots : 1;
  const auto move = [b](T* base, int64_t size) {
    return base == nullptr ? nullptr : base + 2 * b * size;
  };
  return {move(all.y, p.snapshots * p.antennas), move(all.h, channels * p.antennas * p.elements),
          move(all.codes, p.snapshots * p.elements)};
}

// Covariance: grad is dL/dR [B, N, N]; else it is dL/da [B, L, N].
template <typename T, int MP, bool Covariance>
__global__ void __launch_bounds__(kThreads, kBlocks<T, MP, true>)
    fused_backward(const __grid_constant__ TikhonovProblem<T> p,
                   const __grid_constant__ FusedPlan<T> plan, IncomingGradient<T> grad,
                   TikhonovGradients<T> out) {
  const FusedLayout<T>& memory = plan.layout;
  guard_arrays(p, plan, true);
  const int b = static_cast<int>(blockIdx.x);
  FusedScene<T, MP> scene(p, memory, b);
  scene.load();
  const auto grad_estimates = [&] {
    const Strided<T> incoming{complex_at(grad.data, b * grad.stride[0]), grad.stride[1],
                              grad.stride[2]};
    if constexpr (Covariance) {
      hermitian_product(Place(), incoming, memory.n, memory.snapshots, memory.a(), memory.grad(),
                        memory.h().data);
      // P is linear: centring its products centres the estimates as well.
      if (p.center) scene.subtract_mean(memory.grad());
    } else {
      const Place at;
      for (int l = at.warp(); l < memory.snapshots; l += kWarps)
        for (int n = at.lane(); n < memory.n; n += kWarp) memory.grad().row(l)[n] = incoming(l, n);
      __syncthreads();
    }
  };
  scene.differentiate(grad_estimates, of_scene(out, p, b));
}

}  // namespace riskernels::cuda
