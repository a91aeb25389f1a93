// SPDX-License-Identifier: Apache-2.0
// The K x K algebra of the leakage, in complex double: T = G^-1 L with G = gram + ridge I and
// L L^H = gram + 2 ridge I, so that (S T)(S T)^H = 2P - P^2 for the ridge projector P on the
// columns of S. Matrices are interleaved, row by row.
#pragma once

#include "simd.hpp"

namespace riskernels::RISKERNELS_ISA {

// Lower Cholesky factor [k, k] of gram + shift I, with pivots of at least `floor`; NaN passes.
inline void lower_factor(int64_t k, const double* gram, int64_t gram_row, double shift,
                         double floor, double* factor) {
  for (int64_t j = 0; j < k; ++j) {
    const double* const pivot_row = factor + 2 * j * k;
    double pivot = gram[2 * j * (gram_row + 1)] + shift;
    for (int64_t m = 0; m < 2 * j; ++m) pivot -= pivot_row[m] * pivot_row[m];
    const double root = __builtin_sqrt(pivot < floor ? floor : pivot);
    factor[2 * j * (k + 1)] = root;
    factor[2 * j * (k + 1) + 1] = 0;
    for (int64_t i = j + 1; i < k; ++i) {
      double* const row = factor + 2 * i * k;
      double re = gram[2 * (i * gram_row + j)], im = gram[2 * (i * gram_row + j) + 1];
      for (int64_t m = 0; m < j; ++m) {
        re -= row[2 * m] * pivot_row[2 * m] + row[2 * m + 1] * pivot_row[2 * m + 1];
        im -= row[2 * m + 1] * pivot_row[2 * m] - row[2 * m] * pivot_row[2 * m + 1];
      }
      row[2 * j] = re / root;
      row[2 * j + 1] = im / root;
    }
  }
}

// Complex doubles of work space that leakage_transform needs.
RISKERNELS_INLINE constexpr int64_t leakage_transform_work(int64_t k) { return 2 * k * k; }

// transform [k, k] from gram [k, k] with rows `gram_row` complex numbers apart.
//
// In exact arithmetic no pivot is below the ridge. Where the ridge is below the rounding errors of
// nearly dependent columns, the floor keeps noise from being divided by less than itself.
inline void leakage_transform(int64_t k, const double* gram, int64_t gram_row, double ridge,
                              double* work, double* transform) {
  double* const factor = work;
  double* const doubled = work + 2 * k * k;
  double largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const double entry = gram[2 * i * (gram_row + 1)];
    largest = entry > largest ? entry : largest;
  }
  const double noise = 8 * static_cast<double>(k) * Simd<double>::kEpsilon * largest;
  const double floor = noise > ridge ? noise : ridge;
  lower_factor(k, gram, gram_row, ridge, floor, factor);
  lower_factor(k, gram, gram_row, 2 * ridge, floor, doubled);
  // Column c of L starts at row c, and so does its forward substitution.
  for (int64_t c = 0; c < k; ++c) {
    const auto at = [&](int64_t i) { return transform + 2 * (i * k + c); };
    for (int64_t i = c; i < k; ++i) {
      const double* const row = factor + 2 * i * k;
      double re = doubled[2 * (i * k + c)], im = doubled[2 * (i * k + c) + 1];
      for (int64_t m = c; m < i; ++m) {
        const double* const z = at(m);
        re -= row[2 * m] * z[0] - row[2 * m + 1] * z[1];
        im -= row[2 * m] * z[1] + row[2 * m + 1] * z[0];
      }
      at(i)[0] = re / row[2 * i];
      at(i)[1] = im / row[2 * i];
    }
    for (int64_t i = k - 1; i >= 0; --i) {
      double re = i < c ? 0 : at(i)[0], im = i < c ? 0 : at(i)[1];
      for (int64_t m = i + 1; m < k; ++m) {
        const double* const f = factor + 2 * (m * k + i);
        const double* const t = at(m);
        re -= f[0] * t[0] + f[1] * t[1];
        im -= f[0] * t[1] - f[1] * t[0];
      }
      at(i)[0] = re / factor[2 * i * (k + 1)];
      at(i)[1] = im / factor[2 * i * (k + 1)];
    }
  }
}

}  // namespace riskernels::RISKERNELS_ISA
