// SPDX-License-Identifier: Apache-2.0
// What every kernel file needs: the CUDA words, limits of the types, pieces of shared memory.
//
// Kernel files are free of torch and, but for this file and launch.cuh, of the CUDA runtime:
// compiled by a host compiler they run on the block executor of tests/cuda_on_cpu.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define RISKERNELS_DEVICE __device__ __forceinline__
#define RISKERNELS_UNROLL _Pragma("unroll")
#define RISKERNELS_UNROLL_BY(count) _Pragma(RISKERNELS_TEXT(unroll count))
#define RISKERNELS_TEXT(x) #x
#else
#include "cuda_on_cpu.hpp"
#define __grid_constant__
#define RISKERNELS_DEVICE inline
#define RISKERNELS_UNROLL
#define RISKERNELS_UNROLL_BY(count)
#endif

namespace riskernels::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

template <typename T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kEpsilon = 1.1920928955078125e-7f;
  static constexpr float kSmallest = 1.17549435e-38f;
};
template <>
struct Limits<double> {
  static constexpr double kEpsilon = 2.2204460492503131e-16;
  static constexpr double kSmallest = 2.2250738585072014e-308;
};

#if defined(__CUDACC__)
RISKERNELS_DEVICE char* shared_bytes() {
  extern __shared__ __align__(16) char riskernels_shared[];
  return riskernels_shared;
}
constexpr int64_t kGuard = 0;
#else
using cuda_on_cpu::guard;
using cuda_on_cpu::kGuard;
using cuda_on_cpu::shared_bytes;
#endif

__host__ __device__ constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Hands out consecutive 16-byte aligned arrays of one block of memory, as byte offsets. The host
// runs it to learn where things lie and how much they take, and passes that to the kernel.
class Carver {
 public:
  template <typename T>
  int take(int64_t count) {
    const int64_t offset = used_, exact = count * static_cast<int64_t>(sizeof(T));
    used_ += round_up(exact, 16) + kGuard;
#if !defined(__CUDACC__)
    // Behind the last element, not behind its rounding: an overrun by one is caught.
    if (block_ != nullptr) guard(block_ + offset + exact, used_ - offset - exact);
#endif
    return static_cast<int>(offset);
  }
  int64_t used() const { return used_; }

#if !defined(__CUDACC__)
  explicit Carver(char* block = nullptr) : block_(block) {}

 private:
  char* block_;
#endif

 private:
  int64_t used_ = 0;
};

// The array at a carver's offset in the shared memory of this block.
template <typename T>
RISKERNELS_DEVICE T* shared_array(int offset) {
  return reinterpret_cast<T*>(shared_bytes() + offset);
}

}  // namespace riskernels::cuda
