// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of steering_power on the CPU.
#include <torch/csrc/stable/library.h>

#include "../common/outputs.hpp"
#include "../common/steering_inputs.hpp"
#include "kernels.hpp"
#include "ranges.hpp"
#include "steering_chunks.hpp"

namespace riskernels {
namespace {

Tensor forward(const Tensor& factor, const Tensor& phi, const Tensor& theta, const Tensor& r,
               const Tensor& positions, double wavelength, bool taper) {
  check_steering_power("steering_power", DeviceType::CPU, factor, phi, theta, r, positions,
                       wavelength);
  const auto real = real_of(factor.scalar_type());
  Tensor power = new_output(factor, {factor.size(0), phi.size(phi.dim() - 1)}, real);
  const auto run = [&]<typename T>(T) {
    const auto problem = steering_problem<T>(factor, phi, theta, r, positions, wavelength, taper);
    T* const power_data = mutable_real_pointer<T>(power);
    int64_t group, blocks;
    RISKERNELS_RUN(steering_power_tasks, problem, group, blocks);
    for_each_range((problem.scenes + group - 1) / group * blocks, [&](int64_t begin, int64_t end) {
      RISKERNELS_RUN(steering_power, problem, power_data, begin, end);
    });
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return power;
}

Tensor backward(const Tensor& grad, const Tensor& factor, const Tensor& phi, const Tensor& theta,
                const Tensor& r, const Tensor& positions, double wavelength, bool taper) {
  check_steering_power_backward("steering_power_backward", DeviceType::CPU, grad, factor, phi,
                                theta, r, positions, wavelength);
  const auto real = real_of(factor.scalar_type());
  const int64_t scenes = factor.size(0), n = factor.size(1), k = factor.size(2);
  Tensor gradient = new_output(factor, {scenes, n, k});
  const auto run = [&]<typename T>(T) {
    const auto problem = steering_problem<T>(factor, phi, theta, r, positions, wavelength, taper);
    const T* const grad_data = real_pointer<T>(grad);
    T* const gradient_data = mutable_real_pointer<T>(gradient);
    const int64_t grad_stride[] = {grad.stride(0), grad.stride(1)};
    const auto sum_parts = [&](int64_t parts, T* sums) {
      for_each_range(scenes * parts, [&](int64_t begin, int64_t end) {
        RISKERNELS_RUN(steering_power_backward, problem, grad_data, grad_stride, parts, sums, begin,
                       end);
      });
    };
    // Few scenes are divided among threads chunk by chunk; the sums are the same ones either way.
    const int64_t chunks = steering_chunks(problem.points);
    if (chunks < 2 || !fewer_than_threads(scenes)) {
      sum_parts(1, gradient_data);
      return;
    }
    Tensor sums = new_output(factor, {scenes, chunks, n, k});
    sum_parts(chunks, mutable_real_pointer<T>(sums));
    const T* const sums_data = real_pointer<T>(sums);
    RISKERNELS_RUN(steering_power_finish, problem, chunks, sums_data, gradient_data, 0, scenes);
  };
  real == ScalarType::Float ? run(float{}) : run(double{});
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CPU, m) {
  m.impl("steering_power", TORCH_BOX(&forward));
  m.impl("steering_power_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
