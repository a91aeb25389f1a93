// SPDX-License-Identifier: Apache-2.0
// Inputs of steering_power as plain pointers and strides.
#pragma once

#include <cstdint>

#include "everywhere.hpp"
#include "factored_problem.hpp"

namespace riskernels {

// A matrix of float or double, strides in elements.
struct RealMatrix {
  const void* data;
  bool wide;  // double
  int64_t stride[2];

  RISKERNELS_EVERYWHERE double at(int64_t i, int64_t j) const {
    const int64_t k = i * stride[0] + j * stride[1];
    return wide ? static_cast<const double*>(data)[k]
                : static_cast<double>(static_cast<const float*>(data)[k]);
  }
};

template <typename T>
struct SteeringProblem {
  int64_t scenes, elements, points;  // B, N, G
  Factor<T> factor;                  // X, k columns
  bool shared;                       // by all scenes: points [G], or expanded ones
  RealMatrix phi, theta, r;          // [B, G]
  RealMatrix positions;              // [N, 3]
  double wavelength;
  bool taper;
};

}  // namespace riskernels
