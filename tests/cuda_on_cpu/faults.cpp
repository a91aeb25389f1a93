// SPDX-License-Identifier: Apache-2.0
// Small kernels, right ones and ones with a planted fault, for the tests of the executor itself.
// Usage: EXECUTABLE KERNEL SEED; prints the output of the kernel, one number per line.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "cuda/launch.cuh"

namespace {

using namespace riskernels::cuda;

constexpr int kThreads = 128;

struct Layout {
  int first, second;
  int64_t bytes;
  explicit Layout(Carver carver = Carver())
      : first(carver.take<float>(kThreads)), second(carver.take<float>(kThreads)) {
    bytes = carver.used();
  }
};

// Sums over a tree in shared memory, once more with each barrier left out in turn.
template <bool First, bool Inner>
__global__ void tree_sum(const float* in, float* out, int64_t) {
  float* const shared = shared_array<float>(0);
  const unsigned i = threadIdx.x;
  shared[i] = in[blockIdx.x * kThreads + i];
  if constexpr (First) __syncthreads();
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (i < half) shared[i] += shared[i + half];
    if constexpr (Inner) __syncthreads();
  }
  // Without the barriers of the tree, one at its end.
  if constexpr (!Inner) __syncthreads();
  if (i < 1) out[blockIdx.x] = shared[0];
}

// One warp produces, the next consumes: needs the barrier though each warp is in step.
template <bool Barrier>
__global__ void hand_over(const float* in, float* out, int64_t) {
  float* const shared = shared_array<float>(0);
  const unsigned i = threadIdx.x, warp = i / kWarp;
  shared[i] = in[blockIdx.x * kThreads + i];
  if constexpr (Barrier)
    __syncthreads();
  else
    __syncwarp();
  const float next = shared[(warp + 1) * kWarp % kThreads + i % kWarp];
  const float sum = __shfl_xor_sync(kFullWarp, next, 1) + next;
  if (i == 0) out[blockIdx.x] = sum;
}

// Lanes of one warp are ordered by __syncwarp, not by a shuffle.
__global__ void between_lanes_without_syncwarp(const float* in, float* out, int64_t) {
  float* const shared = shared_array<float>(0);
  const unsigned i = threadIdx.x;
  shared[i] = in[i];
  const float mine = __shfl_sync(kFullWarp, in[i], 0);
  const float next = shared[i ^ 1];
  if (i == 0) out[blockIdx.x] = next + mine;
}
// Reads are done with only after a barrier.
__global__ void written_after_read(const float* in, float* out, int64_t) {
  float* const shared = shared_array<float>(0);
  const unsigned i = threadIdx.x;
  shared[i] = in[i];
  __syncthreads();
  const float next = shared[kThreads - 1 - i];
  shared[i] = next;
  if (i == 0) out[blockIdx.x] = next;
}

// Every word the kernels use, against what it should give. Adds 1 to the result per mistake.
__global__ void words(const float*, float* out, int64_t) {
  const int i = static_cast<int>(threadIdx.x), lane = i % kWarp, first = i - lane;
  int wrong = 0;
  wrong += __shfl_sync(kFullWarp, i, 3) != first + 3;
  wrong += __shfl_sync(kFullWarp, i, 35) != first + 3;
  wrong += __shfl_sync(kFullWarp, i, 3, 8) != first + lane / 8 * 8 + 3;
  wrong += __shfl_xor_sync(kFullWarp, 1.5 * i, 5) != 1.5 * (first + (lane ^ 5));
  wrong += __shfl_xor_sync(kFullWarp, i, 16, 8) != first + (lane < 16 ? lane : lane - 16);
  wrong += __shfl_down_sync(kFullWarp, 2.0f * i, 30u) != 2.0f * (lane < 2 ? i + 30 : i);
  wrong += __shfl_up_sync(kFullWarp, 3LL * i, 3u) != 3LL * (lane < 3 ? i : i - 3);
  wrong += __syncthreads_and(i >= 0) != 1;
  wrong += __syncthreads_and(i != 77) != 0;
  wrong += __syncthreads_or(i == 77) != 1;
  wrong += __syncthreads_or(i < 0) != 0;
  if (lane < 8) wrong += __shfl_sync(0xffu, i, 7) != first + 7;
  __syncwarp();
  wrong += blockDim.x != kThreads || gridDim.x != 3 || gridDim.y != 1;
  wrong = __syncthreads_or(wrong);
  if (i == 0) out[blockIdx.x] = static_cast<float>(wrong);
}

