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

// 1 / x to within an ulp for normal x up to a quarter of the largest number, without the division's
// call for the numbers beyond.
RISKERNELS_DEVICE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return __fmaf_rn(r, __fmaf_rn(-x, r, 1.0f), r);
#else
  return 1.0f / x;
#endif
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
// Complete after copies_done() and a barrier.
template <typename T>
RISKERNELS_DEVICE void copy_async(Complex<T>* to, const Complex<T>* from, bool valid) {
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  constexpr int kBytes = sizeof(Complex<T>);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
               "n"(kBytes), "r"(valid ? kBytes : 0)
               : "memory");
#else
  *to = valid ? *from : Complex<T>{};
#endif
}
RISKERNELS_DEVICE void copies_done() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace riskernels::cuda
