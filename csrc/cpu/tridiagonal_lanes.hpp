// SPDX-License-Identifier: Apache-2.0
// Hermitian matrices in tridiagonal form, one per vector lane: lane w of every vector belongs to
// matrix w of a group, so no step needs a horizontal operation.
//
// A = Q D T D^H Q^H with Householder reflectors Q = H_0 H_1 ... and unit phases D that make T real.
// With T = Z diag(lambda) Z^T the eigenvectors are Q D Z: the iteration that finds Z is real.
#pragma once

#include "panel.hpp"

namespace riskernels::RISKERNELS_ISA {

using Double = Simd<double>;
using Doubles = Double::V;
using Words = Double::I;

// Squares below it are taken for zero: underflow has cost them digits. Matrices are scaled to
// entries of order 1.
constexpr double kNegligibleSquare = 0x1p-960;

RISKERNELS_INLINE Doubles square_roots(Doubles v) {
  // By elements, not through memory: compilers make one instruction of it.
  Doubles roots{};
  for (int w = 0; w < Double::W; ++w) roots[w] = __builtin_sqrt(v[w]);
  return roots;
}
RISKERNELS_INLINE Doubles magnitudes(Doubles v) { return v < 0.0 ? -v : v; }
RISKERNELS_INLINE Words words(int64_t i) { return Words{} + i; }

// Work of one group of matrices of `size` rows; every entry is a vector of lanes.
struct EigenLanes {
  int64_t size;
  Planar<double> matrix;   // [size, size]: A, lower triangle; then the reflectors in its columns
  Planar<double> vectors;  // [size, size]: Z, then the eigenvectors as columns; by columns
  double* diagonal;        // [size]: of T, then the eigenvalues in no order
  double* beside;          // [size]: T(i + 1, i), then 0
  double* inverse;         // [size]: H_k = I - inverse_k u_k u_k^H
  Planar<double> phases;   // [size]: D
  Planar<double> work;     // [size]

  static int64_t doubles(int64_t n) { return (4 * n * n + 7 * n) * Double::W; }

