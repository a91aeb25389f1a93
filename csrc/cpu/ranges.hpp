// SPDX-License-Identifier: Apache-2.0
// Tasks on torch's own thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace riskernels {

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
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
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
inline bool fewer_than_threads(int64_t scenes) {
  return scenes < static_cast<int64_t>(torch::stable::get_num_threads());
}

}  // namespace riskernels
