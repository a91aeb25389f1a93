// SPDX-License-Identifier: Apache-2.0
// Launcher and registration of subspace_leakage on CUDA.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/leakage_inputs.hpp"
#include "../common/outputs.hpp"
#include "call.hpp"
#include "resources.hpp"
#include "subspace_leakage.cuh"

namespace riskernels {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& cov, const Tensor& steering,
                                                   const Tensor& num_sources, double ridge) {
  const char* op = "subspace_leakage";
  check_leakage(op, DeviceType::CUDA, cov, steering, num_sources, ridge);
  const int64_t b = steering.size(0), n = steering.size(1), k = steering.size(2);
  const auto real = real_of(cov.scalar_type());
  Tensor leakage = new_output(cov, {b}, real);
  Tensor total = new_output(cov, {b}, real);
  Tensor basis = new_output(cov, {b, n, k});
  Tensor projected = new_output(cov, {b, k, n});
  if (b == 0) return {leakage, total, basis, projected};
  cuda::run_on_device(op, cov, [&]<typename T>(const cuda::Target& target, T) {
    cuda::subspace_leakage_forward(target, leakage_problem<T>(cov, steering, num_sources, ridge),
                                   leakage_state<T>(leakage, total, basis, projected));
  });
  return {leakage, total, basis, projected};
}

Tensor backward(const Tensor& grad, const Tensor& cov, const Tensor& leakage, const Tensor& total,
                const Tensor& basis, const Tensor& projected) {
  const char* op = "subspace_leakage_backward";
  check_leakage_backward(op, DeviceType::CUDA, grad, cov, leakage, total, basis, projected);
  Tensor grad_cov = new_output(cov, shape(cov));
  if (cov.size(0) == 0) return grad_cov;
  const Tensor packed[] = {torch::stable::contiguous(leakage), torch::stable::contiguous(total),
                           torch::stable::contiguous(basis), torch::stable::contiguous(projected)};
  cuda::run_on_device(op, cov, [&]<typename T>(const cuda::Target& target, T) {
    cuda::subspace_leakage_backward(target, leakage_problem<T>(cov, basis),
                                    leakage_state<T>(packed[0], packed[1], packed[2], packed[3]),
                                    real_pointer<T>(grad), grad.stride(0),
                                    mutable_real_pointer<T>(grad_cov));
  });
  return grad_cov;
}

template <typename T>
void example(const cuda::Target& target, const cuda::ExampleShape& shape) {
  const int64_t n = shape.elements, k = shape.sources;
  LeakageProblem<T> problem{};
  problem.scenes = shape.scenes;
  problem.elements = n;
  problem.columns = k;
  problem.cov = problem.steering = cuda::example_pointer<T>();
  const int64_t cov[] = {n * n, n, 1}, steering[] = {n * k, k, 1};
  for (int i = 0; i < 3; ++i) {
    problem.cov_stride[i] = cov[i];
    problem.steering_stride[i] = steering[i];
  }
  problem.num_sources = cuda::example_pointer<int64_t>();
  problem.num_sources_stride = 1;
  problem.ridge = 1e-4;
  T* const memory = cuda::example_pointer<T>();
  const LeakageState<T> state{memory, memory, memory, memory};
  if (shape.backward)
    cuda::subspace_leakage_backward(target, problem, state, static_cast<const T*>(memory),
                                    int64_t{1}, memory);
  else
    cuda::subspace_leakage_forward(target, problem, state);
}

const cuda::AddExamples kExamples("subspace_leakage", &example<float>, &example<double>,
                                  cuda::kLeakageShapes);

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(riskernels, CUDA, m) {
  m.impl("subspace_leakage_forward", TORCH_BOX(&forward));
  m.impl("subspace_leakage_backward", TORCH_BOX(&backward));
}

}  // namespace riskernels
