// SPDX-License-Identifier: Apache-2.0
// How the points of steering_power_backward are divided: by their number alone, so that sums do not
// depend on the number of threads.
#pragma once

#include <cstdint>

namespace riskernels {

constexpr int64_t kChunkPoints = 8192;  // at least; a multiple of every instruction set's block
constexpr int64_t kMostChunks = 64;  // each has a gradient of its own where threads share a scene

inline __attribute__((always_inline)) int64_t chunk_points(int64_t points) {
  const int64_t times = (points + kChunkPoints * kMostChunks - 1) / (kChunkPoints * kMostChunks);
  return kChunkPoints * (times > 1 ? times : 1);
}

inline __attribute__((always_inline)) int64_t steering_chunks(int64_t points) {
  const int64_t size = chunk_points(points);
  return (points + size - 1) / size;
}

}  // namespace riskernels
