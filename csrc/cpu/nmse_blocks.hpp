// SPDX-License-Identifier: Apache-2.0
// Blocks of rows in which the NMSE of one scene is summed. They depend on N alone, and their sums
// are added in order, so that a scene has the same NMSE to the last bit whether one thread takes
// all of its blocks or each block goes to another.
#pragma once

#include <cstdint>

#include "../common/everywhere.hpp"

namespace riskernels {

// Entries of a block: long enough that handing it to a thread costs nothing.
RISKERNELS_EVERYWHERE constexpr int64_t nmse_block_rows(int64_t n) {
  constexpr int64_t kEntries = 1 << 15;
  const int64_t rows = n > 0 ? kEntries / n : 1;
  return rows > 1 ? rows : 1;
}

RISKERNELS_EVERYWHERE constexpr int64_t nmse_blocks(int64_t n) {
  return (n + nmse_block_rows(n) - 1) / nmse_block_rows(n);
}

}  // namespace riskernels
