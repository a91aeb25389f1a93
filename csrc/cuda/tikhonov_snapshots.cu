// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of tikhonov_snapshots on CUDA.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tikhonov_inputs.hpp"
#include "call.hpp"
#include "resources.hpp"
#include "tikhonov_snapshots.cuh"

namespace riskernels {
namespace {

Tensor snapshots(const Tensor& y, const Tensor& h, const Tensor& codes, double alpha,
                 bool relative) {
  const char* op = "tikhonov_snapshots";
  check_tikhonov(op, DeviceType::CUDA, y, h, codes, alpha);
  Tensor out = new_output(y, {y.size(0), y.size(1), codes.size(2)});
  if (y.size(0) == 0) return out;
  cuda::run_on_device(op, y, [&]<typename T>(const cuda::Target& target, T) {
    const auto problem = tikhonov_problem<T>(y, h, codes, alpha, relative, false);
    cuda::tikhonov_snapshots(target, problem, mutable_real_pointer<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> snapshots_backward(const Tensor& grad, const Tensor& y,
                                                      const Tensor& h, const Tensor& codes,
                                                      double alpha, bool relative, bool need_y,
                                                      bool need_h, bool need_codes) {
  const char* op = "tikhonov_snapshots_backward";
  check_tikhonov(op, DeviceType::CUDA, y, h, codes, alpha);
  check_complex(op, "grad", grad, y);
  check_shape(op, "grad", grad, {y.size(0), y.size(1), codes.size(2)});
  GradientTensors out(y, h, codes, need_y, need_h, need_codes);
  if (y.size(0) == 0 || !(need_y || need_h || need_codes)) return {out.y, out.h, out.codes};
  cuda::run_on_device(op, y, [&]<typename T>(const cuda::Target& target, T) {
    const auto problem = tikhonov_problem<T>(y, h, codes, alpha, relative, false);
    cuda::tikhonov_snapshots_backward(target, problem, incoming<T>(grad), out.pointers<T>());
  });
  return {out.y, out.h, out.codes};
}

template <typename T>
void example(const cuda::Target& target, const cuda::ExampleShape& shape) {
  const auto problem = cuda::example_problem<T>(shape);
  const auto n = problem.elements;
  if (shape.backward)
    cuda::tikhonov_snapshots_backward(
        target, problem,
        IncomingGradient<T>{cuda::example_pointer<T>(), {problem.snapshots * n, n, 1}},
        cuda::example_gradients<T>());
  else
    cuda::tikhonov_snapshots(target, problem, cuda::example_pointer<T>());
}

const cuda::AddExamples kExamples("tikhonov_snapshots", &example<float>, &example<double>,
                                  cuda::kTikhonovShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("tikhonov_snapshots", TORCH_BOX(&snapshots));
  m.impl("tikhonov_snapshots_backward", TORCH_BOX(&snapshots_backward));
}

}  // namespace riskernels
