// SPDX-License-Identifier: Apache-2.0
#include "cuda_on_cpu.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "block.hpp"

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim;
dim3 gridDim;

namespace cuda_on_cpu {

Block& block() {
  static Block* const instance = new Block;  // never freed: ASan reports may come at exit
  return *instance;
}

void Block::main() {
  Fibre::begin();
  Block& b = block();
  (*b.body_)();
  Thread& self = b.thread(b.current_);
  self.state = State::exited;
  ++b.exited_;
  b.warps_[b.current_ / warpSize].elsewhere |= 1u << b.current_ % warpSize;
  self.fibre.finish();
}

namespace {

constexpr int64_t kDefaultSharedLimit = 227 * 1024;

char* shared = nullptr;
int64_t shared_size = 0;

// Shared memory of one launch.
class SharedMemory {
 public:
  explicit SharedMemory(int64_t bytes) : memory_(new char[static_cast<std::size_t>(bytes)]) {
    shared = memory_.get();
    shared_size = bytes;
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() {
    __asan_unpoison_memory_region(shared, static_cast<std::size_t>(shared_size));
    shared = nullptr;
    shared_size = 0;
    block().done();
  }
  void renew() {
    __asan_unpoison_memory_region(shared, static_cast<std::size_t>(shared_size));
    std::memset(shared, 0xff, static_cast<std::size_t>(shared_size));
  }

 private:
  std::unique_ptr<char[]> memory_;
};

std::string text(dim3 d) {
  return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
}

void check_launch(dim3 grid, unsigned threads, int64_t bytes) {
  if (block().current() >= 0) throw Error("a kernel starts a kernel");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535)
    throw Error("launch of a grid of " + text(grid) +
                " blocks; limits are 1 to 2^31 - 1 in x and 1 to 65535 in y and z");
  if (threads < 1 || threads > kMaxThreads)
    throw Error("launch of " + std::to_string(threads) +
                " threads per block; limits are 1 to 1024");
  if (bytes < 0 || bytes > settings().shared_limit)
    throw Error("launch with " + std::to_string(bytes) + " bytes of shared memory; the limit is " +
                std::to_string(settings().shared_limit));
}

}  // namespace

Settings& settings() {
  static Settings instance = [] {
    const char* const seed = std::getenv("CUDA_ON_CPU_SEED");
    return Settings{seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10), kDefaultSharedLimit};
  }();
  return instance;
}

char* shared_bytes() { return shared; }

std::span<char> shared_memory() { return {shared, static_cast<std::size_t>(shared_size)}; }

void guard(char* pointer, int64_t bytes) {
  if (shared != nullptr && pointer >= shared && pointer <= shared + shared_size &&
      pointer + bytes > shared + shared_size) {
    std::fprintf(stderr, "cuda_on_cpu: arrays take %td bytes of %td bytes of shared memory\n",
                 pointer + bytes - shared, static_cast<std::ptrdiff_t>(shared_size));
    block().describe();
    std::abort();
  }
  __asan_poison_memory_region(pointer, static_cast<std::size_t>(bytes));
}

void run_grid(dim3 grid, unsigned threads, int64_t bytes, const std::function<void()>& thread) {
  static const bool registered = [] {
    __sanitizer_set_death_callback([] { block().describe(); });
    return true;
  }();
  (void)registered;
  check_launch(grid, threads, bytes);
  static uint64_t launches = 0;
  Random random(settings().seed << 20 ^ launches++);

  SharedMemory memory(bytes);
  block().begin_launch();
  gridDim = grid;
  blockDim = dim3(threads);
  std::vector<uint64_t> order(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const uint64_t index : order) {
    blockIdx = {static_cast<unsigned>(index % grid.x),
                static_cast<unsigned>(index / grid.x % grid.y),
                static_cast<unsigned>(index / grid.x / grid.y)};
    memory.renew();
    block().run(thread, static_cast<int>(threads), random);
  }
}

int block_barrier(Barrier kind, int predicate, const Where& where) {
  return block().barrier(kind, predicate, where);
}

uint64_t warp_exchange(Exchange kind, unsigned mask, uint64_t value, int operand, int width,
                       const Where& where) {
  return block().exchange(kind, mask, value, operand, width, where);
}

}  // namespace cuda_on_cpu
