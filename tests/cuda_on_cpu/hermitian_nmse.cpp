// SPDX-License-Identifier: Apache-2.0
// hermitian_nmse on the block executor. Compiled once per precision and pass.
#include "cuda/hermitian_nmse.cuh"

#include <algorithm>

#include "case.hpp"

namespace cuda_on_cpu {
namespace {

using Real = RISKERNELS_REAL;

riskernels::NmseProblem<Real> problem(const Case& c) {
  riskernels::NmseProblem<Real> p{};
  p.scenes = c.integer("scenes");
  p.elements = c.integer("elements");
  p.estimate = c.input<Real>("estimate");
  p.target = c.input<Real>("target");
  p.mask = c.input<bool>("mask");
  std::ranges::copy(c.integers("estimate_stride"), p.estimate_stride);
  std::ranges::copy(c.integers("target_stride"), p.target_stride);
  if (p.mask != nullptr) std::ranges::copy(c.integers("mask_stride"), p.mask_stride);
  p.lam_diag = c.real("lam_diag");
  p.lam_off = c.real("lam_off");
  p.eps = c.real("eps");
  return p;
}

}  // namespace

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  riskernels::cuda::hermitian_nmse_backward(
      c.target(), problem(c), c.input<Real>("grad"), c.integer("grad_stride"),
      c.input<Real>("sums"), c.output<Real>("grad_estimate"), c.output<Real>("grad_target"));
}
#else
template <>
void forward<Real>(Case& c) {
  riskernels::cuda::hermitian_nmse_forward(c.target(), problem(c), c.output<Real>("nmse"),
                                           c.output<Real>("sums"));
}
#endif

}  // namespace cuda_on_cpu
