// SPDX-License-Identifier: Apache-2.0
// subspace_leakage on the block executor. Compiled once per precision and pass.
#include "cuda/subspace_leakage.cuh"

#include <algorithm>

#include "case.hpp"

namespace cuda_on_cpu {
namespace {

using Real = RISKERNELS_REAL;

riskernels::LeakageProblem<Real> problem(const Case& c) {
  riskernels::LeakageProblem<Real> p{};
  p.scenes = c.integer("scenes");
  p.elements = c.integer("elements");
  p.columns = c.integer("columns");
  p.cov = c.input<Real>("cov");
  std::ranges::copy(c.integers("cov_stride"), p.cov_stride);
  return p;
}

}  // namespace

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  // The kernels read the state through pointers that the forward writes through.
  const auto saved = [&](const char* name) { return const_cast<Real*>(c.input<Real>(name)); };
  const riskernels::LeakageState<Real> state{saved("leakage"), saved("total"), saved("basis"),
                                             saved("projected")};
  riskernels::cuda::subspace_leakage_backward(c.target(), problem(c), state, c.input<Real>("grad"),
                                              c.integer("grad_stride"), c.output<Real>("grad_cov"));
}
#else
template <>
void forward<Real>(Case& c) {
  auto p = problem(c);
  p.steering = c.input<Real>("steering");
  std::ranges::copy(c.integers("steering_stride"), p.steering_stride);
  p.num_sources = c.input<int64_t>("num_sources");
  p.num_sources_stride = c.integer("num_sources_stride");
  p.ridge = c.real("ridge");
  const riskernels::LeakageState<Real> state{c.output<Real>("leakage"), c.output<Real>("total"),
                                             c.output<Real>("basis"), c.output<Real>("projected")};
  riskernels::cuda::subspace_leakage_forward(c.target(), p, state);
}
#endif

}  // namespace cuda_on_cpu
