// SPDX-License-Identifier: Apache-2.0
// factored_spectrum on the block executor. Compiled once per precision and pass.
#include "cuda/factored_spectrum.cuh"

#include <algorithm>

#include "case.hpp"

namespace cuda_on_cpu {
namespace {

using Real = RISKERNELS_REAL;

riskernels::FactoredSpectrumProblem<Real> problem(const Case& c) {
  riskernels::FactoredSpectrumProblem<Real> p{};
  p.scenes = c.integer("scenes");
  p.elements = c.integer("elements");
  p.factor.data = c.input<Real>("factor");
  std::ranges::copy(c.integers("factor_stride"), p.factor.stride);
  p.factor.columns = c.integer("columns");
  p.rho = c.input<Real>("rho");
  if (p.rho != nullptr) p.rho_stride = c.integer("rho_stride");
  return p;
}

}  // namespace

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  riskernels::cuda::factored_spectrum_backward(
      c.target(), problem(c), c.input<Real>("grad"), c.integers("grad_stride").data(),
      c.input<Real>("vectors"), c.output<Real>("grad_factor"), c.output<Real>("grad_rho"));
}
#else
template <>
void forward<Real>(Case& c) {
  riskernels::cuda::factored_spectrum_forward(c.target(), problem(c), c.output<Real>("values"),
                                              c.output<Real>("vectors"));
}
#endif

}  // namespace cuda_on_cpu
