// SPDX-License-Identifier: Apache-2.0
// tikhonov_covariance on the device: one launch where a scene fits a block, else in stages.
#pragma once

#include "fused_plan.cuh"
#include "staged.cuh"

namespace riskernels::cuda {

// Blocks that share a scene: as many as fill the device twice, since fewer leave multiprocessors
// idle while each of them repeats the estimates; at most one stack of tiles to a warp.
inline int covariance_parts(const Target& target, int64_t scenes, int64_t elements) {
  const int blocks = static_cast<int>((elements + kTile - 1) / kTile);
  const int64_t useful = (stacks_before(blocks) + kWarps - 1) / kWarps;
  const int64_t wanted = 2 * static_cast<int64_t>(target.multiprocessors) / scenes;
  return static_cast<int>(wanted < 1 ? 1 : wanted < useful ? wanted : useful);
}

template <typename T>
void tikhonov_covariance(const Target& target, const TikhonovProblem<T>& p, T* out) {
  if (p.scenes == 0) return;
  const FusedPlan<T> plan = fused_plan(target, p, false, true);
  if (!plan.fits) {
    const Staged<T> stages(target, p);
    Complex<T>* const a = stages.array(p.elements);
    stages.estimate(a);
    if (p.center) stages.center(a);
    stages.outer_products(a, out);
    return;
  }
  const int parts = covariance_parts(target, p.scenes, p.elements);
  with_slot<T>(p.antennas, [&](auto slot) {
    launch(target, fused_covariance<T, decltype(slot)::value>, dim3(p.scenes, parts), kThreads,
           plan.layout.bytes, p, plan, out);
  });
}

template <typename T>
void tikhonov_covariance_backward(const Target& target, const TikhonovProblem<T>& p,
                                  const IncomingGradient<T>& grad,
                                  const TikhonovGradients<T>& gradients) {
  if (p.scenes == 0) return;
  const FusedPlan<T> plan = fused_plan(target, p, true, true);
  if (!plan.fits) {
    const Staged<T> stages(target, p);
    const auto estimates = stages.estimate();
    Complex<T>* const g = stages.array(p.elements);
    stages.hermitian_product(grad, estimates.a, g);
    if (p.center) stages.center(g);
    stages.finish(estimates, g, gradients);
    return;
  }
  with_slot<T>(p.antennas, [&](auto slot) {
    launch(target, fused_backward<T, decltype(slot)::value, true>, dim3(p.scenes), kThreads,
           plan.layout.bytes, p, plan, grad, gradients);
  });
}

}  // namespace riskernels::cuda
