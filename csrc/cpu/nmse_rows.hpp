// SPDX-License-Identifier: Apache-2.0
// The row loops of the NMSE. Real and imaginary parts are squared alike, so rows stay interleaved.
// Stores are ordinary ones: those that bypass the caches measured slower, whatever the size.
#pragma once

#include "simd.hpp"

namespace riskernels::RISKERNELS_ISA {

// Row views of one scene: rows with unit stride are read in place, others gathered.
template <typename T>
class RowReader {
 public:
  RowReader(const T* base, const int64_t* stride, int64_t n, T* buffer)
      : base_(base), row_(stride[1]), column_(stride[2]), n_(n), buffer_(buffer) {}

  bool contiguous() const { return row_ == n_ && column_ == 1; }
  const T* row(int64_t i) const {
    const T* from = base_ + 2 * i * row_;
    if (column_ == 1) return from;
    for (int64_t j = 0; j < n_; ++j) {
      buffer_[2 * j] = from[2 * j * column_];
      buffer_[2 * j + 1] = from[2 * j * column_ + 1];
    }
    return buffer_;
  }

 private:
  const T* base_;
  int64_t row_, column_, n_;
  T* buffer_;
};

// v where the words of a mask are ones, 0 elsewhere.
template <typename T>
RISKERNELS_INLINE typename Simd<T>::V blank(typename Simd<T>::V v,
                                            const typename Simd<T>::Int* words) {
  typename Simd<T>::I keep;
  __builtin_memcpy(&keep, words, sizeof(keep));
  return reinterpret_cast<typename Simd<T>::V>(reinterpret_cast<typename Simd<T>::I>(v) & keep);
}

// Numbers ahead of a loop that are asked for: what hardware asks for by itself comes too late for
// vectors of a whole line.
template <typename T>
constexpr int64_t kLine = 64 / sizeof(T);
template <typename T>
constexpr int64_t kAhead = (RISKERNELS_VECTOR_BYTES == 64 ? 48 : 8) * kLine<T>;

template <typename T>
RISKERNELS_INLINE void prefetch_ahead(const T* estimate, const T* target, int64_t length) {
  for (int64_t u = 0; u < length; u += kLine<T>) {
    __builtin_prefetch(estimate + u + kAhead<T>);
    __builtin_prefetch(target + u + kAhead<T>);
  }
}

// Sums of |E|^2 and |T|^2, in vectors of the working precision that are emptied into double before
// a lane has added up so many numbers that rounding shows.
template <typename T>
class Energies {
 public:
  using S = Simd<T>;
  double error = 0, power = 0;

  // A stretch of a row; `mask` is not read without Masked.
  template <bool Masked>
  RISKERNELS_INLINE void add(const T* estimate, const T* target, int64_t length,
                             const typename S::Int* mask) {
    for (int64_t at = 0; at < length; at += kPending) {
      const int64_t piece = length - at < kPending ? length - at : kPending;
      add_piece<Masked>(estimate + at, target + at, piece, mask + (Masked ? at : 0));
      pending_ += piece;
      if (pending_ >= kPending) flush();
    }
  }
  RISKERNELS_INLINE void flush() {
    typename S::V e{}, p{};
    for (int u = 0; u < kUnroll; ++u) {
      e += error_[u];
      p += power_[u];
      error_[u] = power_[u] = typename S::V{};
    }
    error += S::sum(e);
    power += S::sum(p);
    pending_ = 0;
  }

 private:
  static constexpr int kUnroll = 4;
  static constexpr int64_t kStep = kUnroll * S::W, kPending = 32 * kStep;

