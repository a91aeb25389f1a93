// SPDX-License-Identifier: Apache-2.0
// Tasks on torch's own thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

#if defined(__SANITIZE_THREAD__)
#include <algorithm>
#include <thread>
#include <vector>
#endif

#include "fork.hpp"

namespace riskernels {

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer does not see how torch's OpenMP pool hands over its work, and would call every
// result a race. In this build the threads are ones that it knows, as many in every call.
inline int64_t thread_count() { return 4; }

template <typename F>
void run_in_threads(int64_t tasks, const F& f) {
  const int64_t count = std::min(tasks, thread_count());
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] { f(tasks * i / count, tasks * (i + 1) / count); });
  for (auto& thread : threads) thread.join();
}
#else
inline int64_t thread_count() {
  return in_forked_child() ? 1 : static_cast<int64_t>(torch::stable::get_num_threads());
}

template <typename F>
void run_in_threads(int64_t tasks, const F& f) {
  if (in_forked_child()) {
    f(0, tasks);
  } else {
    torch::stable::parallel_for(0, tasks, 1, f);
  }
}
#endif

// Calls f with ranges of [0, tasks). No sum is ever divided between tasks, so the result does not
// depend on the number of threads. An exception cannot cross torch's C callback, so the first one
// is carried around it.
template <typename F>
void for_each_range(int64_t tasks, const F& f) {
  if (tasks <= 1) {
    if (tasks == 1) f(0, 1);
    return;
  }
  std::exception_ptr error;
  std::mutex guard;
  run_in_threads(tasks, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// Whether one task a scene would leave threads idle.
inline bool fewer_than_threads(int64_t scenes) { return scenes < thread_count(); }

}  // namespace riskernels
