// SPDX-License-Identifier: Apache-2.0
// tikhonov_covariance and tikhonov_snapshots on the block executor. Compiled once per precision and
// pass; the case says which of them it calls.
#include <algorithm>

#include "case.hpp"
#include "common/tikhonov_problem.hpp"
#include "cuda/tikhonov_covariance.cuh"
#include "cuda/tikhonov_snapshots.cuh"

namespace cuda_on_cpu {
namespace {

using Real = RISKERNELS_REAL;

riskernels::TikhonovProblem<Real> problem(const Case& c) {
  riskernels::TikhonovProblem<Real> p{};
  p.scenes = c.integer("scenes");
  p.snapshots = c.integer("snapshots");
  p.antennas = c.integer("antennas");
  p.elements = c.integer("elements");
  p.y = c.input<Real>("y");
  p.h = c.input<Real>("h");
  p.codes = c.input<Real>("codes");
  std::ranges::copy(c.integers("y_stride"), p.y_stride);
  std::ranges::copy(c.integers("h_stride"), p.h_stride);
  std::ranges::copy(c.integers("codes_stride"), p.codes_stride);
  p.h_per_snapshot = c.integer("h_per_snapshot") != 0;
  p.alpha = c.real("alpha");
  p.relative = c.integer("relative") != 0;
  p.center = c.integer("center") != 0;
  return p;
}

}  // namespace

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  riskernels::IncomingGradient<Real> grad{c.input<Real>("grad"), {}};
  std::ranges::copy(c.integers("grad_stride"), grad.stride);
  const riskernels::TikhonovGradients<Real> gradients{
      c.output<Real>("grad_y"), c.output<Real>("grad_h"), c.output<Real>("grad_codes")};
  if (c.integer("covariance") != 0) {
    riskernels::cuda::tikhonov_covariance_backward(c.target(), problem(c), grad, gradients);
  } else {
    riskernels::cuda::tikhonov_snapshots_backward(c.target(), problem(c), grad, gradients);
  }
}
#else
template <>
void forward<Real>(Case& c) {
  if (c.integer("covariance") != 0) {
    riskernels::cuda::tikhonov_covariance(c.target(), problem(c), c.output<Real>("out"));
  } else {
    riskernels::cuda::tikhonov_snapshots(c.target(), problem(c), c.output<Real>("out"));
  }
}
#endif

}  // namespace cuda_on_cpu
