// SPDX-License-Identifier: Apache-2.0
// The ceiling that benchmarks state: called through ctypes, which lets other threads run meanwhile.
#include "kernels.hpp"

namespace {

template <typename T>
double run(int64_t rounds) {
  double flops = 0;
  T result = 0;
  RISKERNELS_RUN(multiply_add_rate, rounds, T(0.75), T(0.25), flops, result);
  return flops;
}

}  // namespace

// Does multiply-adds in the instruction set of the kernels, and returns how many FLOPs they were.
extern "C" __attribute__((visibility("default"))) double riskernels_multiply_adds(
    int64_t rounds, bool double_precision) {
  return double_precision ? run<double>(rounds) : run<float>(rounds);
}
