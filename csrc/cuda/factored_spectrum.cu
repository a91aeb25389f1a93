// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of factored_spectrum on CUDA.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/outputs.hpp"
#include "../common/spectrum_inputs.hpp"
#include "call.hpp"
#include "factored_spectrum.cuh"
#include "resources.hpp"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& factor, std::optional<Tensor> rho) {
  const char* op = "factored_spectrum";
  check_spectrum(op, DeviceType::CUDA, factor, rho);
  const int64_t scenes = factor.size(0), r = factor.size(2);
  Tensor values = new_output(factor, {scenes, r}, real_of(factor.scalar_type()));
  Tensor vectors = new_output(factor, {scenes, r, r});
  if (scenes == 0) return {values, vectors};
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    cuda::factored_spectrum_forward(device, spectrum_problem<T>(factor, rho),
                                    mutable_real_pointer<T>(values),
                                    mutable_real_pointer<T>(vectors));
  });
  return {values, vectors};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& factor, const Tensor& vectors,
                                    bool need_factor, bool need_rho) {
  const char* op = "factored_spectrum_backward";
  check_spectrum_backward(op, DeviceType::CUDA, grad, factor, vectors);
  const int64_t scenes = factor.size(0);
  Tensor grad_factor = new_gradient(factor, need_factor);
  Tensor grad_rho = new_output(grad, {need_rho ? scenes : 0});
  if (scenes == 0 || (!need_factor && !need_rho)) return {grad_factor, grad_rho};
  const Tensor packed = torch::stable::contiguous(vectors);
  cuda::run_on_device(op, factor, [&]<typename T>(const cuda::Target& device, T) {
    const int64_t grad_stride[] = {grad.stride(0), grad.stride(1)};
    cuda::factored_spectrum_backward(device, spectrum_problem<T>(factor, std::nullopt),
                                     real_pointer<T>(grad), grad_stride, real_pointer<T>(packed),
                                     need_factor ? mutable_real_pointer<T>(grad_factor) : nullptr,
                                     need_rho ? mutable_real_pointer<T>(grad_rho) : nullptr);
  });
  return {grad_factor, grad_rho};
}

template <typename T>
void example(const cuda::Target& device, const cuda::ExampleShape& shape) {
  FactoredSpectrumProblem<T> p{};
  T* const memory = cuda::example_pointer<T>();
  p.scenes = shape.scenes;
  p.elements = shape.elements;
  p.factor = cuda::example_factor<T>(shape.elements, shape.columns);
  p.rho = memory;
  p.rho_stride = 1;
  const int64_t grad_stride[] = {shape.columns, 1};
  if (shape.backward)
    cuda::factored_spectrum_backward(device, p, static_cast<const T*>(memory), grad_stride,
                                     static_cast<const T*>(memory), memory, memory);
  else
    cuda::factored_spectrum_forward(device, p, memory, memory);
}

const cuda::AddExamples kExamples("factored_spectrum", &example<float>, &example<double>,
                                  cuda::kSpectrumShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("factored_spectrum_forward", TORCH_BOX(&forward));
  m.impl("factored_spectrum_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
