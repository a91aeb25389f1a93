// SPDX-License-Identifier: Apache-2.0
#include "races.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

#include "block.hpp"

namespace cuda_on_cpu {
namespace {

constexpr int kExitStatus = 97;

struct Access {
  uint32_t interval = 0, syncwarp = 0;
  int32_t thread = 0;
  const void* code = nullptr;
};

// What is known of one byte.
struct History {
  Access write, read;
  // A read of another thread of the same block that the last one has displaced.
  Access other_read;
};

using Histories = std::vector<History>;

struct Watched {
  Histories histories;
  int64_t bytes;
};

std::map<const char*, Watched>& regions() {
  static std::map<const char*, Watched> instance;
  return instance;
}

Histories& shared_histories() {
  static Histories instance;
  return instance;
}

bool unordered(const Access& earlier, const Access& now, bool of_block) {
  const Clock& clock = block().clock();
  if (earlier.interval < clock.launch) return false;
  if (earlier.interval < clock.block) return !of_block;
  if (earlier.interval < now.interval || earlier.thread == now.thread) return false;
  return earlier.thread / warpSize != now.thread / warpSize || earlier.syncwarp == now.syncwarp;
}

[[noreturn]] void report(const Access& earlier, const char* did, const Access& now,
                         const char* does, const char* place, std::ptrdiff_t offset) {
  std::fprintf(stderr,
               "data race in block (%u, %u, %u): thread %d %s byte %td of %s at code %p, which "
               "thread %d%s %s at code %p with nothing to order them\n",
               blockIdx.x, blockIdx.y, blockIdx.z, now.thread, does, offset, place, now.code,
               earlier.thread, earlier.interval < block().clock().block ? " of another block" : "",
               did, earlier.code);
  std::fflush(nullptr);
  std::_Exit(kExitStatus);
}

void note(History& byte, const Access& now, bool writes, bool of_block, const char* place,
          std::ptrdiff_t offset) {
  const char* const does = writes ? "writes" : "reads";
  if (unordered(byte.write, now, of_block)) report(byte.write, "wrote", now, does, place, offset);
  if (!writes) {
    if (byte.read.thread != now.thread) byte.other_read = byte.read;
    byte.read = now;
    return;
  }
  for (const Access& read : {byte.read, byte.other_read})
    if (unordered(read, now, of_block)) report(read, "read", now, does, place, offset);
  byte.write = now;
}

void access(const void* pointer, std::size_t bytes, bool writes, const void* code) {
  const int thread = block().current();
  if (thread < 0) return;
  const char* const begin = static_cast<const char*>(pointer);
  const Clock& clock = block().clock();
  const Access now{clock.interval, clock.warp[thread / warpSize], thread, code};
  const auto shared = shared_memory();
  if (begin >= shared.data() && begin < shared.data() + shared.size()) {
    Histories& histories = shared_histories();
    if (histories.size() < shared.size()) histories.resize(shared.size());
    for (std::size_t k = 0; k < bytes; ++k) {
      const std::ptrdiff_t offset = begin + k - shared.data();
      note(histories.at(static_cast<std::size_t>(offset)), now, writes, true, "shared memory",
           offset);
    }
    return;
  }
  auto region = regions().upper_bound(begin);
  if (region == regions().begin()) return;
  --region;
  if (begin >= region->first + region->second.bytes) return;
  for (std::size_t k = 0; k < bytes; ++k) {
    const std::ptrdiff_t offset = begin + k - region->first;
    note(region->second.histories.at(static_cast<std::size_t>(offset)), now, writes, false,
         "global memory", offset);
  }
}

}  // namespace

void watch(const void* memory, int64_t bytes) {
  regions()[static_cast<const char*>(memory)] = {Histories(static_cast<std::size_t>(bytes)), bytes};
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_ACCESS(bytes)                                      \
  void __tsan_read##bytes(void* p) {                                   \
    cuda_on_cpu::access(p, bytes, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_write##bytes(void* p) {                                  \
    cuda_on_cpu::access(p, bytes, true, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_unaligned_read##bytes(void* p) {                         \
    cuda_on_cpu::access(p, bytes, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_unaligned_write##bytes(void* p) {                        \
    cuda_on_cpu::access(p, bytes, true, __builtin_return_address(0));  \
  }

extern "C" {

CUDA_ON_CPU_ACCESS(1)
CUDA_ON_CPU_ACCESS(2)
CUDA_ON_CPU_ACCESS(4)
CUDA_ON_CPU_ACCESS(8)
CUDA_ON_CPU_ACCESS(16)
void __tsan_read_range(void* p, std::size_t bytes) {
  cuda_on_cpu::access(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t bytes) {
  cuda_on_cpu::access(p, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// This build is without AddressSanitizer, whose functions the executor calls.
void __asan_poison_memory_region(void const volatile*, std::size_t) {}
void __asan_unpoison_memory_region(void const volatile*, std::size_t) {}
void __sanitizer_start_switch_fiber(void**, const void*, std::size_t) {}
void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*) {}
void __sanitizer_set_death_callback(void (*)()) {}
}