__global__ void unwritten(const float* in, float* out, int64_t) {
  if (threadIdx.x == 0 && blockIdx.x != 1) out[blockIdx.x] = in[0];
}
__global__ void uninitialised_shared(const float*, float* out, int64_t) {
  if (threadIdx.x == 0) out[blockIdx.x] = shared_array<float>(0)[5];
}
__global__ void beyond_shared(const float* in, float* out, int64_t bytes) {
  if (threadIdx.x == 5) shared_array<float>(0)[bytes / 4] = in[0];
  if (threadIdx.x == 0) out[blockIdx.x] = in[0];
}
__global__ void between_arrays(const float* in, float* out, int64_t) {
  const Layout layout{Carver(shared_bytes())};
  float* const first = shared_array<float>(layout.first);
  for (int k = 0; k <= kThreads; ++k) first[k] = in[0];
  if (threadIdx.x == 0) out[blockIdx.x] = first[0];
}
__global__ void beyond_input(const float* in, float* out, int64_t) {
  if (threadIdx.x == 0) out[blockIdx.x] = in[(blockIdx.x + 1) * kThreads];
}
__global__ void beyond_output(const float* in, float* out, int64_t) {
  if (threadIdx.x < 2) out[blockIdx.x + threadIdx.x] = in[0];
}
__global__ void misaligned(const float* in, float* out, int64_t) {
  struct alignas(16) Four {
    float value[4];
  };
  if (threadIdx.x == 0) out[blockIdx.x] = reinterpret_cast<const Four*>(in + 1)->value[0];
}

