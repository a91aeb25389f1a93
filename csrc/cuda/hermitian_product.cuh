// SPDX-License-Identifier: Apache-2.0
// g_l(i) = (1/L) sum_j P_ij a_l(j) with P = G + G^H, by panels of 16 rows of P: the gradient of the
// covariance to its estimates. G is read by rows and by columns, coalesced either way.
#pragma once

#include "estimates.cuh"

namespace riskernels::cuda {

constexpr int kPanel = 16;

// Rows of a panel lie a multiple of 4 banks apart and stay 16-byte aligned.
__host__ __device__ constexpr int panel_pitch(int columns) {
  return static_cast<int>(round_up(columns, kPanel)) + 2;
}

// panel(r, c) = P(i0 + r, j0 + c) for c < columns (a multiple of 16), zero outside of P.
template <typename T>
RISKERNELS_DEVICE void load_panel(const Place& at, const Strided<T>& g, int64_t n, int64_t i0,
                                  int64_t j0, int columns, Complex<T>* panel, int pitch) {
  const int present = static_cast<int>(n - j0 < columns ? n - j0 : columns);
  for (int r = at.warp(); r < kPanel; r += kWarps) {
    const bool inside = i0 + r < n;
    copy_row_async(at.lane(), panel + r * pitch, inside ? g.at(i0 + r, j0) : g.data, g.column,
                   inside ? present : 0, columns);
  }
  // The columns of G are on their way together with its rows.
  constexpr int kAhead = sizeof(T) == 4 ? 10 : 5;
  const Complex<T>* from = g.at(j0 + at.team(), i0 + at.term());
  Complex<T>* entry = panel + at.term() * pitch + at.team();
  const int end = i0 + at.term() < n ? present - at.team() : 0;
  RISKERNELS_UNROLL_BY(1)
  for (int first = 0; first < columns; first += kAhead * kTeams) {
    Complex<T> value[kAhead];
    RISKERNELS_UNROLL
    for (int e = 0; e < kAhead; ++e) {
      if (first + e * kTeams < end) value[e] = *from;
      from += kTeams * g.row;
    }
    if (first == 0) {
      copies_done();
      __syncthreads();
    }
    RISKERNELS_UNROLL
    for (int e = 0; e < kAhead; ++e) {
      if (first + e * kTeams < end) entry[e * kTeams] = entry[e * kTeams] + conj(value[e]);
    }
    entry += kAhead * kTeams;
  }
  __syncthreads();
}

// Adds the panel's share of sum_j P_ij a_l(j) for 4 snapshots from l on and 4 rows from r on; sum
// index 4 * snapshot + row. `a` holds the panel's columns; rows past the last may hold anything.
template <typename T>
RISKERNELS_DEVICE void add_panel(const Place& at, const Complex<T>* panel, int pitch, int columns,
                                 Rows<T> a, int l, int r, Complex<T> (&sum)[16]) {
  RISKERNELS_UNROLL_BY(1)
  for (int k = 2 * at.term(); k < columns; k += 2 * kTerms) {
    ComplexPair<T> x[4];
    RISKERNELS_UNROLL
    for (int s = 0; s < 4; ++s) x[s] = load_pair(a.row(l + s) + k);
    RISKERNELS_UNROLL
    for (int e = 0; e < 4; ++e) {
      const ComplexPair<T> p = load_pair(panel + (r + e) * pitch + k);
      RISKERNELS_UNROLL
      for (int s = 0; s < 4; ++s) {
        add_product(sum[4 * s + e], p.first, x[s].first);
        add_product(sum[4 * s + e], p.second, x[s].second);
      }
    }
  }
}

// All of g from estimates in shared memory whose rows are zero past the last element. Ends with a
// barrier; the panel is free again.
template <typename T>
RISKERNELS_DEVICE void hermitian_product(const Place& at, const Strided<T>& grad, int n,
                                         int snapshots, Rows<T> a, Rows<T> g, Complex<T>* panel) {
  const int columns = static_cast<int>(round_up(n, kPanel)), pitch = panel_pitch(n);
  const int blocks = (snapshots + 3) / 4;
  const T scale = reciprocal(static_cast<T>(snapshots));
  for (int i0 = 0; i0 < columns; i0 += kPanel) {
    load_panel<T>(at, grad, n, i0, 0, columns, panel, pitch);
    for_team_items(at, 4 * blocks, [&](int item, bool valid) {
      const int l = item / 4 * 4, r = item % 4 * 4;
      Complex<T> sum[16] = {};
      add_panel<T>(at, panel, pitch, columns, a, l, r, sum);
      const Complex<T> whole = exchange_sums(sum, at.term());
      const int row = l + at.term() / 4;
      if (valid && row < snapshots) g.row(row)[i0 + r + at.term() % 4] = whole * scale;
    });
    __syncthreads();
  }
}

}  // namespace riskernels::cuda
