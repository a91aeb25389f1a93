// SPDX-License-Identifier: Apache-2.0
// The row loops of the NMSE. Real and imaginary parts are squared alike, so rows stay interleaved.
#pragma once

#include <type_traits>

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

// The lanes of v that `blank` took from it, and 0 elsewhere: by bits, so that of a NaN elsewhere
// nothing is left.
template <typename T>
RISKERNELS_INLINE typename Simd<T>::V blanked_lanes(typename Simd<T>::V v,
                                                    typename Simd<T>::V kept) {
  using I = typename Simd<T>::I;
  return reinterpret_cast<typename Simd<T>::V>(reinterpret_cast<I>(v) ^ reinterpret_cast<I>(kept));
}

// Words of ones but for two neighbours, which begin at `kPair`.
template <typename T>
struct AllButPair {
  static constexpr int kPair = Simd<T>::W;
  typename Simd<T>::Int words[2 * kPair];
  constexpr AllButPair() : words{} {
    for (auto& word : words) word = -1;
    words[kPair] = words[kPair + 1] = 0;
  }
};
template <typename T>
inline constexpr AllButPair<T> kAllButPair;

// Asks for what a loop reads next. Vectors of half a line gain by it; where each vector is a line,
// hardware alone is faster.
template <typename T>
RISKERNELS_INLINE void prefetch_ahead(const T* estimate, const T* target, int64_t length) {
  constexpr int64_t kLine = 64 / sizeof(T), kAhead = 8 * kLine;
  if constexpr (RISKERNELS_VECTOR_BYTES == 64) return;
  for (int64_t u = 0; u < length; u += kLine) {
    __builtin_prefetch(estimate + u + kAhead);
    __builtin_prefetch(target + u + kAhead);
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
  // Rows [first, last) of contiguous matrices; the diagonal goes to `diagonal`. With n >= W columns
  // no vector holds more than one entry of it.
  // Vectors follow one another from the first row on, whatever row they are in, so that they are
  // whole lines of the caches where the rows begin with one.
  RISKERNELS_INLINE void add_rows(const T* estimate, const T* target, int64_t n, int64_t first,
                                  int64_t last, Energies& diagonal) {
    int64_t at = 2 * first * n;
    const int64_t end = 2 * last * n, whole = at + (end - at) / S::W * S::W;
    for (int64_t i = first; i < last; ++i) {
      const int64_t entry = 2 * i * (n + 1), vector = entry - (entry - 2 * first * n) % S::W;
      if (vector >= whole) break;
      add<false>(estimate + at, target + at, vector - at, nullptr);
      const auto* const mask = kAllButPair<T>.words + AllButPair<T>::kPair - (entry - vector);
      const auto t = S::load(target + vector), e = S::load(estimate + vector) - t;
      const auto off_e = blank<T>(e, mask), off_t = blank<T>(t, mask);
      add_vector(off_e, off_t);
      diagonal.add_vector(blanked_lanes<T>(e, off_e), blanked_lanes<T>(t, off_t));
      at = vector + S::W;
    }
    if (at < whole) add<false>(estimate + at, target + at, whole - at, nullptr);
    for (int64_t k = whole; k < end; ++k)
      (k / 2 % (n + 1) == 0 ? diagonal : *this).add_number(estimate[k], target[k]);
  }
  RISKERNELS_INLINE void add_number(T estimate, T target) {
    const T e = estimate - target;
    error += e * e;
    power += target * target;
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
  static constexpr int64_t kStep = kUnroll * S::W, kPending = 64 * kStep;

  RISKERNELS_INLINE void add_vector(typename S::V e, typename S::V t) {
    error_[0] += e * e;
    power_[0] += t * t;
    pending_ += kStep;
    if (pending_ >= kPending) flush();
  }

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
      add_number(estimate[k], target[k]);
    }
  }
  typename S::V error_[kUnroll] = {}, power_[kUnroll] = {};
  int64_t pending_ = 0;
};

// Gradients: scale E to the estimate, -(scale E + ratio T) to the target.
template <typename T>
struct NmseSlopes {
  T scale, ratio;
};

