// SPDX-License-Identifier: Apache-2.0
#include "scratch.hpp"

#include <cstdlib>
#include <new>

namespace riskernels {
namespace {

struct Block {
  void* data = nullptr;
  std::size_t size = 0;
  ~Block() { std::free(data); }

  void* at_least(std::size_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = 0;
      data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (data == nullptr) throw std::bad_alloc();
      size = bytes;
    }
    return data;
  }
};

thread_local Block own_block, lent_block;

}  // namespace

void* thread_scratch(std::size_t bytes) { return own_block.at_least(bytes); }

void* shared_scratch(std::size_t bytes) { return lent_block.at_least(bytes); }

}  // namespace riskernels
