// SPDX-License-Identifier: Apache-2.0
// Lower triangles of weighted Gram matrices H diag(w) H^H, stored as one lane of [M, M] vectors
// each.
#pragma once

#include "gauss_products.hpp"

namespace riskernels::RISKERNELS_ISA {

// sums[k] = the sum of the lanes of v[k], several at a time: unpacking two vectors puts their lanes
// side by side, where one addition halves the number of both.
template <typename T, int Count>
RISKERNELS_INLINE void lane_sums(const typename Simd<T>::V (&v)[Count], T (&sums)[Count]) {
  using S = Simd<T>;
  constexpr int kBlock = 16 / sizeof(T);
  const auto join = [](typename S::V a, typename S::V b) RISKERNELS_INLINE_LAMBDA {
    typename S::V low, high;
    S::interleave_lane_order(a, b, low, high);
    return low + high;
  };
  constexpr int kWhole = Count / kBlock * kBlock;
#pragma GCC unroll 8
  for (int k = 0; k < kWhole; k += kBlock) {
    typename S::V joined;
    if constexpr (kBlock == 4)
      joined = join(join(v[k], v[k + 2]), join(v[k + 1], v[k + 3]));
    else
      joined = join(v[k], v[k + 1]);
    joined = S::sum_of_blocks(joined);
#pragma GCC unroll 4
    for (int e = 0; e < kBlock; ++e) sums[k + e] = joined[e];
  }
#pragma GCC unroll 4
  for (int k = kWhole; k < Count; ++k) sums[k] = S::sum(v[k]);
}

// Rows i .. i + I - 1 and columns j .. j + J - 1 of sum_k w_k h(i, k) conj(h(j, k)); `left` holds
// w times rows i on.
template <int I, int J, typename T>
RISKERNELS_INLINE void gram_block(int64_t depth, Planar<const T> left, Planar<const T> h,
                                  const Planar<T>& out) {
  using S = Simd<T>;
  // What crosses real and imaginary parts has accumulators of its own: they would else be as many
  // as the multiply-adds have steps to go, and wait for each other.
  typename S::V parts[2 * I * J], crossed[2 * I * J];
#pragma GCC unroll 8
  for (int e = 0; e < 2 * I * J; ++e) parts[e] = crossed[e] = typename S::V{};
  for (int64_t k = 0; k < depth; k += S::W) {
#pragma GCC unroll 2
    for (int i = 0; i < I; ++i) {
      const auto x_re = S::load(left.re + i * left.row + k);
      const auto x_im = S::load(left.im + i * left.row + k);
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) {
        const auto y_re = S::load(h.re + j * h.row + k), y_im = S::load(h.im + j * h.row + k);
        const int re = 2 * (i * J + j), im = re + 1;
        parts[re] += x_re * y_re;
        parts[im] += x_im * y_re;
        auto& more = RISKERNELS_VECTOR_BYTES == 64 ? crossed : parts;
        more[re] += x_im * y_im;
        more[im] -= x_re * y_im;
      }
    }
  }
  if constexpr (RISKERNELS_VECTOR_BYTES == 64)
#pragma GCC unroll 8
    for (int e = 0; e < 2 * I * J; ++e) parts[e] += crossed[e];
  T sums[2 * I * J];
  lane_sums<T>(parts, sums);
#pragma GCC unroll 2
  for (int i = 0; i < I; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < J; ++j) {
      const auto to = out.at(i, j);
      *to.re = sums[2 * (i * J + j)];
      *to.im = sums[2 * (i * J + j) + 1];
    }
}

// `left` is room for 2 rows of `depth`, a multiple of the vector width.
template <typename T>
inline void weighted_gram(int64_t m, int64_t depth, Planar<const T> h, const T* weights,
                          const Planar<T>& left, const Planar<T>& out) {
  using S = Simd<T>;
  const Planar<const T> rows{left.re, left.im, left.row};
  for (int64_t i = 0; i < m; i += 2) {
    const bool pair = i + 1 < m;
    for (int64_t r = 0; r < 1 + pair; ++r) {
      const auto row = h.at(i + r, 0);
      const auto to = left.at(r, 0);
      for (int64_t k = 0; k < depth; k += S::W) {
        const auto w = S::load(weights + k);
        S::store(to.re + k, w * S::load(row.re + k));
        S::store(to.im + k, w * S::load(row.im + k));
      }
    }
    for (int64_t j = 0; j < i; j += 2) {
      if (pair)
        gram_block<2, 2>(depth, rows, h.at(j, 0), out.at(i, j));
      else
        gram_block<1, 2>(depth, rows, h.at(j, 0), out.at(i, j));
    }
    if (pair)
      gram_block<2, 2>(depth, rows, h.at(i, 0), out.at(i, i));
    else
      gram_block<1, 1>(depth, rows, h.at(i, 0), out.at(i, i));
  }
}

// The Gram matrices of all snapshots that share H, whose weights w_l differ: products h_i conj(h_j)
// of some pairs (i, j) at a time, then their real-weighted sums for all lanes.
template <typename T>
struct GramOfPairs {
  using S = Simd<T>;
  static constexpr int kPairs = RISKERNELS_VECTOR_BYTES == 64 ? 6 : 3;
  static constexpr int kRows = 2 * kPairs;

  int64_t depth, lanes;
  Planar<const T> h;
  const T* weights;  // [depth, lanes]
  T* products;       // [2 kPairs, depth]
  Planar<T> out;

  void run(int64_t m) const {
    int64_t to[kPairs];
    int filled = 0;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        multiply_pair(i, j, products + 2 * filled * depth);
        to[filled++] = i * out.row + j * out.column;
        if (filled < kPairs && (i + 1 < m || j < i)) continue;
        sum_pairs(to, filled);
        filled = 0;
      }
  }

 private:
  void multiply_pair(int64_t i, int64_t j, T* to) const {
    const auto a = h.at(i, 0), b = h.at(j, 0);
    for (int64_t k = 0; k < depth; k += S::W) {
      const auto x_re = S::load(a.re + k), x_im = S::load(a.im + k);
      const auto y_re = S::load(b.re + k), y_im = S::load(b.im + k);
      S::store(to + k, x_re * y_re + x_im * y_im);
      S::store(to + depth + k, x_im * y_re - x_re * y_im);
    }
  }

  void sum_pairs(const int64_t* to, int filled) const {
    for_vector_groups(lanes / S::W, [&](auto group, int64_t first) {
      constexpr int V = decltype(group)::value;
      if constexpr (V <= 2) {
        sum_lanes<V>(to, filled, first * S::W);
      } else {
        sum_lanes<2>(to, filled, first * S::W);
        sum_lanes<V - 2>(to, filled, (first + 2) * S::W);
      }
    });
  }

  // Not inlined: registers are for its loop alone.
  template <int V>
  __attribute__((noinline)) void sum_lanes(const int64_t* to, int filled, int64_t lane) const {
    typename S::V sum[2 * kPairs][V];
#pragma GCC unroll 16
    for (int r = 0; r < 2 * kPairs; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = typename S::V{};
    multiply_real<false, T, 2 * kPairs, V>(depth, products, depth, 1, weights + lane, lanes, sum);
#pragma GCC unroll 16
    for (int r = 0; r < 2 * kPairs; ++r) {
      if (r >= 2 * filled) return;
      T* const part = (r % 2 == 0 ? out.re : out.im) + to[r / 2] + lane;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) S::store(part + v * S::W, sum[r][v]);
    }
  }
};

}  // namespace riskernels::RISKERNELS_ISA
