// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernel source on the CPU, one fibre per CUDA thread, under AddressSanitizer and UBSan.
//
// Usage, with a C++20 compiler:
//   g++ -std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
//       -Itests/cuda_on_cpu -Icsrc your_main.cpp tests/cuda_on_cpu/cuda_on_cpu.cpp
// where your_main.cpp includes a kernel file (csrc/cuda/*.cuh, which include this one when no CUDA
// compiler runs) and starts its kernels through riskernels::cuda::launch or
//   cuda_on_cpu::run(kernel, grid, threads, shared_bytes, arguments...);
//
// What it does:
// - Blocks run one after another in a shuffled order. The threads of a block run in an order drawn
//   from settings().seed (environment variable CUDA_ON_CPU_SEED): at random, one warp far ahead of
//   the others, or in rounds; which of these is drawn anew for every interval between barriers.
// - A barrier that is not reached by all threads of the block, or at different lines, is an error.
//   So is a warp exchange in which a lane of the mask has exited or waits elsewhere, a caller is
//   not in its own mask, masks, widths or kinds differ, or a lane outside the mask is read.
//   `run` throws Error, which names the block, the threads and the lines where they wait.
// - Dynamic shared memory is a heap block of the exact size, filled with 0xFF (NaN) before every
//   block; guard() poisons bytes of it until the block ends.
// - Launches are checked as a device does: 1 to 1024 threads, grid.x below 2^31, grid.y and grid.z
//   up to 65535, no empty grid, at most settings().shared_limit bytes of shared memory.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

// Of the running thread.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

// Bytes that nobody may touch behind every array of shared memory.
constexpr int64_t kGuard = 32;

struct Settings {
  uint64_t seed;         // order of blocks and threads
  int64_t shared_limit;  // bytes of shared memory that one block may have
};
Settings& settings();

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The running block's dynamic shared memory.
char* shared_bytes();

// Makes bytes unusable, until the block ends where they belong to its shared memory.
void guard(char* pointer, int64_t bytes);

void run_grid(dim3 grid, unsigned threads, int64_t shared_bytes,
              const std::function<void()>& thread);

// As kernel<<<grid, threads, shared_bytes>>>(arguments...), and waits for it.
template <typename... Parameters, typename... Arguments>
void run(void (*kernel)(Parameters...), dim3 grid, unsigned threads, int64_t shared_bytes,
         const Arguments&... arguments) {
  run_grid(grid, threads, shared_bytes, [&] { kernel(arguments...); });
}

using Where = std::source_location;

enum class Barrier { plain, all, any };
enum class Exchange { sync, index, exclusive_or, down, up };

int block_barrier(Barrier kind, int predicate, const Where& where);
uint64_t warp_exchange(Exchange kind, unsigned mask, uint64_t value, int operand, int width,
                       const Where& where);

template <typename T>
T shuffle(Exchange kind, unsigned mask, T value, int operand, int width, const Where& where) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(kind, mask, bits, operand, width, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

// The default argument is the line of the caller, which is the identity of a barrier.
#define CUDA_ON_CPU_HERE const cuda_on_cpu::Where& where = cuda_on_cpu::Where::current()

inline void __syncthreads(CUDA_ON_CPU_HERE) {
  cuda_on_cpu::block_barrier(cuda_on_cpu::Barrier::plain, 0, where);
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Barrier::all, predicate, where);
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Barrier::any, predicate, where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::warp_exchange(cuda_on_cpu::Exchange::sync, mask, 0, 0, warpSize, where);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffle(cuda_on_cpu::Exchange::index, mask, value, lane, width, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffle(cuda_on_cpu::Exchange::exclusive_or, mask, value, bits, width, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffle(cuda_on_cpu::Exchange::down, mask, value, static_cast<int>(delta),
                              width, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::shuffle(cuda_on_cpu::Exchange::up, mask, value, static_cast<int>(delta),
                              width, where);
}
#undef CUDA_ON_CPU_HERE

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
// Whole and half turns are taken off exactly, as the device does.
inline void sincospi(double x, double* sine, double* cosine) {
  const double halves = rint(2.0 * x), rest = 3.14159265358979323846 * (x - 0.5 * halves);
  const double s = sin(rest), c = cos(rest);
  const int quarter = static_cast<int>(fmod(fmod(halves, 4.0) + 4.0, 4.0) + 0.25);
  *sine = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
  *cosine = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
}
