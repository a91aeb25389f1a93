// SPDX-License-Identifier: Apache-2.0
// Loops over rows or vectors in blocks whose size the compiler knows.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace riskernels::RISKERNELS_ISA {

// Calls f with the block sizes (1 to Most, as constants) that split `rows` evenly, and the first
// row of each: a lone last row would leave most multiply-adds waiting for their predecessors.
template <int Most, typename F>
RISKERNELS_INLINE void for_even_blocks(int64_t rows, const F& f) {
  const auto call = [&]<int Size>(auto& self, std::integral_constant<int, Size> size,
                                  int64_t wanted, int64_t i) {
    if constexpr (Size > 1) {
      if (wanted < Size) {
        self(self, std::integral_constant<int, Size - 1>(), wanted, i);
        return;
      }
    }
    f(size, i);
  };
  for (int64_t i = 0; i < rows;) {
    const int64_t left = rows - i, blocks = (left + Most - 1) / Most;
    const int64_t size = (left + blocks - 1) / blocks;
    call(call, std::integral_constant<int, Most>(), size, i);
    i += size;
  }
}

}  // namespace riskernels::RISKERNELS_ISA
