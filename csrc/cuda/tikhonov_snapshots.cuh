// SPDX-License-Identifier: Apache-2.0
// tikhonov_snapshots on the device: one launch where a scene fits a block, else in stages.
#pragma once

#include "fused_plan.cuh"
#include "staged.cuh"

namespace riskernels::cuda {

template <typename T>
void tikhonov_snapshots(const Target& target, const TikhonovProblem<T>& p, T* out) {
  if (p.scenes == 0) return;
  const FusedPlan<T> plan = fused_plan(target, p, false, false);
  if (!plan.fits) {
    const Staged<T> stages(target, p);
    stages.estimate(reinterpret_cast<Complex<T>*>(out));
    return;
  }
  with_slot<T>(p.antennas, [&](auto slot) {
    launch(target, fused_snapshots<T, decltype(slot)::value>, dim3(p.scenes), kThreads,
           plan.layout.bytes, p, plan, out);
  });
}

template <typename T>
void tikhonov_snapshots_backward(const Target& target, const TikhonovProblem<T>& p,
                                 const IncomingGradient<T>& grad,
                                 const TikhonovGradients<T>& gradients) {
  if (p.scenes == 0) return;
  const FusedPlan<T> plan = fused_plan(target, p, true, false);
  if (!plan.fits) {
    const Staged<T> stages(target, p);
    Complex<T>* const g = stages.array(p.elements);
    stages.copy(grad, g);
    stages.finish(stages.estimate(), g, gradients);
    return;
  }
  with_slot<T>(p.antennas, [&](auto slot) {
    launch(target, fused_backward<T, decltype(slot)::value, false>, dim3(p.scenes), kThreads,
           plan.layout.bytes, p, plan, grad, gradients);
  });
}

}  // namespace riskernels::cuda
