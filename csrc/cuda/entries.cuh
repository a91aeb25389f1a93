// SPDX-License-Identifier: Apache-2.0
// Entries of dense matrices as the kernels of blend_covariance and subspace_leakage move them: by
// 16 bytes where rows lie so, and sums of them in double in a fixed order.
#pragma once

#include "complex.cuh"

namespace riskernels::cuda {

// Neighbours in a row, one access.
template <typename T, int Width>
struct alignas(Width * 2 * sizeof(T)) Entries {
  Complex<T> at[Width];
};

// Two complex64 entries per access need rows that are contiguous and start at 16 bytes. An entry of
// complex128 is an access of its own.
template <typename T>
bool takes_pairs(int64_t scenes, int64_t columns, const T* data, const int64_t* stride /* [3] */) {
  return sizeof(T) == 4 && columns % 2 == 0 && reinterpret_cast<std::uintptr_t>(data) % 16 == 0 &&
         stride[2] == 1 && stride[1] % 2 == 0 && (stride[0] % 2 == 0 || scenes == 1);
}

// Starts the way of a line of 128 bytes from device memory into the second-level cache. The address
// must be valid.
RISKERNELS_DEVICE void prefetch_line(const void* address) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)*static_cast<const volatile char*>(address);
#endif
}

// Sum over the lanes of a warp, in all of them.
RISKERNELS_DEVICE double lane_sum(double x) {
  RISKERNELS_UNROLL
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

// Count sums over all threads of a block at once, in the lanes of its first warp. `shared`
// [Count, kWarp] must be free; reached by all threads.
template <int Count>
RISKERNELS_DEVICE void add_over_block(double (&sum)[Count], double* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  RISKERNELS_UNROLL
  for (int k = 0; k < Count; ++k) {
    sum[k] = lane_sum(sum[k]);
    if (lane == 0) shared[k * kWarp + warp] = sum[k];
  }
  __syncthreads();
  if (warp != 0) return;
  const bool used = lane < static_cast<int>(blockDim.x) / kWarp;
  RISKERNELS_UNROLL
  for (int k = 0; k < Count; ++k) sum[k] = lane_sum(used ? shared[k * kWarp + lane] : 0.0);
}

}  // namespace riskernels::cuda
