// SPDX-License-Identifier: Apache-2.0
// blend_covariance on the block executor. Compiled once per precision and pass.
#include "cuda/blend_covariance.cuh"

#include <algorithm>

#include "case.hpp"

namespace cuda_on_cpu {
namespace {

using Real = RISKERNELS_REAL;

riskernels::BlendProblem<Real> problem(const Case& c) {
  riskernels::BlendProblem<Real> p{};
  p.scenes = c.integer("scenes");
  p.elements = c.integer("elements");
  p.pred = c.input<Real>("pred");
  p.samp = c.input<Real>("samp");
  std::ranges::copy(c.integers("pred_stride"), p.pred_stride);
  std::ranges::copy(c.integers("samp_stride"), p.samp_stride);
  p.options = {c.real("beta"), c.real("target_trace"), c.real("loading"), c.real("shrinkage")};
  return p;
}

}  // namespace

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  riskernels::IncomingGradient<Real> grad{};
  grad.data = c.input<Real>("grad");
  std::ranges::copy(c.integers("grad_stride"), grad.stride);
  riskernels::cuda::blend_covariance_backward(c.target(), problem(c), grad,
                                              c.output<Real>("grad_pred"));
}
#else
template <>
void forward<Real>(Case& c) {
  riskernels::cuda::blend_covariance(c.target(), problem(c), c.output<Real>("out"));
}
#endif

}  // namespace cuda_on_cpu