__global__ void exit_before_barrier(const float*, float* out, int64_t) {
  if (threadIdx.x == 0) out[blockIdx.x] = 0;
  if (threadIdx.x == 70) return;
  __syncthreads();
}
__global__ void barrier_in_a_branch(const float*, float* out, int64_t) {
  if (threadIdx.x == 0) out[blockIdx.x] = 0;
  if (threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void barrier_against_exchange(const float*, float* out, int64_t) {
  if (threadIdx.x == 0) out[blockIdx.x] = 0;
  if (threadIdx.x == 9)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void different_counts(const float*, float* out, int64_t) {
  if (threadIdx.x == 0) out[blockIdx.x] = 0;
  for (unsigned k = 0; k <= threadIdx.x / 64; ++k) __syncthreads();
}
__global__ void divergent_shuffle(const float* in, float* out, int64_t) {
  float value = in[threadIdx.x];
  if (threadIdx.x % kWarp < 16) value = __shfl_sync(kFullWarp, value, 0);
  if (threadIdx.x == 0) out[blockIdx.x] = value;
}
__global__ void shuffles_in_both_branches(const float* in, float* out, int64_t) {
  float value = in[threadIdx.x];
  if (threadIdx.x % kWarp < 16)
    value = __shfl_sync(kFullWarp, value, 0);
  else
    value = __shfl_sync(kFullWarp, value, 1);
  if (threadIdx.x == 0) out[blockIdx.x] = value;
}
__global__ void not_in_own_mask(const float* in, float* out, int64_t) {
  const float value = __shfl_sync(0x0000ffffu, in[threadIdx.x], 0);
  if (threadIdx.x == 0) out[blockIdx.x] = value;
}
__global__ void lane_outside_mask(const float* in, float* out, int64_t) {
  float value = 0;
  if (threadIdx.x % kWarp < 16) value = __shfl_sync(0x0000ffffu, in[threadIdx.x], 16);
  if (threadIdx.x == 0) out[blockIdx.x] = value;
}
__global__ void different_widths(const float* in, float* out, int64_t) {
  const float value = __shfl_sync(kFullWarp, in[threadIdx.x], 0, threadIdx.x % 2 == 0 ? 32 : 16);
  if (threadIdx.x == 0) out[blockIdx.x] = value;
}
__global__ void lane_that_does_not_exist(const float*, float* out, int64_t) {
  out[blockIdx.x] = static_cast<float>(__shfl_sync(kFullWarp, 0, 0));
}

using Kernel = void (*)(const float*, float*, int64_t);

struct Launch {
  Kernel kernel;
  dim3 grid = dim3(3);
  unsigned threads = kThreads;
  int64_t bytes = Layout().bytes;
};

const std::map<std::string, Launch> kLaunches = {
    {"tree_sum", {tree_sum<true, true>}},
    {"tree_sum_without_first_barrier", {tree_sum<false, true>}},
    {"tree_sum_without_inner_barriers", {tree_sum<true, false>}},
    {"hand_over", {hand_over<true>}},
    {"hand_over_without_barrier", {hand_over<false>}},
    {"between_lanes_without_syncwarp", {between_lanes_without_syncwarp}},
    {"written_after_read", {written_after_read}},
    {"words", {words}},
    {"unwritten", {unwritten}},
    {"uninitialised_shared", {uninitialised_shared}},
    {"beyond_shared", {beyond_shared}},
    {"between_arrays", {between_arrays}},
    {"beyond_input", {beyond_input}},
    {"beyond_output", {beyond_output}},
    {"misaligned", {misaligned}},
    {"exit_before_barrier", {exit_before_barrier}},
    {"barrier_in_a_branch", {barrier_in_a_branch}},
    {"barrier_against_exchange", {barrier_against_exchange}},
    {"different_counts", {different_counts}},
    {"divergent_shuffle", {divergent_shuffle}},
    {"shuffles_in_both_branches", {shuffles_in_both_branches}},
    {"not_in_own_mask", {not_in_own_mask}},
    {"lane_outside_mask", {lane_outside_mask}},
    {"different_widths", {different_widths}},
    {"lane_that_does_not_exist", {lane_that_does_not_exist, dim3(1), 40}},
    {"more_arrays_than_shared_memory", {between_arrays, dim3(3), kThreads, 520}},
    {"empty_grid", {words, dim3(0)}},
    {"too_many_threads", {words, dim3(3), 1025}},
    {"no_threads", {words, dim3(3), 0}},
    {"too_much_shared_memory", {words, dim3(3), kThreads, 227 * 1024 + 1}},
    {"grid_too_high", {words, dim3(1, 65536)}},
};

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc == 3 ? kLaunches.find(argv[1]) : kLaunches.end();
  if (found == kLaunches.end()) {
    std::fprintf(stderr, "usage: %s KERNEL SEED\n", argv[0]);
    return 2;
  }
  const auto& [kernel, grid, threads, bytes] = found->second;
  cuda_on_cpu::settings().seed = std::strtoull(argv[2], nullptr, 10);
  constexpr std::size_t kBlocks = 3;
  std::vector<float> in(kBlocks * kThreads), out(kBlocks, std::numeric_limits<float>::quiet_NaN());
  // Powers of two: any sum of them is exact, and says which ones it has.
  for (std::size_t i = 0; i < in.size(); ++i)
    in[i] = static_cast<float>(1 << (i + i / kThreads) % 16);
  try {
    const Target target{132, cuda_on_cpu::settings().shared_limit, nullptr, {}, 0};
    launch(target, kernel, grid, threads, bytes, in.data(), out.data(), bytes);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  for (const float value : out) std::printf("%g\n", value);
  return 0;
}
