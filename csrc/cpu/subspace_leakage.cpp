// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of subspace_leakage on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/leakage_inputs.hpp"
#include "../common/outputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& cov, const Tensor& steering,
                                                   const Tensor& num_sources, double ridge) {
  check_leakage("subspace_leakage", DeviceType::CPU, cov, steering, num_sources, ridge);
  const auto real = real_of(cov.scalar_type());
  const int64_t scenes = steering.size(0), n = steering.size(1), k = steering.size(2);
  Tensor leakage = new_output(cov, {scenes}, real);
  Tensor total = new_output(cov, {scenes}, real);
  Tensor basis = new_output(cov, {scenes, n, k});
  Tensor projected = new_output(cov, {scenes, k, n});
  const auto run = [&]<typename T>(T) {
    const auto problem = leakage_problem<T>(cov, steering, num_sources, ridge);
    const auto state = leakage_state<T>(leakage, total, basis, projected);
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(subspace_leakage_forward, problem, state, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {leakage, total, basis, projected};
}

Tensor backward(const Tensor& grad, const Tensor& cov, const Tensor& leakage, const Tensor& total,
                const Tensor& basis, const Tensor& projected) {
  check_leakage_backward("subspace_leakage_backward", DeviceType::CPU, grad, cov, leakage, total,
                         basis, projected);
  const Tensor kept[] = {torch::stable::contiguous(leakage), torch::stable::contiguous(total),
                         torch::stable::contiguous(basis), torch::stable::contiguous(projected)};
  Tensor out = new_output(cov, shape(cov));
  const auto run = [&]<typename T>(T) {
    const auto problem = leakage_problem<T>(cov, kept[2]);
    const auto state = leakage_state<T>(kept[0], kept[1], kept[2], kept[3]);
    const T* const grad_data = real_pointer<T>(grad);
    const int64_t grad_stride = grad.stride(0);
    T* const data = mutable_real_pointer<T>(out);
    for_each_range(problem.scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(subspace_leakage_backward, problem, state, grad_data, grad_stride, data, begin,
                     end);
    });
  };
  cov.scalar_type() == ScalarType::ComplexFloat ? run(float{}) : run(double{});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("subspace_leakage_forward", TORCH_BOX(&forward));
  m.impl("subspace_leakage_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
