// SPDX-License-Identifier: Apache-2.0
// Inputs and gradients of both Tikhonov operators on the block executor.
#pragma once

#include <algorithm>

#include "case.hpp"
#include "common/tikhonov_problem.hpp"

namespace cuda_on_cpu {

template <typename T>
riskernels::TikhonovProblem<T> tikhonov_problem(const Case& c) {
  riskernels::TikhonovProblem<T> p{};
  p.scenes = c.integer("scenes");
  p.snapshots = c.integer("snapshots");
  p.antennas = c.integer("antennas");
  p.elements = c.integer("elements");
  p.y = c.input<T>("y");
  p.h = c.input<T>("h");
  p.codes = c.input<T>("codes");
  std::ranges::copy(c.integers("y_stride"), p.y_stride);
  std::ranges::copy(c.integers("h_stride"), p.h_stride);
  std::ranges::copy(c.integers("codes_stride"), p.codes_stride);
  p.h_per_snapshot = c.integer("h_per_snapshot") != 0;
  p.alpha = c.real("alpha");
  p.relative = c.integer("relative") != 0;
  p.center = c.integer("center") != 0;
  return p;
}

template <typename T>
riskernels::IncomingGradient<T> incoming_gradient(const Case& c) {
  riskernels::IncomingGradient<T> grad{c.input<T>("grad"), {}};
  std::ranges::copy(c.integers("grad_stride"), grad.stride);
  return grad;
}

template <typename T>
riskernels::TikhonovGradients<T> tikhonov_gradients(Case& c) {
  return {c.output<T>("grad_y"), c.output<T>("grad_h"), c.output<T>("grad_codes")};
}

}  // namespace cuda_on_cpu
