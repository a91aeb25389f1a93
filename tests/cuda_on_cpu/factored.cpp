// SPDX-License-Identifier: Apache-2.0
// factored_blend, factored_nmse and factored_leakage on the block executor. Compiled once per
// precision and pass; the case names the operator by its number.
#include <algorithm>

#include "case.hpp"
#include "cuda/factored_blend.cuh"
#include "cuda/factored_leakage.cuh"
#include "cuda/factored_nmse.cuh"

namespace cuda_on_cpu {
namespace {

using Real = RISKERNELS_REAL;

enum Operator : int64_t { kBlend, kNmse, kLeakage };

riskernels::Factor<Real> factor(const Case& c, const char* name) {
  riskernels::Factor<Real> f{};
  f.data = c.input<Real>(name);
  std::ranges::copy(c.integers(std::string(name) + "_stride"), f.stride);
  f.columns = c.integer(std::string(name) + "_columns");
  return f;
}

// What all problems on X and rho have in common.
template <typename Problem>
Problem problem(const Case& c) {
  Problem p{};
  p.scenes = c.integer("scenes");
  p.elements = c.integer("elements");
  p.factor = factor(c, "factor");
  p.rho = c.input<Real>("rho");
  if (p.rho != nullptr) p.rho_stride = c.integer("rho_stride");
  return p;
}

riskernels::FactoredBlendProblem<Real> blend(const Case& c) {
  riskernels::FactoredBlendProblem<Real> p{};
  p.scenes = c.integer("scenes");
  p.elements = c.integer("elements");
  p.columns = c.integer("columns");
  p.snapshots = c.integer("snapshots");
  p.factor = c.input<Real>("factor");
  p.samples = c.input<Real>("samples");
  std::ranges::copy(c.integers("factor_stride"), p.factor_stride);
  std::ranges::copy(c.integers("samples_stride"), p.samples_stride);
  p.options = {c.real("beta"), c.real("target_trace"), c.real("loading"), c.real("shrinkage")};
  return p;
}

riskernels::FactoredNmseProblem<Real> nmse(const Case& c) {
  auto p = problem<riskernels::FactoredNmseProblem<Real>>(c);
  p.target = factor(c, "target");
  p.mask = c.input<bool>("mask");
  if (p.mask != nullptr) std::ranges::copy(c.integers("mask_stride"), p.mask_stride);
  p.lam_diag = c.real("lam_diag");
  p.lam_off = c.real("lam_off");
  p.eps = c.real("eps");
  return p;
}

riskernels::FactoredLeakageProblem<Real> leakage(const Case& c) {
  auto p = problem<riskernels::FactoredLeakageProblem<Real>>(c);
  p.steering = factor(c, "steering");
  p.num_sources = c.input<int64_t>("num_sources");
  p.num_sources_stride = c.integer("num_sources_stride");
  p.ridge = c.real("ridge");
  return p;
}

}  // namespace

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  const auto* const grad = c.input<Real>("grad");
  const auto* const gram = c.input<double>("gram");
  switch (c.integer("operator")) {
    case kBlend: {
      riskernels::IncomingGradient<Real> incoming{grad, {}};
      std::ranges::copy(c.integers("grad_stride"), incoming.stride);
      riskernels::cuda::factored_blend_backward(c.target(), blend(c), incoming,
                                                c.output<Real>("grad_factor"));
      break;
    }
    case kNmse:
      riskernels::cuda::factored_nmse_backward(
          c.target(), nmse(c), grad, c.integer("grad_stride"), c.input<double>("sums"), gram,
          c.output<Real>("grad_factor"), c.output<Real>("grad_rho"), c.output<Real>("grad_target"));
      break;
    default:
      riskernels::cuda::factored_leakage_backward(
          c.target(), leakage(c), grad, c.integer("grad_stride"), c.input<Real>("leakage"), gram,
          c.output<Real>("grad_factor"), c.output<Real>("grad_rho"));
  }
}
#else
template <>
void forward<Real>(Case& c) {
  switch (c.integer("operator")) {
    case kBlend:
      riskernels::cuda::factored_blend(c.target(), blend(c), c.output<Real>("out"),
                                       c.output<Real>("rho_out"));
      break;
    case kNmse:
      riskernels::cuda::factored_nmse_forward(c.target(), nmse(c), c.output<Real>("nmse"),
                                              c.output<double>("sums"), c.output<double>("gram"));
      break;
    default:
      riskernels::cuda::factored_leakage_forward(c.target(), leakage(c), c.output<Real>("leakage"),
                                                 c.output<double>("gram"));
  }
}
#endif

}  // namespace cuda_on_cpu
