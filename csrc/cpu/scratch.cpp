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
};

thread_local Block block;

}  // namespace

void* thread_scratch(std::size_t bytes) {
  if (bytes > block.size) {
    std::free(block.data);
    block.size = 0;
    block.data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (block.data == nullptr) throw std::bad_alloc();
    block.size = bytes;
  }
  return block.data;
}

}  // namespace riskernels
