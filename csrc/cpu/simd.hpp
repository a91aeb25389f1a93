// SPDX-License-Identifier: Apache-2.0
// Vectors of one instruction set. A kernel file is compiled once per instruction set with
// RISKERNELS_ISA naming it; everything here lives in that namespace, so that the linker can never
// replace one set's code by another's. For the same reason kernels call no inline std function.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if !defined(RISKERNELS_ISA) || !defined(RISKERNELS_VECTOR_BYTES)
#error "kernel files are compiled with RISKERNELS_ISA and RISKERNELS_VECTOR_BYTES"
#endif

#define RISKERNELS_INLINE inline __attribute__((always_inline))

namespace riskernels::RISKERNELS_ISA {

template <typename T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

template <typename T>
struct Simd {
  using Int = typename IntegerOf<T>::type;
  static constexpr int W = RISKERNELS_VECTOR_BYTES / sizeof(T);
  static constexpr T kEpsilon = sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52);
  static constexpr T kSmallest = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);  // normal
  typedef T V __attribute__((vector_size(RISKERNELS_VECTOR_BYTES)));
  typedef Int I __attribute__((vector_size(RISKERNELS_VECTOR_BYTES)));
  typedef T Unaligned
      __attribute__((vector_size(RISKERNELS_VECTOR_BYTES), aligned(alignof(T)), may_alias));

  static RISKERNELS_INLINE V load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static RISKERNELS_INLINE void store(T* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static RISKERNELS_INLINE V splat(T s) { return splat_(s, std::make_integer_sequence<Int, W>()); }
  static RISKERNELS_INLINE T sum(V v) {
    for (int step = W / 2; step > 0; step /= 2)
      v += rotate(v, step, std::make_integer_sequence<Int, W>());
    return v[0];
  }
  // The sum of the blocks of 16 bytes of v, in each of them.
  static RISKERNELS_INLINE V sum_of_blocks(V v) {
    for (int step = W / 2; step >= kBlock; step /= 2)
      v += rotate(v, step, std::make_integer_sequence<Int, W>());
    return v;
  }

  // (re0 im0 re1 im1 ...) in a, b  <->  (re0 re1 ...), (im0 im1 ...)
  static RISKERNELS_INLINE void deinterleave(V a, V b, V& re, V& im) {
    deinterleave_(a, b, re, im, std::make_integer_sequence<Int, W>());
  }
  static RISKERNELS_INLINE void interleave(V re, V im, V& a, V& b) {
    interleave_(re, im, a, b, std::make_integer_sequence<Int, W>());
  }

  // Lane order: the order of elements in which re and im are interleaved by one unpacking
  // instruction each, which works within blocks of 16 bytes. In a vector of 8 floats it is
  // 0 1 4 5 2 3 6 7; in a vector of 16 bytes it is the natural order.
  static constexpr int position_in_lane_order(int element) {
    const int half = element / (W / 2), pair = element % (W / 2);
    return pair / (kBlock / 2) * kBlock + half * (kBlock / 2) + pair % (kBlock / 2);
  }
  static RISKERNELS_INLINE V to_lane_order(V v) {
    return permute_(v, std::make_integer_sequence<Int, W>());
  }
  static RISKERNELS_INLINE void interleave_lane_order(V re, V im, V& a, V& b) {
    unpack_(re, im, a, b, std::make_integer_sequence<Int, W>());
  }

  // A store past the caches, where the instruction set has one; p is aligned to the vector.
  static constexpr bool kStreams = RISKERNELS_VECTOR_BYTES > 16;
  static RISKERNELS_INLINE void stream(T* p, V v) {
#if RISKERNELS_VECTOR_BYTES > 16 && defined(__clang__)
    __builtin_nontemporal_store(v, reinterpret_cast<V*>(p));
#elif RISKERNELS_VECTOR_BYTES == 64 && defined(__AVX512F__)
    asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<Unaligned*>(p)) : "v"(v));
#elif RISKERNELS_VECTOR_BYTES == 32 && defined(__AVX__)
    asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<Unaligned*>(p)) : "x"(v));
#else
    store(p, v);
#endif
  }
  template <bool Stream>
  static RISKERNELS_INLINE void put(T* p, V v) {
    if constexpr (Stream)
      stream(p, v);
    else
      store(p, v);
  }
  // Orders streamed stores before all later ones: due before another thread may read them.
  static RISKERNELS_INLINE void stream_fence() {
#if defined(__x86_64__)
    asm volatile("sfence" ::: "memory");
#endif
  }

 private:
  static constexpr int kBlock = 16 / sizeof(T);
  // The element at a position of lane order.
  static constexpr Int element_in_lane_order(int position) {
    const int block = position / kBlock, in_block = position % kBlock;
    return in_block / (kBlock / 2) * (W / 2) + block * (kBlock / 2) + in_block % (kBlock / 2);
  }
  // Source lane of unpacked lane k: re and im (from W on) alternate, from the low or high half of
  // each block.
  static constexpr Int unpacked(int k, int high) {
    return k / kBlock * kBlock + high * (kBlock / 2) + k % kBlock / 2 + k % 2 * W;
  }
  template <Int... K>
  static RISKERNELS_INLINE V splat_(T s, std::integer_sequence<Int, K...>) {
    return V{(static_cast<void>(K), s)...};
  }
  // Lane k of the result is lane k + step of v, for steps that are known once loops are unrolled.
  template <Int... K>
  static RISKERNELS_INLINE V rotate(V v, int step, std::integer_sequence<Int, K...>) {
    return V{v[(K + step) % W]...};
  }
