// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs of the blend operators, on every device.
#pragma once

#include <optional>
#include <utility>

#include "blend_problem.hpp"
#include "tensor_checks.hpp"

namespace riskernels {

inline void check_blend_options(const char* op, double beta, std::optional<double> target_trace,
                                double loading, double shrinkage) {
  const std::pair<const char*, double> shares[] = {{"beta", beta}, {"shrinkage", shrinkage}};
  for (const auto& [name, value] : shares)
    if (!(value >= 0 && value <= 1))
      fail(op, name, " is ", value, ", expected a number from 0 to 1");
  if (!(std::isfinite(loading) && loading >= 0))
    fail(op, "loading is ", loading, ", expected a finite number >= 0");
  if (target_trace.has_value() && !(std::isfinite(*target_trace) && *target_trace > 0))
    fail(op, "target_trace is ", *target_trace, ", expected a finite number > 0 or None for N");
}

inline BlendOptions blend_options(int64_t elements, double beta, std::optional<double> target_trace,
                                  double loading, double shrinkage) {
  return {beta, target_trace.value_or(static_cast<double>(elements)), loading, shrinkage};
}

inline void check_blend(const char* op, DeviceType launcher, const Tensor& pred, const Tensor& samp,
                        double beta, std::optional<double> target_trace, double loading,
                        double shrinkage) {
  check_complex(op, "pred", pred);
  check_complex(op, "samp", samp, pred);
  if (pred.dim() != 3 || pred.size(1) != pred.size(2))
    fail(op, "pred has shape ", shape_text(pred), ", expected [B, N, N]");
  if (shape(samp) != shape(pred))
    fail(op, "samp has shape ", shape_text(samp), ", expected ", shape_text(pred), " as pred");
  if (pred.size(1) < 1) fail(op, "N must be at least 1, got N=0");
  check_blend_options(op, beta, target_trace, loading, shrinkage);
  check_device(op, "pred", pred, launcher);
}

template <typename T>
BlendProblem<T> blend_problem(const Tensor& pred, const Tensor& samp, double beta,
                              std::optional<double> target_trace, double loading,
                              double shrinkage) {
  BlendProblem<T> p{};
  p.scenes = pred.size(0);
  p.elements = pred.size(1);
  p.pred = real_pointer<T>(pred);
  p.samp = real_pointer<T>(samp);
  for (int i = 0; i < 3; ++i) {
    p.pred_stride[i] = pred.stride(i);
    p.samp_stride[i] = samp.stride(i);
  }
  p.options = blend_options(p.elements, beta, target_trace, loading, shrinkage);
  return p;
}

}  // namespace riskernels
