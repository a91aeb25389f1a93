// SPDX-License-Identifier: Apache-2.0
// Blocks of rows in which the NMSE of one scene is summed. They depend on N alone, and their sums
// are added in order, so that a scene has the same NMSE to the last bit whether one thread takes
// all of its blocks or each block goes to another.
#pragma once

#include <cstdint>

#include "../common/everywhere.hpp"
#include "../common/nmse_problem.hpp"

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

// Blocks [begin, end) of all scenes, numbered scene by scene, into sums [B, blocks, 4]; and from
// those the results of scenes [begin, end).
#define RISKERNELS_DECLARE_NMSE_BLOCKS(ISA)                                                     \
  namespace ISA {                                                                               \
  template <typename T>                                                                         \
  void hermitian_nmse_blocks(const NmseProblem<T>&, double* block_sums, int64_t begin,          \
                             int64_t end);                                                      \
  template <typename T>                                                                         \
  void hermitian_nmse_finish(const NmseProblem<T>&, const double* block_sums, T* nmse, T* sums, \
                             int64_t begin, int64_t end);                                       \
  }
RISKERNELS_DECLARE_NMSE_BLOCKS(portable)
#if defined(RISKERNELS_X86)
RISKERNELS_DECLARE_NMSE_BLOCKS(avx2)
RISKERNELS_DECLARE_NMSE_BLOCKS(avx512)
#endif

}  // namespace riskernels
