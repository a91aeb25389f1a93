// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of tikhonov_covariance on CUDA.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tikhonov_inputs.hpp"
#include "call.hpp"
#include "resources.hpp"
#include "tikhonov_covariance.cuh"

namespace riskernels {
namespace {

Tensor covariance(const Tensor& y, const Tensor& h, const Tensor& codes, double alpha,
                  bool relative, bool center) {
  const char* op = "tikhonov_covariance";
  check_tikhonov(op, DeviceType::CUDA, y, h, codes, alpha);
  const int64_t n = codes.size(2);
  Tensor out = new_output(y, {y.size(0), n, n});
  if (y.size(0) == 0) return out;
  cuda::run_on_device(op, y, [&]<typename T>(const cuda::Target& target, T) {
    const auto problem = tikhonov_problem<T>(y, h, codes, alpha, relative, center);
    cuda::tikhonov_covariance(target, problem, mutable_real_pointer<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> covariance_backward(const Tensor& grad, const Tensor& y,
                                                       const Tensor& h, const Tensor& codes,
                                                       double alpha, bool relative, bool center,
                                                       bool need_y, bool need_h, bool need_codes) {
  const char* op = "tikhonov_covariance_backward";
  check_tikhonov(op, DeviceType::CUDA, y, h, codes, alpha);
  check_complex(op, "grad", grad, y);
  check_shape(op, "grad", grad, {y.size(0), codes.size(2), codes.size(2)});
  GradientTensors out(y, h, codes, need_y, need_h, need_codes);
  if (y.size(0) == 0 || !(need_y || need_h || need_codes)) return {out.y, out.h, out.codes};
  cuda::run_on_device(op, y, [&]<typename T>(const cuda::Target& target, T) {
    const auto problem = tikhonov_problem<T>(y, h, codes, alpha, relative, center);
    cuda::tikhonov_covariance_backward(target, problem, incoming<T>(grad), out.pointers<T>());
  });
  return {out.y, out.h, out.codes};
}

template <typename T>
void example(const cuda::Target& target, const cuda::ExampleShape& shape) {
  const auto problem = cuda::example_problem<T>(shape);
  const auto n = problem.elements;
  if (shape.backward)
    cuda::tikhonov_covariance_backward(
        target, problem, IncomingGradient<T>{cuda::example_pointer<T>(), {n * n, n, 1}},
        cuda::example_gradients<T>());
  else
    cuda::tikhonov_covariance(target, problem, cuda::example_pointer<T>());
}

const cuda::AddExamples kExamples("tikhonov_covariance", &example<float>, &example<double>,
                                  cuda::kTikhonovShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("tikhonov_covariance", TORCH_BOX(&covariance));
  m.impl("tikhonov_covariance_backward", TORCH_BOX(&covariance_backward));
}

}  // namespace riskernels