  template <bool Masked>
  RISKERNELS_INLINE void add_piece(const T* estimate, const T* target, int64_t length,
                                   const typename S::Int* mask) {
    const auto step = [&](int u, int64_t k) __attribute__((always_inline)) {
      auto t = S::load(target + k);
      auto e = S::load(estimate + k) - t;
      if constexpr (Masked) {
        e = blank<T>(e, mask + k);
        t = blank<T>(t, mask + k);
      }
      error_[u] += e * e;
      power_[u] += t * t;
    };
    int64_t k = 0;
    for (; k + kStep <= length; k += kStep) {
      // At the end of a row of a contiguous matrix this asks for the next one's lines.
      prefetch_ahead(estimate + k, target + k, kStep);
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) step(u, k + u * S::W);
    }
    for (; k + S::W <= length; k += S::W) step(0, k);
    for (; k < length; ++k) {
      if (Masked && mask[k] == 0) continue;
      const T e = estimate[k] - target[k];
      error += e * e;
      power += target[k] * target[k];
    }
  }
  typename S::V error_[kUnroll] = {}, power_[kUnroll] = {};
  int64_t pending_ = 0;
};

// Gradients of `length` numbers off the diagonal.
template <typename T, bool Estimate, bool Target>
RISKERNELS_INLINE void run_gradient(const T* estimate, const T* target, int64_t length, T scale,
                                    T ratio, T* grad_estimate, T* grad_target) {
  using S = Simd<T>;
  constexpr int kUnroll = 4;
  const auto scales = S::splat(scale), ratios = S::splat(ratio);
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    const auto t = S::load(target + k);
    const auto g = scales * (S::load(estimate + k) - t);
    if constexpr (Estimate) S::store(grad_estimate + k, g);
    if constexpr (Target) S::store(grad_target + k, -(g + ratios * t));
  };
  int64_t k = 0;
  // All loads before the stores: the compiler cannot know that outputs do not overlap inputs.
  for (; k + kUnroll * S::W <= length; k += kUnroll * S::W) {
    typename S::V g[kUnroll], t[kUnroll];
    if constexpr (RISKERNELS_VECTOR_BYTES == 64)
      prefetch_ahead(estimate + k, target + k, kUnroll * S::W);
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      t[u] = S::load(target + k + u * S::W);
      g[u] = scales * (S::load(estimate + k + u * S::W) - t[u]);
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      if constexpr (Estimate) S::store(grad_estimate + k + u * S::W, g[u]);
      if constexpr (Target) S::store(grad_target + k + u * S::W, -(g[u] + ratios * t[u]));
    }
  }
  for (; k + S::W <= length; k += S::W) step(k);
  for (; k < length; ++k) {
    const T g = scale * (estimate[k] - target[k]);
    if constexpr (Estimate) grad_estimate[k] = g;
    if constexpr (Target) grad_target[k] = -(g + ratio * target[k]);
  }
}

// The same of a row with masked elements, whose gradients are zero.
template <typename T, bool Estimate, bool Target>
RISKERNELS_INLINE void masked_gradient(const T* estimate, const T* target, int64_t length, T scale,
                                       T ratio, const typename Simd<T>::Int* mask, T* grad_estimate,
                                       T* grad_target) {
  using S = Simd<T>;
  const auto scales = S::splat(scale), ratios = S::splat(ratio);
  int64_t k = 0;
  for (; k + S::W <= length; k += S::W) {
    const auto t = S::load(target + k);
    // Blanked last: an infinite scale (nothing off the diagonal is kept, eps = 0) times 0 is NaN.
    const auto g = blank<T>(scales * (S::load(estimate + k) - t), mask + k);
    if constexpr (Estimate) S::store(grad_estimate + k, g);
    if constexpr (Target) S::store(grad_target + k, -(g + blank<T>(ratios * t, mask + k)));
  }
  for (; k < length; ++k) {
    const bool keep = mask[k] != 0;
    const T g = keep ? scale * (estimate[k] - target[k]) : T(0);
    if constexpr (Estimate) grad_estimate[k] = g;
    if constexpr (Target) grad_target[k] = -(g + (keep ? ratio * target[k] : T(0)));
  }
}

}  // namespace riskernels::RISKERNELS_ISA
