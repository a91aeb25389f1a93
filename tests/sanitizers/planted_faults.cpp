// SPDX-License-Identifier: Apache-2.0
// One fault of every kind that the sanitized builds must find, in the way a kernel would have it:
// in the ranges of for_each_range, in a process of Python with torch.
#include <cstdint>

#include "ranges.hpp"

#define PLANTED extern "C" __attribute__((visibility("default")))

// Every task adds to one sum.
PLANTED double planted_race(int64_t tasks) {
  double sum = 0;
  riskernels::for_each_range(tasks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum += static_cast<double>(i);
  });
  return sum;
}

// Every task has a sum of its own: no race, the control of the one above.
PLANTED double planted_no_race(int64_t tasks) {
  double sums[64] = {};
  riskernels::for_each_range(tasks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] = static_cast<double>(i);
  });
  double sum = 0;
  for (int64_t i = 0; i < tasks; ++i) sum += sums[i];
  return sum;
}

// Reads `data` of `count` values and the one behind.
PLANTED double planted_overflow(const double* data, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i <= count; ++i) sum += data[i];
  return sum;
}

// A product that does not fit.
PLANTED int64_t planted_undefined(int64_t size) { return size * size; }
