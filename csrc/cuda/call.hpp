// SPDX-License-Identifier: Apache-2.0
// What surrounds the kernels of one operator call: device, stream, workspace, and the operator's
// name on every error.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <vector>

#include "../common/tensor_checks.hpp"
#include "launch.cuh"

namespace riskernels::cuda {

struct DeviceFacts {
  int multiprocessors;
  int shared_limit;  // bytes of shared memory that one block may have
};

// Asked once for all devices: a query costs as much as a launch.
inline const DeviceFacts& device_facts(int device) {
  static const std::vector<DeviceFacts> all = [] {
    int count = 0;
    check(cudaGetDeviceCount(&count), "number of devices");
    std::vector<DeviceFacts> facts(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) {
      auto& of = facts[static_cast<std::size_t>(i)];
      check(cudaDeviceGetAttribute(&of.multiprocessors, cudaDevAttrMultiProcessorCount, i),
            "number of multiprocessors");
      check(cudaDeviceGetAttribute(&of.shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, i),
            "shared memory of a block");
    }
    return facts;
  }();
  return all.at(static_cast<std::size_t>(device));
}

// The device of a tensor made current, its current stream, and memory of torch's allocator. That
// allocator orders by stream and takes part in graph capture, so the memory may go back when the
// call returns, before the kernels have run.
class Call {
 public:
  explicit Call(const Tensor& like)
      : like_(like), device_(like.get_device_index()), guard_(device_) {
    const auto& facts = device_facts(device_);
    target_.multiprocessors = facts.multiprocessors;
    target_.shared_limit = facts.shared_limit;
    target_.device = device_;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &target_.stream));
    // One captured pointer: std::function holds it without an allocation.
    target_.workspace = [this](int64_t bytes) { return workspace(bytes); };
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const Target& target() const { return target_; }

 private:
  void* workspace(int64_t bytes) {
    kept_.push_back(torch::stable::new_empty(like_, {bytes}, ScalarType::Byte));
    return kept_.back().data_ptr();
  }

  const Tensor& like_;
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Tensor> kept_;
  Target target_{};
};

// f(target, T) with T = float or double by the dtype of `like`; an error carries the operator.
template <typename F>
void run_on_device(const char* op, const Tensor& like, const F& f) {
  try {
    const Call call(like);
    if (real_of(like.scalar_type()) == ScalarType::Float)
      f(call.target(), float{});
    else
      f(call.target(), double{});
  } catch (const std::exception& error) {
    fail(op, error.what());
  }
}

}  // namespace riskernels::cuda
