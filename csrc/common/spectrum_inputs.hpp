// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs of factored_spectrum, on every device.
#pragma once

#include <optional>

#include "factored_inputs.hpp"

namespace riskernels {

inline void check_spectrum(const char* op, DeviceType launcher, const Tensor& factor,
                           const std::optional<Tensor>& rho) {
  check_factor(op, "factor", factor, "r");
  check_rho(op, rho, factor);
  check_device(op, "factor", factor, launcher);
}

inline void check_spectrum_backward(const char* op, DeviceType launcher, const Tensor& grad,
                                    const Tensor& factor, const Tensor& vectors) {
  check_spectrum(op, launcher, factor, std::nullopt);
  const int64_t b = factor.size(0), r = factor.size(2);
  check_real_companion(op, "grad", grad, {b, r}, factor);
  check_complex(op, "vectors", vectors, factor);
  check_shape(op, "vectors", vectors, {b, r, r});
}

template <typename T>
FactoredSpectrumProblem<T> spectrum_problem(const Tensor& factor,
                                            const std::optional<Tensor>& rho) {
  FactoredSpectrumProblem<T> p{};
  p.scenes = factor.size(0);
  p.elements = factor.size(1);
  p.factor = factor_of<T>(factor);
  if (rho.has_value()) {
    p.rho = real_pointer<T>(*rho);
    p.rho_stride = rho->stride(0);
  }
  return p;
}

}  // namespace riskernels