  EigenLanes(int64_t n, double* memory) : size(n) {
    constexpr int64_t kStep = Double::W;
    const auto take = [&](int64_t count) {
      double* const start = memory;
      memory += count * kStep;
      return start;
    };
    matrix = {take(n * n), take(n * n), n * kStep, kStep};
    vectors = {take(n * n), take(n * n), kStep, n * kStep};
    phases = {take(n), take(n), kStep};
    work = {take(n), take(n), kStep};
    diagonal = take(n);
    beside = take(n);
    inverse = take(n);
  }
};

// work = inverse * A u for the rows and columns from `first` on, u in column first - 1; returns
// u^H work.
RISKERNELS_INLINE Doubles reflected_product(const EigenLanes& t, int64_t first, Doubles inverse) {
  const auto u = t.matrix.at(0, first - 1);
  for (int64_t i = first; i < t.size; ++i) {
    const auto u_re = Double::load(u.re + i * u.row), u_im = Double::load(u.im + i * u.row);
    const auto row = t.matrix.at(i, 0);
    // The triangle above the diagonal is the conjugate of the one below.
    const auto own = Double::load(row.re + i * row.column);
    auto re = own * u_re, im = own * u_im;
    for (int64_t j = first; j < i; ++j) {
      const auto a_re = Double::load(row.re + j * row.column);
      const auto a_im = Double::load(row.im + j * row.column);
      const auto x_re = Double::load(u.re + j * u.row), x_im = Double::load(u.im + j * u.row);
      re += a_re * x_re;
      im += a_re * x_im;
      re -= a_im * x_im;
      im += a_im * x_re;
      double *const p_re = t.work.re + j * t.work.row, *const p_im = t.work.im + j * t.work.row;
      auto y_re = Double::load(p_re), y_im = Double::load(p_im);
      y_re += a_re * u_re;
      y_im += a_re * u_im;
      y_re += a_im * u_im;
      y_im -= a_im * u_re;
      Double::store(p_re, y_re);
      Double::store(p_im, y_im);
    }
    Double::store(t.work.re + i * t.work.row, re);
    Double::store(t.work.im + i * t.work.row, im);
  }
  Doubles product{};
  for (int64_t i = first; i < t.size; ++i) {
    double *const p_re = t.work.re + i * t.work.row, *const p_im = t.work.im + i * t.work.row;
    const auto re = Double::load(p_re) * inverse, im = Double::load(p_im) * inverse;
    product += re * Double::load(u.re + i * u.row);
    product += im * Double::load(u.im + i * u.row);
    Double::store(p_re, re);
    Double::store(p_im, im);
  }
  return product;
}

// A -= u q^H + q u^H for the rows and columns from `first` on, q in work.
RISKERNELS_INLINE void subtract_products(const EigenLanes& t, int64_t first) {
  const auto u = t.matrix.at(0, first - 1);
  for (int64_t i = first; i < t.size; ++i) {
    const auto u_re = Double::load(u.re + i * u.row), u_im = Double::load(u.im + i * u.row);
    const auto q_re = Double::load(t.work.re + i * t.work.row);
    const auto q_im = Double::load(t.work.im + i * t.work.row);
    const auto row = t.matrix.at(i, 0);
    for (int64_t j = first; j < i; ++j) {
      const auto x_re = Double::load(u.re + j * u.row), x_im = Double::load(u.im + j * u.row);
      const auto y_re = Double::load(t.work.re + j * t.work.row);
      const auto y_im = Double::load(t.work.im + j * t.work.row);
      auto re = Double::load(row.re + j * row.column), im = Double::load(row.im + j * row.column);
      re -= u_re * y_re;
      im -= u_im * y_re;
      re -= u_im * y_im;
      im += u_re * y_im;
      re -= q_re * x_re;
      im -= q_im * x_re;
      re -= q_im * x_im;
      im += q_re * x_im;
      Double::store(row.re + j * row.column, re);
      Double::store(row.im + j * row.column, im);
    }
    double* const own = row.re + i * row.column;
    Double::store(own, Double::load(own) - 2.0 * (u_re * q_re + u_im * q_im));
  }
}

// A -> T, D and the reflectors.
inline void tridiagonalise_lanes(const EigenLanes& t) {
  const int64_t n = t.size, step = Double::W;
  const auto one = Double::splat(1.0), zero = Doubles{};
  Double::store(t.phases.re, one);
  Double::store(t.phases.im, zero);
  Double::store(t.beside + (n - 1) * step, zero);
  for (int64_t k = 0; k + 1 < n; ++k) {
    const auto u = t.matrix.at(0, k);
    Doubles square{};
    for (int64_t i = n - 1; i > k + 1; --i) {
      const auto re = Double::load(u.re + i * u.row), im = Double::load(u.im + i * u.row);
      square += re * re;
      square += im * im;
    }
    // H maps the column x below the diagonal to -phase |x| e_1, with the phase of its first entry.
    const auto head = t.matrix.at(k + 1, k);
    const auto re = Double::load(head.re), im = Double::load(head.im);
    const auto head_square = re * re + im * im;
    square += head_square;
    const auto present = square > kNegligibleSquare, phased = head_square > kNegligibleSquare;
    const auto norm = present ? square_roots(square) : zero;
    const auto size = phased ? square_roots(head_square) : zero;
    const auto phase_re = phased ? re / size : one, phase_im = phased ? im / size : zero;
    const auto inverse = present ? one / (square + size * norm) : zero;
    Double::store(head.re, re + phase_re * norm);
    Double::store(head.im, im + phase_im * norm);
    Double::store(t.diagonal + k * step, Double::load(t.matrix.at(k, k).re));
    Double::store(t.beside + k * step, norm);
    Double::store(t.inverse + k * step, inverse);
    const auto before = t.phases.at(k, 0), after = t.phases.at(k + 1, 0);
    const auto d_re = Double::load(before.re), d_im = Double::load(before.im);
    Double::store(after.re, d_im * phase_im - d_re * phase_re);
    Double::store(after.im, -(d_re * phase_im + d_im * phase_re));
    // H A H = A - u q^H - q u^H, q = p - (inverse u^H p / 2) u, p = inverse A u.
    const auto half = 0.5 * inverse * reflected_product(t, k + 1, inverse);
    for (int64_t i = k + 1; i < n; ++i) {
      double *const q_re = t.work.re + i * step, *const q_im = t.work.im + i * step;
      Double::store(q_re, Double::load(q_re) - half * Double::load(u.re + i * u.row));
      Double::store(q_im, Double::load(q_im) - half * Double::load(u.im + i * u.row));
    }
    subtract_products(t, k + 1);
  }
  Double::store(t.diagonal + (n - 1) * step, Double::load(t.matrix.at(n - 1, n - 1).re));
}

// Z -> Q D Z.
inline void back_transform_lanes(const EigenLanes& t) {
  const auto z = t.vectors;
  for (int64_t i = 0; i < t.size; ++i) {
    const auto re = Double::load(t.phases.at(i, 0).re), im = Double::load(t.phases.at(i, 0).im);
    for (int64_t j = 0; j < t.size; ++j) {
      const auto entry = z.at(i, j);
      const auto value = Double::load(entry.re);
      Double::store(entry.re, value * re);
      Double::store(entry.im, value * im);
    }
  }
  for (int64_t k = t.size - 2; k >= 0; --k) {
    const auto u = t.matrix.at(0, k);
    const auto inverse = Double::load(t.inverse + k * Double::W);
    for_row_blocks(t.size, [&](auto size, int64_t j) {
      constexpr int R = decltype(size)::value;
      Doubles re[R], im[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) re[r] = im[r] = Doubles{};
      for (int64_t i = k + 1; i < t.size; ++i) {
        const auto u_re = Double::load(u.re + i * u.row), u_im = Double::load(u.im + i * u.row);
        const auto row = z.at(i, j);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const auto z_re = Double::load(row.re + r * z.column);
          const auto z_im = Double::load(row.im + r * z.column);
          re[r] += u_re * z_re;
          im[r] += u_re * z_im;
          re[r] += u_im * z_im;
          im[r] -= u_im * z_re;
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        re[r] *= inverse;
        im[r] *= inverse;
      }
      for (int64_t i = k + 1; i < t.size; ++i) {
        const auto u_re = Double::load(u.re + i * u.row), u_im = Double::load(u.im + i * u.row);
        const auto row = z.at(i, j);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          double *const p_re = row.re + r * z.column, *const p_im = row.im + r * z.column;
          auto z_re = Double::load(p_re), z_im = Double::load(p_im);
          z_re -= u_re * re[r];
          z_im -= u_re * im[r];
          z_re += u_im * im[r];
          z_im -= u_im * re[r];
          Double::store(p_re, z_re);
          Double::store(p_im, z_im);
        }
      }
    });
  }
}

}  // namespace riskernels::RISKERNELS_ISA
