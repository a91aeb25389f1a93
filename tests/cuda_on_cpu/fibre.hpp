// SPDX-License-Identifier: Apache-2.0
// Fibres: stacks that one OS thread switches between, known to AddressSanitizer.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstddef>
#include <cstdint>
#include <new>

namespace cuda_on_cpu {

// Frames that are never returned from must not have red zones.
#define CUDA_ON_CPU_BARE __attribute__((no_sanitize_address))

constexpr std::size_t kStack = 256 * 1024;
constexpr std::size_t kFence = 64 * 1024;  // no access, below every stack

#if defined(__x86_64__)
// Saves what a call must preserve on this stack and goes on from another one. swapcontext would
// enter the kernel twice for the signal mask, and kernels switch millions of times.
extern "C" void cuda_on_cpu_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.weak cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
#endif

// One stack. `enter` starts or resumes it from the main stack, `leave` goes back there.
class Fibre {
 public:
  Fibre() {
    void* const memory = mmap(nullptr, kFence + kStack, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kFence, PROT_NONE) != 0) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory) + kFence;
  }
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;
  ~Fibre() {
    __asan_unpoison_memory_region(stack_, kStack);
    munmap(stack_ - kFence, kFence + kStack);
  }

  // The next `enter` begins `body`, which must end in `finish`.
  void reset(void (*body)()) {
    // A run that did not finish has left the red zones of its frames behind.
    if (!finished_) __asan_unpoison_memory_region(stack_, kStack);
    finished_ = false;
    fake_ = nullptr;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack_ + kStack);
    *--top = nullptr;  // where body would return to: unwinding ends here
    *--top = reinterpret_cast<void*>(body);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    context_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, body, 0);
#endif
  }

  CUDA_ON_CPU_BARE void enter() {
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStack);
#if defined(__x86_64__)
    cuda_on_cpu_switch(&main_, context_);
#else
    swapcontext(&main_, &context_);
#endif
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  // First thing that a body calls.
  CUDA_ON_CPU_BARE static void begin() {
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom_, &main_size_);
  }

  CUDA_ON_CPU_BARE void leave(bool for_good) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_, main_bottom_, main_size_);
#if defined(__x86_64__)
    cuda_on_cpu_switch(&context_, main_);
#else
    swapcontext(&context_, &main_);
#endif
    __sanitizer_finish_switch_fiber(fake_, &main_bottom_, &main_size_);
  }

  // Last thing that a body calls.
  CUDA_ON_CPU_BARE void finish() {
    finished_ = true;
    leave(true);
  }

 private:
#if defined(__x86_64__)
  using Context = void*;
#else
  using Context = ucontext_t;
#endif
  Context context_{};
  char* stack_;
  void* fake_ = nullptr;
  bool finished_ = true;
  static inline Context main_{};
  static inline const void* main_bottom_ = nullptr;
  static inline std::size_t main_size_ = 0;
};

}  // namespace cuda_on_cpu
