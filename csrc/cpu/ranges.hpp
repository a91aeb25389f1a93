// SPDX-License-Identifier: Apache-2.0
// Scenes on torch's own thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace riskernels {

// A scene is a task: work inside one is never split, so the result does not depend on the number
// of threads. An exception cannot cross torch's C callback, so the first one is carried around it.
template <typename F>
void for_each_range(int64_t scenes, const F& f) {
  if (scenes == 0) return;
  std::exception_ptr error;
  std::mutex guard;
  torch::stable::parallel_for(0, scenes, 1, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace riskernels
