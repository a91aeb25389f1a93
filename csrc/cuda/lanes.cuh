// SPDX-License-Identifier: Apache-2.0
// Sixteen sums at once by sixteen lanes: every lane adds up its share of the terms of all of them,
// then the lanes exchange halves until lane q holds the whole of sum q. The order of the additions
// is fixed.
#pragma once

#include "complex.cuh"

namespace riskernels::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTerms = 16;  // lanes that share the terms of a sum
constexpr int kTeams = kThreads / kTerms;

// Blocks of a staged kernel on a multiprocessor. Without a number the compiler may spill for the
// sake of more.
template <typename T>
constexpr int kStagedBlocks = sizeof(T) == 8 ? 1 : 2;

// What a thread is in its block. Every phase of a kernel makes one of its own: what it derives from
// the index is then not kept in registers through the phases that follow.
struct Place {
  int thread;

  RISKERNELS_DEVICE Place() : thread(static_cast<int>(threadIdx.x)) {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(thread));
#endif
  }
  RISKERNELS_DEVICE int warp() const { return thread / kWarp; }
  RISKERNELS_DEVICE int lane() const { return thread % kWarp; }
  RISKERNELS_DEVICE int team() const { return thread / kTerms; }
  RISKERNELS_DEVICE int term() const { return thread % kTerms; }
};

// Lanes Half apart exchange: 2 Half sums of either become Half sums of both.
template <int Half, typename T>
RISKERNELS_DEVICE void exchange_half(Complex<T> (&sum)[16], int term) {
  const bool upper = (term & Half) != 0;
  RISKERNELS_UNROLL
  for (int i = 0; i < Half; ++i) {
    const Complex<T> keep = upper ? sum[i + Half] : sum[i];
    const Complex<T> give = upper ? sum[i] : sum[i + Half];
    sum[i].re = keep.re + __shfl_xor_sync(kFullWarp, give.re, Half);
    sum[i].im = keep.im + __shfl_xor_sync(kFullWarp, give.im, Half);
  }
}

template <typename T>
RISKERNELS_DEVICE Complex<T> exchange_sums(Complex<T> (&sum)[16], int term) {
  exchange_half<8>(sum, term);
  exchange_half<4>(sum, term);
  exchange_half<2>(sum, term);
  exchange_half<1>(sum, term);
  return sum[0];
}

// Runs f(item, valid) for items 0..count-1, one to a team. The lanes of a warp stay together, as
// the exchange needs: a team without an item of its own repeats the last one, with valid false.
template <typename F>
RISKERNELS_DEVICE void for_team_items(const Place& at, int count, const F& f) {
  for (int first = at.warp() * 2; first < count; first += kTeams) {
    const int item = first + at.team() % 2;
    f(item < count ? item : count - 1, item < count);
  }
}

// Position of an item in a lower triangle stored by rows.
struct TrianglePosition {
  int row, column;

  RISKERNELS_DEVICE explicit TrianglePosition(int item)
      : row(static_cast<int>(sqrtf(2.0f * static_cast<float>(item)))) {
    // The root of 2 item is row or row + 1, but for its rounding.
    while (row * (row + 1) / 2 > item) --row;
    while ((row + 1) * (row + 2) / 2 <= item) ++row;
    column = item - row * (row + 1) / 2;
  }
};

RISKERNELS_DEVICE int minimum(int x, int y) { return x < y ? x : y; }

}  // namespace riskernels::cuda
