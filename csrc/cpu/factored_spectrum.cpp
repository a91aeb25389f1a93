// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_spectrum on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/outputs.hpp"
#include "../common/spectrum_inputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& factor, std::optional<Tensor> rho) {
  check_spectrum("factored_spectrum", DeviceType::CPU, factor, rho);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0), r = factor.size(2);
  Tensor values = new_output(factor, {scenes, r}, real);
  Tensor vectors = new_output(factor, {scenes, r, r});
  const auto run = [&]<typename T>(T) {
    const auto problem = spectrum_problem<T>(factor, rho);
    T* const values_data = mutable_real_pointer<T>(values);
    T* const vectors_data = mutable_real_pointer<T>(vectors);
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_spectrum_forward, problem, values_data, vectors_data, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {values, vectors};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& factor, const Tensor& vectors,
                                    bool need_factor, bool need_rho) {
  check_spectrum_backward("factored_spectrum_backward", DeviceType::CPU, grad, factor, vectors);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0);
  Tensor grad_factor = new_gradient(factor, need_factor);
  Tensor grad_rho = new_output(grad, {need_rho ? scenes : 0});
  if (!need_factor && !need_rho) return {grad_factor, grad_rho};
  const Tensor packed = torch::stable::contiguous(vectors);
  const auto run = [&]<typename T>(T) {
    const auto problem = spectrum_problem<T>(factor, std::nullopt);
    const T* const grad_data = real_pointer<T>(grad);
    const T* const vectors_data = real_pointer<T>(packed);
    const int64_t grad_stride[] = {grad.stride(0), grad.stride(1)};
    T* const gf = need_factor ? mutable_real_pointer<T>(grad_factor) : nullptr;
    T* const gr = need_rho ? mutable_real_pointer<T>(grad_rho) : nullptr;
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_spectrum_backward, problem, grad_data, grad_stride, vectors_data, gf,
                     gr, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {grad_factor, grad_rho};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("factored_spectrum_forward", TORCH_BOX(&forward));
  m.impl("factored_spectrum_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
