// SPDX-License-Identifier: Apache-2.0
// The row loops of the leakage: a few rows of the covariance at a time meet all columns of the
// basis. Complex products on interleaved data take a second operand with real and imaginary parts
// exchanged, which the rows (forward) or V (backward) provide.
#pragma once

#include "simd.hpp"

namespace riskernels::RISKERNELS_ISA {

// Vectors of one row that are in registers together.
constexpr int kVectors = 2;
// Rows of the covariance in registers together: with exchanged copies forward, without backward.
constexpr int kForwardRows = RISKERNELS_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kBackwardRows = 4;

// (im, -re) of every complex number.
template <typename T>
struct Exchange {
  using S = Simd<T>;
  using Int = typename S::Int;
  using Lanes = std::make_integer_sequence<Int, S::W>;

  static RISKERNELS_INLINE typename S::V apply(typename S::V v) {
    const auto flipped = reinterpret_cast<typename S::I>(swap(v, Lanes())) ^ signs(Lanes());
    return reinterpret_cast<typename S::V>(flipped);
  }

 private:
  template <Int... K>
  static RISKERNELS_INLINE typename S::V swap(typename S::V v, std::integer_sequence<Int, K...>) {
#if defined(__clang__)
    return __builtin_shufflevector(v, v, (K ^ 1)...);
#else
    return __builtin_shuffle(v, typename S::I{(K ^ 1)...});
#endif
  }
  template <Int... K>
  static RISKERNELS_INLINE typename S::I signs(std::integer_sequence<Int, K...>) {
    constexpr Int kSign = Int(1) << (8 * sizeof(Int) - 1);
    return typename S::I{(K % 2 == 0 ? Int(0) : kSign)...};
  }
};

// Reals that one step of a row loop takes.
template <typename T>
constexpr int64_t kStep = kVectors * Simd<T>::W;

// f(rows, at) for every step of the R rows of `length` reals; the last step is padded with zeros.
template <typename T, int R, typename F>
RISKERNELS_INLINE void for_each_step(const T* const (&rows)[R], int64_t length, const F& f) {
  const T* x[R];
  int64_t at = 0;
  for (; at + kStep<T> <= length; at += kStep<T>) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = rows[r] + at;
    f(x, at);
  }
  if (at == length) return;
  alignas(RISKERNELS_VECTOR_BYTES) T tail[R][kStep<T>] = {};
  for (int r = 0; r < R; ++r) {
    __builtin_memcpy(tail[r], rows[r] + at, static_cast<std::size_t>(length - at) * sizeof(T));
    x[r] = tail[r];
  }
  f(x, at);
}

// w(k, .) += sum_r conj(q(r, k)) x(r, .); returns |x|^2.
template <typename T, int R>
T project_rows(const T* const (&rows)[R], int64_t length, const T* q, int64_t q_row,
               int64_t columns, T* w, int64_t w_row) {
  using S = Simd<T>;
  typename S::V squares[kVectors] = {};
  for_each_step<T, R>(rows, length, [&](const T* const(&x)[R], int64_t at) {
    typename S::V a[R][kVectors], b[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int u = 0; u < kVectors; ++u) {
        a[r][u] = S::load(x[r] + u * S::W);
        squares[u] += a[r][u] * a[r][u];
        b[r][u] = Exchange<T>::apply(a[r][u]);
      }
    }
    for (int64_t k = 0; k < columns; ++k) {
      T* const to = w + k * w_row + at;
      typename S::V sum[kVectors];
#pragma GCC unroll 8
      for (int u = 0; u < kVectors; ++u) sum[u] = S::load(to + u * S::W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const T* const entry = q + r * q_row + 2 * k;
        const auto re = S::splat(entry[0]), im = S::splat(entry[1]);
#pragma GCC unroll 8
        for (int u = 0; u < kVectors; ++u) {
          sum[u] += re * a[r][u];
          sum[u] += im * b[r][u];
        }
      }
#pragma GCC unroll 8
      for (int u = 0; u < kVectors; ++u) S::store(to + u * S::W, sum[u]);
    }
  });
  typename S::V all = squares[0];
  for (int u = 1; u < kVectors; ++u) all += squares[u];
  return S::sum(all);
}

// out(r, .) = alpha x(r, .) + sum_k q(r, k) v(k, .), where `exchanged` holds -i v.
template <typename T, int R>
void gradient_rows(const T* const (&rows)[R], int64_t length, T alpha, const T* q, int64_t q_row,
                   int64_t columns, const T* v, const T* exchanged, int64_t v_row, T* out) {
  using S = Simd<T>;
  const auto scale = S::splat(alpha);
  for_each_step<T, R>(rows, length, [&](const T* const(&x)[R], int64_t at) {
    typename S::V sum[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int u = 0; u < kVectors; ++u) sum[r][u] = scale * S::load(x[r] + u * S::W);
    for (int64_t k = 0; k < columns; ++k) {
      typename S::V a[kVectors], b[kVectors];
#pragma GCC unroll 8
      for (int u = 0; u < kVectors; ++u) {
        a[u] = S::load(v + k * v_row + at + u * S::W);
        b[u] = S::load(exchanged + k * v_row + at + u * S::W);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const T* const entry = q + r * q_row + 2 * k;
        const auto re = S::splat(entry[0]), im = S::splat(entry[1]);
#pragma GCC unroll 8
        for (int u = 0; u < kVectors; ++u) {
          sum[r][u] += re * a[u];
          sum[r][u] -= im * b[u];
        }
      }
    }
    if (at + kStep<T> <= length) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int u = 0; u < kVectors; ++u) S::store(out + r * length + at + u * S::W, sum[r][u]);
    } else {
      alignas(RISKERNELS_VECTOR_BYTES) T tail[kStep<T>];
      for (int r = 0; r < R; ++r) {
        for (int u = 0; u < kVectors; ++u) S::store(tail + u * S::W, sum[r][u]);
        __builtin_memcpy(out + r * length + at, tail,
                         static_cast<std::size_t>(length - at) * sizeof(T));
      }
    }
  });
}

}  // namespace riskernels::RISKERNELS_ISA
