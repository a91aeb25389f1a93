// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs of steering_power, on every device.
#pragma once

#include <utility>

#include "factored_inputs.hpp"
#include "steering_problem.hpp"

namespace riskernels {

inline void check_real(const char* op, const char* name, const Tensor& tensor,
                       const Tensor& factor) {
  const auto type = tensor.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double)
    fail(op, name, " has dtype ", dtype_text(type), ", expected torch.float32 or torch.float64");
  if (!same_device(tensor, factor))
    fail(op, name, " is on ", device_text(tensor), ", expected ", device_text(factor),
         " as the first argument");
}

inline void check_steering_power(const char* op, DeviceType launcher, const Tensor& factor,
                                 const Tensor& phi, const Tensor& theta, const Tensor& r,
                                 const Tensor& positions, double wavelength) {
  check_factor(op, "factor", factor, "k");
  const int64_t b = factor.size(0), n = factor.size(1);
  const std::pair<const char*, const Tensor*> points[] = {
      {"phi", &phi}, {"theta", &theta}, {"r", &r}};
  for (const auto& [name, tensor] : points) {
    check_real(op, name, *tensor, factor);
    if (tensor->scalar_type() != phi.scalar_type())
      fail(op, name, " has dtype ", dtype_text(tensor->scalar_type()), ", expected ",
           dtype_text(phi.scalar_type()), " as phi");
    const int64_t rank = tensor->dim();
    if ((rank != 1 && rank != 2) || (rank == 2 && tensor->size(0) != b))
      fail(op, name, " has shape ", shape_text(*tensor), ", expected [G] or [", b, ", G]");
    if (shape(*tensor) != shape(phi))
      fail(op, name, " has shape ", shape_text(*tensor), ", expected ", shape_text(phi), " as phi");
  }
  check_real(op, "positions", positions, factor);
  check_shape(op, "positions", positions, {n, 3});
  if (!(std::isfinite(wavelength) && wavelength > 0))
    fail(op, "wavelength is ", wavelength, ", expected a finite number > 0 (in metres)");
  check_device(op, "factor", factor, launcher);
}

inline void check_steering_power_backward(const char* op, DeviceType launcher, const Tensor& grad,
                                          const Tensor& factor, const Tensor& phi,
                                          const Tensor& theta, const Tensor& r,
                                          const Tensor& positions, double wavelength) {
  check_steering_power(op, launcher, factor, phi, theta, r, positions, wavelength);
  check_real_companion(op, "grad", grad, {factor.size(0), phi.size(phi.dim() - 1)}, factor);
}

inline RealMatrix real_matrix(const Tensor& tensor) {
  const int64_t rank = tensor.dim();
  return {tensor.data_ptr(),
          tensor.scalar_type() == ScalarType::Double,
          {rank == 2 ? tensor.stride(0) : 0, tensor.stride(rank - 1)}};
}

template <typename T>
SteeringProblem<T> steering_problem(const Tensor& factor, const Tensor& phi, const Tensor& theta,
                                    const Tensor& r, const Tensor& positions, double wavelength,
                                    bool taper) {
  SteeringProblem<T> p{};
  p.scenes = factor.size(0);
  p.elements = factor.size(1);
  p.points = phi.size(phi.dim() - 1);
  p.factor = factor_of<T>(factor);
  p.phi = real_matrix(phi);
  p.theta = real_matrix(theta);
  p.r = real_matrix(r);
  p.shared = p.phi.stride[0] == 0 && p.theta.stride[0] == 0 && p.r.stride[0] == 0;
  p.positions = real_matrix(positions);
  p.wavelength = wavelength;
  p.taper = taper;
  return p;
}

}  // namespace riskernels
