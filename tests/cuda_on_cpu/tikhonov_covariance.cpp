// SPDX-License-Identifier: Apache-2.0
// tikhonov_covariance on the block executor. Compiled once per precision and pass.
#include "cuda/tikhonov_covariance.cuh"

#include "tikhonov.hpp"

namespace cuda_on_cpu {

using Real = RISKERNELS_REAL;

#if RISKERNELS_BACKWARD
template <>
void backward<Real>(Case& c) {
  riskernels::cuda::tikhonov_covariance_backward(c.target(), tikhonov_problem<Real>(c),
                                                 incoming_gradient<Real>(c),
                                                 tikhonov_gradients<Real>(c));
}
#else
template <>
void forward<Real>(Case& c) {
  riskernels::cuda::tikhonov_covariance(c.target(), tikhonov_problem<Real>(c),
                                        c.output<Real>("out"));
}
#endif

}  // namespace cuda_on_cpu
