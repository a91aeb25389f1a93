// SPDX-License-Identifier: Apache-2.0
// Division of one block of scratch memory.
#pragma once

#include "simd.hpp"

namespace riskernels::RISKERNELS_ISA {

// Hands out consecutive aligned pieces of one block; with a null block it only counts.
class Carver {
 public:
  explicit Carver(void* block) : block_(static_cast<char*>(block)) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* block_;
  int64_t used_ = 0;
};

}  // namespace riskernels::RISKERNELS_ISA
