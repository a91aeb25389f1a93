// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of blend_covariance on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../common/blend_inputs.hpp"
#include "../common/tikhonov_inputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

Tensor blend(const Tensor& pred, const Tensor& samp, double beta,
             std::optional<double> target_trace, double loading, double shrinkage) {
  check_blend("blend_covariance", DeviceType::CPU, pred, samp, beta, target_trace, loading,
              shrinkage);
  Tensor out = new_output(pred, shape(pred));
  const auto run = [&]<typename T>(T) {
    const auto problem = blend_problem<T>(pred, samp, beta, target_trace, loading, shrinkage);
    T* const data = mutable_real_pointer<T>(out);
    for_each_range(problem.scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(blend_covariance, problem, data, begin, end);
    });
  };
  pred.scalar_type() == ScalarType::ComplexFloat ? run(float{}) : run(double{});
  return out;
}

Tensor blend_backward(const Tensor& grad, const Tensor& pred, const Tensor& samp, double beta,
                      std::optional<double> target_trace, double loading, double shrinkage) {
  const char* op = "blend_covariance_backward";
  check_blend(op, DeviceType::CPU, pred, samp, beta, target_trace, loading, shrinkage);
  check_complex(op, "grad", grad, pred);
  check_shape(op, "grad", grad, {pred.size(0), pred.size(1), pred.size(2)});
  Tensor out = new_output(pred, shape(pred));
  const auto run = [&]<typename T>(T) {
    const auto problem = blend_problem<T>(pred, samp, beta, target_trace, loading, shrinkage);
    const auto gradient = incoming<T>(grad);
    T* const data = mutable_real_pointer<T>(out);
    for_each_range(problem.scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(blend_covariance_backward, problem, gradient, data, begin, end);
    });
  };
  pred.scalar_type() == ScalarType::ComplexFloat ? run(float{}) : run(double{});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("blend_covariance", TORCH_BOX(&blend));
  m.impl("blend_covariance_backward", TORCH_BOX(&blend_backward));
}

}  // namespace riskernels
