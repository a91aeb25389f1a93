// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.hpp"

namespace riskernels {
namespace {

bool built(SimdLevel level) {
  switch (level) {
#if defined(RISKERNELS_HAS_PORTABLE)
    case SimdLevel::portable:
      return true;
#endif
#if defined(RISKERNELS_HAS_AVX2)
    case SimdLevel::avx2:
      return true;
#endif
#if defined(RISKERNELS_HAS_AVX512)
    case SimdLevel::avx512:
      return true;
#endif
    default:
      return false;
  }
}

bool supported(SimdLevel level) {
  if (level == SimdLevel::portable) return true;
#if defined(__x86_64__)
  if (level == SimdLevel::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

SimdLevel choose() {
  if (const char* wanted = std::getenv("RISKERNELS_SIMD"); wanted != nullptr && *wanted != '\0') {
    for (int i = 0; i < 3; ++i) {
      const auto level = static_cast<SimdLevel>(i);
      if (std::string(wanted) != kNames[i]) continue;
      if (!supported(level))
        throw std::runtime_error(std::string("riskernels: RISKERNELS_SIMD=") + wanted +
                                 ", which this processor does not have");
      if (!built(level))
        throw std::runtime_error(std::string("riskernels: RISKERNELS_SIMD=") + wanted +
                                 ", which is not in this build of the library");
      return level;
    }
    throw std::runtime_error(std::string("riskernels: RISKERNELS_SIMD=") + wanted +
                             ", expected portable, avx2 or avx512");
  }
  for (const auto level : {SimdLevel::avx512, SimdLevel::avx2, SimdLevel::portable})
    if (built(level) && supported(level)) return level;
  throw std::runtime_error("riskernels: this processor has no instruction set of this build");
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = choose();
  return level;
}

const char* simd_level_name() { return kNames[static_cast<int>(simd_level())]; }

}  // namespace riskernels

// Read through ctypes; an unusable RISKERNELS_SIMD is reported as text, since C cannot throw.
extern "C" __attribute__((visibility("default"))) const char* riskernels_simd_level() {
  try {
    return riskernels::simd_level_name();
  } catch (const std::exception& error) {
    static const std::string message = error.what();
    return message.c_str();
  }
}