// Gradients of `length` numbers that share their slopes.
template <typename T, bool Estimate, bool Target, bool Stream = false>
RISKERNELS_INLINE void run_gradient(const T* estimate, const T* target, int64_t length,
                                    NmseSlopes<T> slopes, T* grad_estimate, T* grad_target) {
  using S = Simd<T>;
  constexpr int kUnroll = 4;
  const auto scales = S::splat(slopes.scale), ratios = S::splat(slopes.ratio);
  int64_t k = 0;
  // All loads before the stores: the compiler cannot know that outputs do not overlap inputs.
  const auto step = [&](auto vectors) __attribute__((always_inline)) {
    constexpr int kVectors = decltype(vectors)::value;
    typename S::V g[kVectors], t[kVectors];
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      t[u] = S::load(target + k + u * S::W);
      g[u] = scales * (S::load(estimate + k + u * S::W) - t[u]);
    }
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      if constexpr (Estimate) S::template put<Stream>(grad_estimate + k + u * S::W, g[u]);
      if constexpr (Target)
        S::template put<Stream>(grad_target + k + u * S::W, -(g[u] + ratios * t[u]));
    }
    k += kVectors * S::W;
  };
  while (k + kUnroll * S::W <= length) step(std::integral_constant<int, kUnroll>());
  while (k + S::W <= length) step(std::integral_constant<int, 1>());
  for (; k < length; ++k) {
    const T g = slopes.scale * (estimate[k] - target[k]);
    if constexpr (Estimate) grad_estimate[k] = g;
    if constexpr (Target) grad_target[k] = -(g + slopes.ratio * target[k]);
  }
}

// Rows [first, last) of contiguous matrices of whole vectors a row, past the caches. A vector is
// written at once, with what it holds of the diagonal.
template <typename T, bool Estimate, bool Target>
RISKERNELS_INLINE void streamed_gradient(const T* estimate, const T* target, int64_t n,
                                         int64_t first, int64_t last, NmseSlopes<T> off,
                                         NmseSlopes<T> on, T* grad_estimate, T* grad_target) {
  using S = Simd<T>;
  using I = typename S::I;
  const auto past = [](T* from, int64_t k) { return from == nullptr ? nullptr : from + k; };
  int64_t at = 2 * first * n;
  const auto until = [&](int64_t end) __attribute__((always_inline)) {
    run_gradient<T, Estimate, Target, true>(estimate + at, target + at, end - at, off,
                                            past(grad_estimate, at), past(grad_target, at));
    at = end;
  };
  for (int64_t i = first; i < last; ++i) {
    const int64_t entry = 2 * i * (n + 1), vector = entry - entry % S::W;
    until(vector);
    I keep;
    __builtin_memcpy(&keep, kAllButPair<T>.words + AllButPair<T>::kPair - (entry - vector),
                     sizeof(keep));
    const auto either = [keep](T elsewhere, T here) __attribute__((always_inline)) {
      return reinterpret_cast<typename S::V>((reinterpret_cast<I>(S::splat(elsewhere)) & keep) |
                                             (reinterpret_cast<I>(S::splat(here)) & ~keep));
    };
    const auto t = S::load(target + vector);
    const auto g = either(off.scale, on.scale) * (S::load(estimate + vector) - t);
    if constexpr (Estimate) S::stream(grad_estimate + vector, g);
    if constexpr (Target) S::stream(grad_target + vector, -(g + either(off.ratio, on.ratio) * t));
    at = vector + S::W;
  }
  until(2 * last * n);
}

// The same of a row with masked elements, whose gradients are zero.
template <typename T, bool Estimate, bool Target>
RISKERNELS_INLINE void masked_gradient(const T* estimate, const T* target, int64_t length,
                                       NmseSlopes<T> slopes, const typename Simd<T>::Int* mask,
                                       T* grad_estimate, T* grad_target) {
  using S = Simd<T>;
  const auto scales = S::splat(slopes.scale), ratios = S::splat(slopes.ratio);
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
    const T g = keep ? slopes.scale * (estimate[k] - target[k]) : T(0);
    if constexpr (Estimate) grad_estimate[k] = g;
    if constexpr (Target) grad_target[k] = -(g + (keep ? slopes.ratio * target[k] : T(0)));
  }
}

}  // namespace riskernels::RISKERNELS_ISA
