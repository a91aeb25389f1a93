// SPDX-License-Identifier: Apache-2.0
// Where kernels run, and the one way to start them.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

#include "device.cuh"

namespace riskernels::cuda {

struct Target {
  int multiprocessors;
  int64_t shared_limit;  // bytes of shared memory that one block may have
  void* stream;          // cudaStream_t
  // Device memory for the kernels of one operator call; valid until they have run.
  std::function<void*(int64_t bytes)> workspace;
};

#if defined(__CUDACC__)
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("riskernels: ") + what + ": " + cudaGetErrorString(error));
}
#endif

template <typename... Parameters, typename... Arguments>
void launch(const Target& target, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
            int64_t shared, Arguments... arguments) {
#if defined(__CUDACC__)
  // Blocks get more than 48 KiB only on request.
  if (shared > 48 * 1024)
    check(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "shared memory request");
  kernel<<<grid, threads, static_cast<std::size_t>(shared),
           static_cast<cudaStream_t>(target.stream)>>>(arguments...);
  check(cudaGetLastError(), "kernel launch");
#else
  (void)target;
  cuda_on_cpu::run(kernel, grid, threads, shared, arguments...);
#endif
}

}  // namespace riskernels::cuda
