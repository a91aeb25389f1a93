// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_nmse on the CPU.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/factored_inputs.hpp"
#include "../common/outputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& factor, std::optional<Tensor> rho,
                                           const Tensor& target, std::optional<Tensor> mask,
                                           double lam_diag, double lam_off, double eps) {
  check_factored_nmse("factored_nmse", DeviceType::CPU, factor, rho, target, mask, lam_diag,
                      lam_off, eps);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0), columns = factor.size(2) + target.size(2);
  Tensor nmse = new_output(factor, {scenes}, real);
  Tensor sums = new_output(factor, {scenes, 4}, ScalarType::Double);
  Tensor gram = new_output(factor, {scenes, columns, columns}, ScalarType::ComplexDouble);
  const auto run = [&]<typename T>(T) {
    const auto problem =
        factored_nmse_problem<T>(factor, rho, target, mask, lam_diag, lam_off, eps);
    T* const nmse_data = mutable_real_pointer<T>(nmse);
    auto* const sums_data = mutable_real_pointer<double>(sums);
    auto* const gram_data = mutable_real_pointer<double>(gram);
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_nmse_forward, problem, nmse_data, sums_data, gram_data, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {nmse, sums, gram};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& factor,
                                            std::optional<Tensor> rho, const Tensor& target,
                                            const Tensor& sums, const Tensor& gram,
                                            std::optional<Tensor> mask, double lam_diag,
                                            double lam_off, double eps, bool need_factor,
                                            bool need_rho, bool need_target) {
  const char* op = "factored_nmse_backward";
  check_factored_nmse(op, DeviceType::CPU, factor, rho, target, mask, lam_diag, lam_off, eps);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0);
  check_factored_state(op, grad, gram, factor, target);
  check_companion(op, "sums", sums, ScalarType::Double, {scenes, 4}, factor);
  const Tensor packed_sums = torch::stable::contiguous(sums);
  const Tensor packed_gram = torch::stable::contiguous(gram);
  Tensor grad_factor = new_gradient(factor, need_factor);
  Tensor grad_rho = new_output(factor, {need_rho ? scenes : 0}, real);
  Tensor grad_target = new_gradient(target, need_target);
  if (!need_factor && !need_rho && !need_target) return {grad_factor, grad_rho, grad_target};
  const auto run = [&]<typename T>(T) {
    const auto problem =
        factored_nmse_problem<T>(factor, rho, target, mask, lam_diag, lam_off, eps);
    const T* const grad_data = real_pointer<T>(grad);
    const int64_t grad_stride = grad.stride(0);
    const auto* const sums_data = real_pointer<double>(packed_sums);
    const auto* const gram_data = real_pointer<double>(packed_gram);
    T* const gx = need_factor ? mutable_real_pointer<T>(grad_factor) : nullptr;
    T* const gr = need_rho ? mutable_real_pointer<T>(grad_rho) : nullptr;
    T* const gy = need_target ? mutable_real_pointer<T>(grad_target) : nullptr;
    for_each_range(scenes, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(factored_nmse_backward, problem, grad_data, grad_stride, sums_data, gram_data,
                     gx, gr, gy, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return {grad_factor, grad_rho, grad_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("factored_nmse_forward", TORCH_BOX(&forward));
  m.impl("factored_nmse_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
