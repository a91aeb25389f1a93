// SPDX-License-Identifier: Apache-2.0
// How the points of steering_power_backward are divided: by their number alone, so that sums do not
// depend on the number of threads.
#pragma once

#include <cstdint>

namespace riskernels {

constexpr int64_t kChunkPoints = 8192;  // a multiple of every instruction set's block

inline __attribute__((always_inline)) int64_t steering_chunks(int64_t points) {
  return (points + kChunkPoints - 1) / kChunkPoints;
}

}  // namespace riskernels
