// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of tikhonov_covariance on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tikhonov_inputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

// Complex products L N^2 of a scene from which on dividing it among threads saves more than it
// costs.
constexpr int64_t kWorthSharing = int64_t(1) << 17;

Tensor covariance(const Tensor& y, const Tensor& h, const Tensor& codes, double alpha,
                  bool relative, bool center) {
  check_tikhonov("tikhonov_covariance", DeviceType::CPU, y, h, codes, alpha);
  const int64_t n = codes.size(2);
  Tensor out = new_output(y, {y.size(0), n, n});
  const auto run = [&]<typename T>(T) {
    const auto problem = tikhonov_problem<T>(y, h, codes, alpha, relative, center);
    T* const data = mutable_real_pointer<T>(out);
    const bool stream = problem.scenes * n * n * 2 * int64_t(sizeof(T)) > kStreamBytes;
    int64_t shares = 0;
    RISKERNELS_RUN(tikhonov_covariance_shares, problem, shares);
    const bool divided =
        fewer_than_threads(problem.scenes) && problem.snapshots * n * n >= kWorthSharing;
    const int64_t unit = divided ? 1 : shares;
    for_each_range(problem.scenes * shares / unit, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(tikhonov_covariance, problem, data, stream, begin * unit, end * unit);
    });
  };
  y.scalar_type() == ScalarType::ComplexFloat ? run(float{}) : run(double{});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> covariance_backward(const Tensor& grad, const Tensor& y,
                                                       const Tensor& h, const Tensor& codes,
                                                       double alpha, bool relative, bool center,
                                                       bool need_y, bool need_h, bool need_codes) {
  const char* op = "tikhonov_covariance_backward";
  check_tikhonov(op, DeviceType::CPU, y, h, codes, alpha);
  check_complex(op, "grad", grad, y);
  check_shape(op, "grad", grad, {y.size(0), codes.size(2), codes.size(2)});
  GradientTensors out(y, h, codes, need_y, need_h, need_codes);
  const auto run = [&]<typename T>(T) {
    const auto problem = tikhonov_problem<T>(y, h, codes, alpha, relative, center);
    const auto gradient = incoming<T>(grad);
    const auto pointers = out.pointers<T>();
    for_each_range(problem.scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(tikhonov_covariance_backward, problem, gradient, pointers, begin, end);
    });
  };
  y.scalar_type() == ScalarType::ComplexFloat ? run(float{}) : run(double{});
  return {out.y, out.h, out.codes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("tikhonov_covariance", TORCH_BOX(&covariance));
  m.impl("tikhonov_covariance_backward", TORCH_BOX(&covariance_backward));
}

}  // namespace riskernels
