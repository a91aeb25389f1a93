// SPDX-License-Identifier: Apache-2.0
// Entries of steering vectors, made where they are used.
//
// Lengths are counted in wavelengths and phases in turns. With q = wavelength / r and e = p /
// wavelength,
//   d = 2 u . e - q |e|^2,   rho^2 = (R / r)^2 = 1 - q d,   phase = (r - R) / wavelength = d / (1 +
//   rho):
// no two nearly equal numbers are subtracted, however large r is, and r = inf is the plane wave.
// Per point (2 u, q) and per element (e, |e|^2) are computed in double and rounded to T. A phase is
// then wrong by a few ulps of the aperture in turns. The scale 1 / sqrt(N) is left to the sums.
#pragma once

#include <bit>

#include "../common/steering_problem.hpp"
#include "factor_rows.cuh"

namespace riskernels::cuda {

constexpr int kSteeringThreads = 128;
// Elements that a block has at hand at once, and what their number is rounded up to: multiples of
// the rows of every kind of chunk.
constexpr int kTableRows = 480, kTablePadding = 48;
__host__ __device__ constexpr int64_t table_rows(int64_t elements) {
  const int64_t padded = round_up(elements, kTablePadding);
  return padded < kTableRows ? padded : kTableRows;
}

// (2 u, q) of a point, (e, |e|^2) of an element.
template <typename T>
struct alignas(16) Quad {
  T x, y, z, w;
};

// 1 / sqrt(x) for normal x > 0; in float to two ulps.
RISKERNELS_DEVICE float inverse_root(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return rsqrtf(x);
#endif
}
RISKERNELS_DEVICE double inverse_root(double x) { return rsqrt(x); }

RISKERNELS_DEVICE int float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(x);
#else
  return std::bit_cast<int>(x);
#endif
}

// Sine and cosine of 2 pi t, to 1e-7. The quarter turns are taken off exactly, and what is left is
// at most an eighth, where minimax polynomials take over (relative error 3e-9 of the sine). About
// half the instructions of sincospif().
RISKERNELS_DEVICE void sincos_turns(float t, float& sine, float& cosine) {
  constexpr float kQuadrant = 12582912.0f;  // 3 * 2^22: the last bits of the sum count quarters
  const float quarters = rintf(4.0f * t), r = fmaf(quarters, -0.25f, t), z = r * r;
  const float s =
      r * fmaf(fmaf(fmaf(-75.3934319f, z, 81.592351f), z, -41.3416614f), z, 6.28318529f);
  const float c =
      fmaf(fmaf(fmaf(fmaf(59.245865f, z, -85.4437391f), z, 64.9393265f), z, -19.7392087f), z, 1.0f);
  const int quadrant = float_bits(quarters + kQuadrant);
  const bool swapped = (quadrant & 1) != 0;
  sine = swapped ? c : s;
  cosine = swapped ? s : c;
  if ((quadrant & 2) != 0) sine = -sine;
  if (((quadrant + 1) & 2) != 0) cosine = -cosine;
}
RISKERNELS_DEVICE void sincos_turns(double turns, double& sine, double& cosine) {
  sincospi(2.0 * turns, &sine, &cosine);
}

// Of an angle in radians, to an ulp of 1. The reduction of sincos() for large angles would take a
// stack frame; this one keeps the rounding of x / pi instead.
RISKERNELS_DEVICE void sincos_angle(double x, double& sine, double& cosine) {
  constexpr double kInverse = 0.3183098861837907, kRest = -1.9678676675182486e-17;  // 1 / pi
  const double whole = x * kInverse;
  const double rest = fma(x, kInverse, -whole) + x * kRest;
  sincospi(whole - 2.0 * rint(0.5 * whole) + rest, &sine, &cosine);
}

// What a thread knows of its point.
template <typename T>
RISKERNELS_DEVICE Quad<T> steering_point(const SteeringProblem<T>& p, int64_t scene,
                                         int64_t point) {
  // Beyond the last point any finite vector does.
  if (point >= p.points) return {};
  double azimuth_sine, azimuth_cosine, sine, cosine;
  sincos_angle(p.phi.at(scene, point), azimuth_sine, azimuth_cosine);
  sincos_angle(p.theta.at(scene, point), sine, cosine);
  const double r = p.r.at(scene, point);
  // Written so that NaN gives NaN.
  const double q = r > 0.0 ? p.wavelength / r : static_cast<double>(NAN);
  return {static_cast<T>(2.0 * cosine * azimuth_cosine),
          static_cast<T>(2.0 * cosine * azimuth_sine), static_cast<T>(2.0 * sine),
          static_cast<T>(q)};
}

