// SPDX-License-Identifier: Apache-2.0
// Where kernels run, and the one way to start them.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "device.cuh"

namespace riskernels::cuda {

struct Target {
  int multiprocessors;
  int64_t shared_limit;  // bytes of shared memory that one block may have
  void* stream;          // cudaStream_t
  // Device memory for the kernels of one operator call; valid until they have run.
  std::function<void*(int64_t bytes)> workspace;
  int device = 0;
};

#if defined(__CUDACC__)
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Blocks get more than 48 KiB only on request, which costs time on the host: made once for a kernel
// and a device, for as much as the device has.
inline void allow_shared(const Target& target, const void* kernel) {
  thread_local std::vector<std::pair<const void*, int>> allowed;
  for (const auto& [known, device] : allowed)
    if (known == kernel && device == target.device) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(target.shared_limit)),
        "shared memory request");
  allowed.emplace_back(kernel, target.device);
}
#endif

template <typename... Parameters, typename... Arguments>
void launch(const Target& target, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            int64_t shared, Arguments... arguments) {
#if defined(__CUDACC__)
  if (shared > 48 * 1024) allow_shared(target, reinterpret_cast<const void*>(kernel));
  kernel<<<grid, threads, static_cast<std::size_t>(shared),
           static_cast<cudaStream_t>(target.stream)>>>(arguments...);
  check(cudaGetLastError(), "kernel launch");
#else
  (void)target;
  cuda_on_cpu::run(kernel, grid, threads, shared, arguments...);
#endif
}

}  // namespace riskernels::cuda
