// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_blend on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/factored_inputs.hpp"
#include "../common/tikhonov_inputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& factor, const Tensor& snapshots, double beta,
                                   std::optional<double> target_trace, double loading,
                                   double shrinkage) {
  check_factored_blend("factored_blend", DeviceType::CPU, factor, snapshots, beta, target_trace,
                       loading, shrinkage);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0);
  Tensor out = new_output(factor, {scenes, factor.size(1), factor.size(2) + snapshots.size(1)});
  Tensor rho = new_output(factor, {scenes}, real);
  const auto run = [&]<typename T>(T) {
    const auto problem =
        factored_blend_problem<T>(factor, snapshots, beta, target_trace, loading, shrinkage);
    T* const out_data = mutable_real_pointer<T>(out);
    T* const rho_data = mutable_real_pointer<T>(rho);
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_blend, problem, out_data, rho_data, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {out, rho};
}

Tensor backward(const Tensor& grad, const Tensor& factor, const Tensor& snapshots, double beta,
                std::optional<double> target_trace, double loading, double shrinkage) {
  const char* op = "factored_blend_backward";
  check_factored_blend(op, DeviceType::CPU, factor, snapshots, beta, target_trace, loading,
                       shrinkage);
  check_complex(op, "grad", grad, factor);
  check_shape(op, "grad", grad,
              {factor.size(0), factor.size(1), factor.size(2) + snapshots.size(1)});
  Tensor grad_factor = new_gradient(factor, true);
  const auto run = [&]<typename T>(T) {
    const auto problem =
        factored_blend_problem<T>(factor, snapshots, beta, target_trace, loading, shrinkage);
    const auto gradient = incoming<T>(grad);
    T* const data = mutable_real_pointer<T>(grad_factor);
    for_each_range(problem.scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_blend_backward, problem, gradient, data, begin, end);
    });
  };
  factor.scalar_type() == ScalarType::ComplexFloat ? run(float{}) : run(double{});
  return grad_factor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("factored_blend", TORCH_BOX(&forward));
  m.impl("factored_blend_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
