// SPDX-License-Identifier: Apache-2.0
// Gram matrices H diag(w) H^H of a chunk of columns in shared memory, both triangles written.
#pragma once

#include "lanes.cuh"

namespace riskernels::cuda {

// Where the rows of a channel lie: [M, columns] with `pitch`, zero past the last element.
template <typename T>
struct Rows {
  Complex<T>* data;
  int pitch;

  RISKERNELS_DEVICE Complex<T>* row(int i) const { return data + i * pitch; }
};

// Hermitian matrices of m rows one after the other, both triangles, rows of `pitch`.
template <typename T>
struct SquareMatrices {
  Complex<T>* data;
  int m, pitch;

  // Entry (i, j), i >= j, of matrix g; added to what is there, or in its place.
  template <bool Add>
  RISKERNELS_DEVICE void put(int g, int i, int j, Complex<T> value) const {
    Complex<T>* const s = data + g * m * pitch;
    if (i == j) value.im = T(0);
    if (Add) value = value + s[i * pitch + j];
    s[i * pitch + j] = value;
    if (i != j) s[j * pitch + i] = conj(value);
  }
};

// One Hermitian matrix, its lower triangle by rows.
template <typename T>
struct PackedMatrix {
  Complex<T>* data;

  RISKERNELS_DEVICE Complex<T>* row(int64_t i) const { return data + i * (i + 1) / 2; }
  template <bool Add>
  RISKERNELS_DEVICE void put(int, int i, int j, Complex<T> value) const {
    if (i == j) value.im = T(0);
    Complex<T>& entry = row(i)[j];
    entry = Add ? value + entry : value;
  }
};

// s_g (+)= H_g diag(w_g) H_g^H for `systems` channels: rows of h and weights that belong to system
// g start g * (m rows, one row) further on. Teams take 4 x 4 tiles, which may read up to three rows
// past the last, for sums that nobody uses.
template <bool Add, typename T, typename Matrices>
RISKERNELS_DEVICE void gram_of_systems(const Place& at, int m, int count, int systems, Rows<T> h,
                                       const T* weights, const Matrices& s) {
  const int edge = (m + 3) / 4;
  const int tiles = edge * (edge + 1) / 2;
  for_team_items(at, tiles * systems, [&](int item, bool valid) {
    const int g = item / tiles;
    const TrianglePosition tile(item % tiles);
    const Complex<T>* rows = h.row(g * m + 4 * tile.row) + at.term();
    const Complex<T>* columns = h.row(g * m + 4 * tile.column) + at.term();
    const T* const w = weights + g * h.pitch;
    Complex<T> sum[16] = {};
    RISKERNELS_UNROLL_BY(1)
    for (int k = at.term(); k < count; k += kTerms) {
      Complex<T> y[4];
      RISKERNELS_UNROLL
      for (int j = 0; j < 4; ++j) y[j] = columns[j * h.pitch];
      RISKERNELS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const Complex<T> x = rows[i * h.pitch] * w[k];
        RISKERNELS_UNROLL
        for (int j = 0; j < 4; ++j) add_product_conj(sum[4 * i + j], x, y[j]);
      }
      rows += kTerms;
      columns += kTerms;
    }
    const Complex<T> whole = exchange_sums(sum, at.term());
    const int i = 4 * tile.row + at.term() / 4, j = 4 * tile.column + at.term() % 4;
    if (valid && i < m && j <= i) s.template put<Add>(g, i, j, whole);
  });
}

// s_l = H diag(w_l) H^H for the four snapshots of a group that share H: each product
// H_ik conj(H_jk) is formed once for the four. Teams take 2 x 2 tiles, of which the last may read
// one row past the channel's.
template <typename T>
RISKERNELS_DEVICE void gram_of_four(const Place& at, int m, int count, int snapshots, Rows<T> h,
                                    const T* weights, const SquareMatrices<T>& s) {
  const int edge = (m + 1) / 2;
  for_team_items(at, edge * (edge + 1) / 2, [&](int item, bool valid) {
    const TrianglePosition tile(item);
    const Complex<T>* rows = h.row(2 * tile.row) + at.term();
    const Complex<T>* columns = h.row(2 * tile.column) + at.term();
    const T* weight = weights + at.term();
    Complex<T> sum[16] = {};
    RISKERNELS_UNROLL_BY(1)
    for (int k = at.term(); k < count; k += kTerms) {
      const Complex<T> x[2] = {rows[0], rows[h.pitch]}, y[2] = {columns[0], columns[h.pitch]};
      Complex<T> product[4] = {};
      RISKERNELS_UNROLL
      for (int e = 0; e < 4; ++e) add_product_conj(product[e], x[e / 2], y[e % 2]);
      RISKERNELS_UNROLL
      for (int l = 0; l < 4; ++l) {
        const T w = weight[l * h.pitch];
        RISKERNELS_UNROLL
        for (int e = 0; e < 4; ++e) {
          sum[4 * e + l].re += w * product[e].re;
          sum[4 * e + l].im += w * product[e].im;
        }
      }
      rows += kTerms;
      columns += kTerms;
      weight += kTerms;
    }
    const Complex<T> whole = exchange_sums(sum, at.term());
    const int l = at.term() % 4, e = at.term() / 4;
    const int i = 2 * tile.row + e / 2, j = 2 * tile.column + e % 2;
    if (valid && l < snapshots && i < m && j <= i) s.template put<false>(l, i, j, whole);
  });
}

}  // namespace riskernels::cuda
