// SPDX-License-Identifier: Apache-2.0
// steering_power on the block executor. Compiled once per precision and pass.
#include "cuda/steering_power.cuh"

#include <algorithm>

#include "case.hpp"

namespace cuda_on_cpu {
namespace {

using Real = RISKERNELS_REAL;

riskernels::RealMatrix matrix(const Case& c, const std::string& name) {
  riskernels::RealMatrix m{};
  m.data = c.input<char>(name);
  m.wide = c.integer(name + "_wide") != 0;
  std::ranges::copy(c.integers(name + "_stride"), m.stride);
  return m;
}

riskernels::SteeringProblem<Real> problem(const Case& c) {
  riskernels::SteeringProblem<Real> p{};
  p.scenes = c.integer("scenes");
  p.elements = c.integer("elements");
  p.points = c.integer("points");
  p.factor.data = c.input<Real>("factor");
  std::ranges::copy(c.integers("factor_stride"), p.factor.stride);
  p.factor.columns = c.integer("columns");
  p.shared = c.integer("shared") != 0;
  p.phi = matrix(c, "phi");
  p.theta = matrix(c, "theta");
  p.r = matrix(c, "r");
  p.positions = matrix(c, "positions");
  p.wavelength = c.real("wavelength");
  p.taper = c.integer("taper") != 0;
  return p;
}

// What the plan of this pass makes of the sizes, where a case asks for it.
void write_plan(Case& c, const riskernels::cuda::Target& target, bool backward) {
  using namespace riskernels::cuda;
  auto* const out = c.output<int64_t>("plan");
  const auto p = problem(c);
  if (out == nullptr || p.scenes == 0 || p.points == 0) return;
  with_shape(target, p, backward, [&]<typename Shape>(Shape) {
    const SteeringPlan plan =
        backward ? backward_plan<Shape>(target, p) : forward_plan<Shape>(target, p);
    const int64_t facts[] = {Shape::kOwnPoints, Shape::kOwnColumns, plan.scenes, plan.windows,
                             plan.group,        plan.kept,          plan.parts,  plan.part_tiles};
    std::ranges::copy(facts, out);
  });
}

}  // namespace

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  riskernels::cuda::PowerGradient<Real> grad{c.input<Real>("grad"), {}};
  std::ranges::copy(c.integers("grad_stride"), grad.stride);
  const auto target = c.target();
  write_plan(c, target, true);
  riskernels::cuda::steering_power_backward(target, problem(c), grad,
                                            c.output<Real>("grad_factor"));
}
#else
template <>
void forward<Real>(Case& c) {
  const auto target = c.target();
  write_plan(c, target, false);
  riskernels::cuda::steering_power_forward(target, problem(c), c.output<Real>("power"));
}
#endif

}  // namespace cuda_on_cpu