template <typename T>
RISKERNELS_DEVICE Quad<T> steering_element(const SteeringProblem<T>& p, int64_t element,
                                           double wavenumber /* 1 / wavelength */) {
  const double x = p.positions.at(element, 0) * wavenumber;
  const double y = p.positions.at(element, 1) * wavenumber;
  const double z = p.positions.at(element, 2) * wavenumber;
  return {static_cast<T>(x), static_cast<T>(y), static_cast<T>(z),
          static_cast<T>(x * x + y * y + z * z)};
}

// sqrt(N) a_n(g).
template <typename T>
RISKERNELS_DEVICE Complex<T> steering_entry(const Quad<T>& point, const Quad<T>& element,
                                            bool taper) {
  const T d =
      point.x * element.x + (point.y * element.y + (point.z * element.z - point.w * element.w));
  T square = T(1) - point.w * d;
  if (taper) {
    // |u - q p|^2, which near an element keeps the digits that the difference loses.
    const T dx = T(0.5) * point.x - point.w * element.x;
    const T dy = T(0.5) * point.y - point.w * element.y;
    const T dz = T(0.5) * point.z - point.w * element.z;
    square = dx * dx + (dy * dy + dz * dz);
  }
  // Rounding alone can make it negative, at an element. NaN is in d too.
  const T positive = square > Limits<T>::kSmallest ? square : Limits<T>::kSmallest;
  const T inverse = inverse_root(positive);  // 1 / rho
  const T phase = d * reciprocal(T(1) + positive * inverse);
  Complex<T> a;
  sincos_turns(phase, a.im, a.re);
  return taper ? a * inverse : a;
}

// The rows of one thread's point in the steering tile of its block, [rows, points of the tile], and
// the block's table of elements.
template <typename T, int Points, int Stride>
class SteeringRows {
 public:
  // All threads of a block work on the same scene.
  RISKERNELS_DEVICE SteeringRows(const SteeringProblem<T>& p, Quad<T>* table)
      : p_(p), table_(table) {}

  // Turns to points first..first+Points-1.
  RISKERNELS_DEVICE void select(int64_t scene, int64_t first) {
    point_ = steering_point(p_, scene, first + own());
  }

  // Rows first..first+Rows-1 to `to`; beyond the last element whatever an element at the origin
  // receives, which meets zeros of X or is not used. Reached by all threads; complete behind a
  // barrier.
  template <int Rows>
  RISKERNELS_DEVICE void make(int64_t first, Complex<T>* to) {
    static_assert(kTableRows % Rows == 0 && kTablePadding % Rows == 0);
    hold(first / kTableRows * kTableRows);
    constexpr int kStep = kSteeringThreads / Points;
    const Quad<T>* const elements = table_ + (first - held_);
    RISKERNELS_UNROLL_BY(2)
    for (int row = static_cast<int>(threadIdx.x) / Points; row < Rows; row += kStep)
      to[row * Stride + own()] = steering_entry(point_, elements[row], p_.taper);
  }

 private:
  RISKERNELS_DEVICE int own() const { return static_cast<int>(threadIdx.x) % Points; }

  RISKERNELS_DEVICE void hold(int64_t first) {
    if (first == held_) return;
    if (held_ >= 0) __syncthreads();
    const double wavenumber = 1.0 / p_.wavelength;
    const int64_t left = p_.elements - first;
    const int count = static_cast<int>(table_rows(left));
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kSteeringThreads)
      table_[i] = i < left ? steering_element(p_, first + i, wavenumber) : Quad<T>{};
    held_ = first;
    __syncthreads();
  }

  const SteeringProblem<T>& p_;
  Quad<T>* const table_;
  Quad<T> point_;
  int64_t held_ = -1;
};

}  // namespace riskernels::cuda
