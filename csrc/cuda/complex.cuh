// SPDX-License-Identifier: Apache-2.0
// Complex numbers on the device: arithmetic by fused multiply-adds, and how they are moved.
#pragma once

#include "device.cuh"

namespace riskernels::cuda {

template <typename T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

// Two neighbours, moved by 16-byte accesses.
template <typename T>
struct alignas(16) ComplexPair {
  Complex<T> first, second;
};

template <typename T>
RISKERNELS_DEVICE Complex<T> conj(Complex<T> x) {
  return {x.re, -x.im};
}
template <typename T>
RISKERNELS_DEVICE Complex<T> operator+(Complex<T> x, Complex<T> y) {
  return {x.re + y.re, x.im + y.im};
}
template <typename T>
RISKERNELS_DEVICE Complex<T> operator-(Complex<T> x, Complex<T> y) {
  return {x.re - y.re, x.im - y.im};
}
template <typename T>
RISKERNELS_DEVICE Complex<T> operator*(Complex<T> x, T s) {
  return {x.re * s, x.im * s};
}
template <typename T>
RISKERNELS_DEVICE Complex<T> operator*(Complex<T> x, Complex<T> y) {
  return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
}
template <typename T>
RISKERNELS_DEVICE T norm(Complex<T> x) {
  return x.re * x.re + x.im * x.im;
}

// sum += x y, sum += x conj(y), sum -= x y
template <typename T>
RISKERNELS_DEVICE void add_product(Complex<T>& sum, Complex<T> x, Complex<T> y) {
  sum.re += x.re * y.re;
  sum.im += x.re * y.im;
  sum.re -= x.im * y.im;
  sum.im += x.im * y.re;
}
template <typename T>
RISKERNELS_DEVICE void add_product_conj(Complex<T>& sum, Complex<T> x, Complex<T> y) {
  sum.re += x.re * y.re;
  sum.im += x.im * y.re;
  sum.re += x.im * y.im;
  sum.im -= x.re * y.im;
}
template <typename T>
RISKERNELS_DEVICE void subtract_product(Complex<T>& sum, Complex<T> x, Complex<T> y) {
  sum.re -= x.re * y.re;
  sum.im -= x.re * y.im;
  sum.re += x.im * y.im;
  sum.im -= x.im * y.re;
}

// 1 / x to within an ulp for normal x, without the division's call for all others: what is larger
// than 2^125, infinity too, counts as 2^125.
RISKERNELS_DEVICE float reciprocal(float x) {
  constexpr float kLargest = 4.2535296e37f;
  x = x > kLargest ? kLargest : x;
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
#else
  const float r = 1.0f / x;
#endif
  return fmaf(r, fmaf(-x, r, 1.0f), r);
}
RISKERNELS_DEVICE double reciprocal(double x) { return 1.0 / x; }

template <typename T>
RISKERNELS_DEVICE ComplexPair<T> load_pair(const Complex<T>* p) {
  return *reinterpret_cast<const ComplexPair<T>*>(p);
}
template <typename T>
RISKERNELS_DEVICE void store_pair(Complex<T>* p, Complex<T> first, Complex<T> second) {
  *reinterpret_cast<ComplexPair<T>*>(p) = {first, second};
}

template <typename T>
RISKERNELS_DEVICE Complex<T> shuffle(Complex<T> x, int lane, int width) {
  return {__shfl_sync(kFullWarp, x.re, lane, width), __shfl_sync(kFullWarp, x.im, lane, width)};
}

// Element e of real memory that holds complex numbers.
template <typename T>
RISKERNELS_DEVICE const Complex<T>* complex_at(const T* p, int64_t e) {
  return reinterpret_cast<const Complex<T>*>(p) + e;
}
template <typename T>
RISKERNELS_DEVICE Complex<T>* complex_at(T* p, int64_t e) {
  return reinterpret_cast<Complex<T>*>(p) + e;
}

// Global to shared memory without passing through registers; where !valid, zero is written.
// Complete after copies_done() and a barrier. E: what is moved, of 8 or 16 bytes.
template <typename E>
RISKERNELS_DEVICE void copy_async(E* to, const E* from, bool valid) {
#if defined(__CUDA_ARCH__)
  static_assert(sizeof(E) == 8 || sizeof(E) == 16, "sizes that cp.async moves at any cache level");
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
               "n"(sizeof(E)), "r"(valid ? static_cast<int>(sizeof(E)) : 0)
               : "memory");
#else
  *to = valid ? *from : E{};
#endif
}
RISKERNELS_DEVICE void copies_done() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Copies a row of `count` complex numbers, `stride` apart, by the lanes of a warp, and zeroes the
// rest up to `total`. `to` lies on 16 bytes.
template <typename T>
RISKERNELS_DEVICE void copy_row_async(int lane, Complex<T>* to, const Complex<T>* from,
                                      int64_t stride, int count, int total) {
  if (sizeof(T) == 4 && stride == 1 && count % 2 == 0 && total % 2 == 0 &&
      reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    const auto* const pairs = reinterpret_cast<const ComplexPair<T>*>(from);
    auto* const to_pairs = reinterpret_cast<ComplexPair<T>*>(to);
    for (int k = lane; 2 * k < total; k += kWarp)
      if constexpr (sizeof(T) == 4)
        copy_async(to_pairs + k, 2 * k < count ? pairs + k : pairs, 2 * k < count);
    return;
  }
  const Complex<T>* next = from + lane * stride;
  for (int k = lane; k < total; k += kWarp, next += kWarp * stride)
    copy_async(to + k, k < count ? next : from, k < count);
}

}  // namespace riskernels::cuda
