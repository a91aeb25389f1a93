// SPDX-License-Identifier: Apache-2.0
// What the multiply-add units of a core give when nothing else stands in their way.
#include "kernels.hpp"
#include "simd.hpp"

namespace riskernels::RISKERNELS_ISA {

// The factor and the term come from another file, which gets the result: nothing can be left out.
template <typename T>
void multiply_add_rate(int64_t rounds, T factor, T term, double& flops, T& result) {
  using S = Simd<T>;
  // Enough to hide the latency of two units, few enough to stay in registers.
  constexpr int kChains = RISKERNELS_VECTOR_BYTES == 64 ? 24 : 12;
  const auto x = S::splat(factor), y = S::splat(term);
  typename S::V chain[kChains];
#pragma GCC unroll 24
  for (int c = 0; c < kChains; ++c) chain[c] = S::splat(static_cast<T>(c));
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * x + y;
  auto sum = chain[0];
#pragma GCC unroll 24
  for (int c = 1; c < kChains; ++c) sum += chain[c];
  result = S::sum(sum);
  flops = 2.0 * S::W * kChains * static_cast<double>(rounds);
}

template void multiply_add_rate<float>(int64_t, float, float, double&, float&);
template void multiply_add_rate<double>(int64_t, double, double, double&, double&);

}  // namespace riskernels::RISKERNELS_ISA
