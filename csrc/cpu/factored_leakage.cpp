// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_leakage on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/factored_inputs.hpp"
#include "../common/outputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& factor, std::optional<Tensor> rho,
                                   const Tensor& steering, const Tensor& num_sources,
                                   double ridge) {
  check_factored_leakage("factored_leakage", DeviceType::CPU, factor, rho, steering, num_sources,
                         ridge);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0), columns = factor.size(2) + steering.size(2);
  Tensor leakage = new_output(factor, {scenes}, real);
  Tensor gram = new_output(factor, {scenes, columns, columns}, ScalarType::ComplexDouble);
  const auto run = [&]<typename T>(T) {
    const auto problem = factored_leakage_problem<T>(factor, rho, steering, num_sources, ridge);
    T* const leakage_data = mutable_real_pointer<T>(leakage);
    auto* const gram_data = mutable_real_pointer<double>(gram);
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_leakage_forward, problem, leakage_data, gram_data, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {leakage, gram};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& factor,
                                    std::optional<Tensor> rho, const Tensor& steering,
                                    const Tensor& num_sources, const Tensor& leakage,
                                    const Tensor& gram, double ridge, bool need_factor,
                                    bool need_rho) {
  const char* op = "factored_leakage_backward";
  check_factored_leakage(op, DeviceType::CPU, factor, rho, steering, num_sources, ridge);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0);
  check_factored_state(op, grad, gram, factor, steering);
  check_companion(op, "leakage", leakage, real, {scenes}, factor);
  const Tensor packed_leakage = torch::stable::contiguous(leakage);
  const Tensor packed_gram = torch::stable::contiguous(gram);
  Tensor grad_factor = new_gradient(factor, need_factor);
  Tensor grad_rho = new_output(factor, {need_rho ? scenes : 0}, real);
  if (!need_factor && !need_rho) return {grad_factor, grad_rho};
  const auto run = [&]<typename T>(T) {
    const auto problem = factored_leakage_problem<T>(factor, rho, steering, num_sources, ridge);
    const T* const grad_data = real_pointer<T>(grad);
    const int64_t grad_stride = grad.stride(0);
    const T* const leakage_data = real_pointer<T>(packed_leakage);
    const auto* const gram_data = real_pointer<double>(packed_gram);
    T* const gx = need_factor ? mutable_real_pointer<T>(grad_factor) : nullptr;
    T* const gr = need_rho ? mutable_real_pointer<T>(grad_rho) : nullptr;
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_leakage_backward, problem, grad_data, grad_stride, leakage_data,
                     gram_data, gx, gr, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {grad_factor, grad_rho};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("factored_leakage_forward", TORCH_BOX(&forward));
  m.impl("factored_leakage_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
