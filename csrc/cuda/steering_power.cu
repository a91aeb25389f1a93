// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of steering_power on CUDA.
#include <torch/csrc/stable/library.h>

#include "../common/outputs.hpp"
#include "../common/steering_inputs.hpp"
#include "call.hpp"
#include "resources.hpp"
#include "steering_power.cuh"

namespace riskernels {
namespace {

Tensor forward(const Tensor& factor, const Tensor& phi, const Tensor& theta, const Tensor& r,
               const Tensor& positions, double wavelength, bool taper) {
  const char* op = "steering_power";
  check_steering_power(op, DeviceType::CUDA, factor, phi, theta, r, positions, wavelength);
  const int64_t scenes = factor.size(0), points = phi.size(phi.dim() - 1);
  Tensor power = new_output(factor, {scenes, points}, real_of(factor.scalar_type()));
  if (scenes == 0 || points == 0) return power;
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem = steering_problem<T>(factor, phi, theta, r, positions, wavelength, taper);
    cuda::steering_power_forward(device, problem, mutable_real_pointer<T>(power));
  });
  return power;
}

Tensor backward(const Tensor& grad, const Tensor& factor, const Tensor& phi, const Tensor& theta,
                const Tensor& r, const Tensor& positions, double wavelength, bool taper) {
  const char* op = "steering_power_backward";
  check_steering_power_backward(op, DeviceType::CUDA, grad, factor, phi, theta, r, positions,
                                wavelength);
  Tensor gradient = new_gradient(factor, true);
  if (factor.size(0) == 0) return gradient;
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const auto problem = steering_problem<T>(factor, phi, theta, r, positions, wavelength, taper);
    const cuda::PowerGradient<T> of_power{real_pointer<T>(grad), {grad.stride(0), grad.stride(1)}};
    cuda::steering_power_backward(device, problem, of_power, mutable_real_pointer<T>(gradient));
  });
  return gradient;
}

template <typename T>
void example(const cuda::Target& device, const cuda::ExampleShape& shape) {
  SteeringProblem<T> p{};
  T* const memory = cuda::example_pointer<T>();
  const RealMatrix points{memory, true, {0, 1}};
  p.scenes = shape.scenes;
  p.elements = shape.elements;
  p.points = shape.points;
  p.factor = cuda::example_factor<T>(shape.elements, shape.columns);
  p.shared = true;
  p.phi = p.theta = p.r = points;
  p.positions = {memory, true, {3, 1}};
  p.wavelength = 1;
  if (shape.backward)
    cuda::steering_power_backward(device, p, cuda::PowerGradient<T>{memory, {shape.points, 1}},
                                  memory);
  else
    cuda::steering_power_forward(device, p, memory);
}

const cuda::AddExamples kExamples("steering_power", &example<float>, &example<double>,
                                  cuda::kSteeringShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("steering_power", TORCH_BOX(&forward));
  m.impl("steering_power_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