#if defined(__clang__)
  template <Int... K>
  static RISKERNELS_INLINE void deinterleave_(V a, V b, V& re, V& im,
                                              std::integer_sequence<Int, K...>) {
    re = __builtin_shufflevector(a, b, (2 * K)...);
    im = __builtin_shufflevector(a, b, (2 * K + 1)...);
  }
  template <Int... K>
  static RISKERNELS_INLINE void interleave_(V re, V im, V& a, V& b,
                                            std::integer_sequence<Int, K...>) {
    a = __builtin_shufflevector(re, im, (K / 2 + (K % 2) * W)...);
    b = __builtin_shufflevector(re, im, (W / 2 + K / 2 + (K % 2) * W)...);
  }
  template <Int... K>
  static RISKERNELS_INLINE V permute_(V v, std::integer_sequence<Int, K...>) {
    return __builtin_shufflevector(v, v, (element_in_lane_order(K))...);
  }
  template <Int... K>
  static RISKERNELS_INLINE void unpack_(V re, V im, V& a, V& b, std::integer_sequence<Int, K...>) {
    a = __builtin_shufflevector(re, im, (unpacked(K, 0))...);
    b = __builtin_shufflevector(re, im, (unpacked(K, 1))...);
  }
#else
  template <Int... K>
  static RISKERNELS_INLINE void deinterleave_(V a, V b, V& re, V& im,
                                              std::integer_sequence<Int, K...>) {
    re = __builtin_shuffle(a, b, I{(2 * K)...});
    im = __builtin_shuffle(a, b, I{(2 * K + 1)...});
  }
  template <Int... K>
  static RISKERNELS_INLINE void interleave_(V re, V im, V& a, V& b,
                                            std::integer_sequence<Int, K...>) {
    a = __builtin_shuffle(re, im, I{(K / 2 + (K % 2) * W)...});
    b = __builtin_shuffle(re, im, I{(W / 2 + K / 2 + (K % 2) * W)...});
  }
  template <Int... K>
  static RISKERNELS_INLINE V permute_(V v, std::integer_sequence<Int, K...>) {
    return __builtin_shuffle(v, I{(element_in_lane_order(K))...});
  }
  template <Int... K>
  static RISKERNELS_INLINE void unpack_(V re, V im, V& a, V& b, std::integer_sequence<Int, K...>) {
    a = __builtin_shuffle(re, im, I{(unpacked(K, 0))...});
    b = __builtin_shuffle(re, im, I{(unpacked(K, 1))...});
  }
#endif
};

RISKERNELS_INLINE constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// One complex row of n elements with any stride into planar re and im.
template <typename T>
RISKERNELS_INLINE void load_row(const T* row, int64_t stride, int64_t n, T* re, T* im) {
  using S = Simd<T>;
  int64_t i = 0;
  if (stride == 1) {
    for (; i + S::W <= n; i += S::W) {
      typename S::V a, b;
      S::deinterleave(S::load(row + 2 * i), S::load(row + 2 * i + S::W), a, b);
      S::store(re + i, a);
      S::store(im + i, b);
    }
    // The last vector overlaps the one before it rather than leaving single elements.
    if (i < n && n >= S::W) {
      i = n - S::W;
      typename S::V a, b;
      S::deinterleave(S::load(row + 2 * i), S::load(row + 2 * i + S::W), a, b);
      S::store(re + i, a);
      S::store(im + i, b);
      i = n;
    }
  }
  for (; i < n; ++i) {
    re[i] = row[2 * i * stride];
    im[i] = row[2 * i * stride + 1];
  }
}

// A copy past the caches, but for what lies in lines that it shares with its neighbours.
template <typename T>
inline void stream_copy(T* to, int64_t n, const T* from) {
  using S = Simd<T>;
  int64_t i = 0;
  for (; i < n && reinterpret_cast<std::uintptr_t>(to + i) % 64 != 0; ++i) to[i] = from[i];
  constexpr int64_t kLine = 64 / sizeof(T);
  for (; i + kLine <= n; i += kLine)
    for (int64_t k = i; k < i + kLine; k += S::W) S::stream(to + k, S::load(from + k));
  for (; i < n; ++i) to[i] = from[i];
  S::stream_fence();
}

// Planar re and im into one contiguous complex row of n elements.
template <typename T>
RISKERNELS_INLINE void store_row(T* row, int64_t n, const T* re, const T* im) {
  using S = Simd<T>;
  int64_t i = 0;
  for (; i + S::W <= n; i += S::W) {
    typename S::V a, b;
    S::interleave(S::load(re + i), S::load(im + i), a, b);
    S::store(row + 2 * i, a);
    S::store(row + 2 * i + S::W, b);
  }
  for (; i < n; ++i) {
    row[2 * i] = re[i];
    row[2 * i + 1] = im[i];
  }
}

}  // namespace riskernels::RISKERNELS_ISA
