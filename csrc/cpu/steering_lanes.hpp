// SPDX-License-Identifier: Apache-2.0
// Steering vectors of a block of points, one point a lane, without their factor 1 / sqrt(N); the
// derivation is in riskernels/reference/steering_power.py. Phases are counted in half turns: taking
// the nearest whole number off leaves at most a quarter turn, for which short polynomials do, and
// the number's last bit is the sign that was taken off with it.
#pragma once

#include "../common/steering_problem.hpp"
#include "simd.hpp"

#if RISKERNELS_VECTOR_BYTES > 16 && defined(__x86_64__)
#include <immintrin.h>
#endif

namespace riskernels::RISKERNELS_ISA {

constexpr int kPointVectors = 2;
template <typename T>
constexpr int64_t kPoints = kPointVectors * Simd<T>::W;  // points of a block

// sin(pi f) / f and cos(pi f) for |f| <= 1/2 as polynomials in f^2, lowest power first. Their
// largest errors are 7e-9 and 5e-8 in float, 1e-18 and 4e-18 in double.
template <typename T>
struct HalfTurn;
template <>
struct HalfTurn<float> {
  static constexpr float kSine[] = {3.14159264f, -5.16771009f, 2.55007766f, -0.5982921595f,
                                    0.07765940833f};
  static constexpr float kCosine[] = {0.9999999535f, -4.934792859f, 4.058411914f, -1.331880161f,
                                      0.2196967985f};
  static constexpr float kRound = 0x1.8p23f;
};
template <>
struct HalfTurn<double> {
  static constexpr double kSine[] = {
      3.1415926535897932378,    -5.1677127800499696087,    2.5501640398773005565,
      -0.59926452931894730659,  0.082145886573144154003,   -7.3704305062690522241e-3,
      4.6629981785447559995e-4, -2.1903501172434364498e-5, 7.6978677482917002901e-7};
  static constexpr double kCosine[] = {
      0.99999999999999999609,  -4.9348022005446767738,    4.0587121264164975465,
      -1.3352627688434645983,  0.23533063012980795793,    -0.025806888739349941299,
      1.929556283580796798e-3, -1.0456658070965192449e-4, 4.1495916771909805469e-6};
  static constexpr double kRound = 0x1.8p52;
};

// sin and cos of pi h. Right for |h| below 2^22, or 2^51 in double.
template <typename T>
RISKERNELS_INLINE void half_turn_waves(typename Simd<T>::V h, typename Simd<T>::V& sine,
                                       typename Simd<T>::V& cosine) {
  using S = Simd<T>;
  using Table = HalfTurn<T>;
  constexpr int kTerms = sizeof(Table::kSine) / sizeof(T), kSignBit = 8 * sizeof(T) - 1;
  const auto magic = S::splat(Table::kRound);
  const auto shifted = h + magic;
  const auto f = h - (shifted - magic);
  const auto sign = reinterpret_cast<typename S::I>(shifted) << kSignBit;
  const auto w = f * f;
  auto s = S::splat(Table::kSine[kTerms - 1]), c = S::splat(Table::kCosine[kTerms - 1]);
#pragma GCC unroll 16
  for (int i = kTerms - 2; i >= 0; --i) {
    s = s * w + S::splat(Table::kSine[i]);
    c = c * w + S::splat(Table::kCosine[i]);
  }
  s *= f;
  sine = reinterpret_cast<typename S::V>(reinterpret_cast<typename S::I>(s) ^ sign);
  cosine = reinterpret_cast<typename S::V>(reinterpret_cast<typename S::I>(c) ^ sign);
}

// 1 / sqrt(x) and sqrt(x), and numerator / denominator. In float, the processor's estimates with as
// many terms of their series as leave an error below rounding; otherwise exact.
template <typename T>
struct Quotients {
  using S = Simd<T>;
  static RISKERNELS_INLINE void roots(typename S::V x, typename S::V& inverse,
                                      typename S::V& root) {
#pragma GCC unroll 16
    for (int w = 0; w < S::W; ++w) root[w] = __builtin_sqrt(x[w]);
    inverse = S::splat(T(1)) / root;
  }
  static RISKERNELS_INLINE typename S::V ratio(typename S::V numerator, typename S::V denominator) {
    return numerator / denominator;
  }
};

#if RISKERNELS_VECTOR_BYTES > 16 && defined(__x86_64__)
template <>
struct Quotients<float> {
  using S = Simd<float>;
#if RISKERNELS_VECTOR_BYTES == 64
  static constexpr bool kThirdTerm = false;  // estimates to 2^-14
  static RISKERNELS_INLINE S::V root_estimate(S::V x) { return _mm512_rsqrt14_ps(x); }
  static RISKERNELS_INLINE S::V inverse_estimate(S::V x) { return _mm512_rcp14_ps(x); }
#else
  static constexpr bool kThirdTerm = true;  // estimates to 1.5 2^-12
  static RISKERNELS_INLINE S::V root_estimate(S::V x) { return _mm256_rsqrt_ps(x); }
  static RISKERNELS_INLINE S::V inverse_estimate(S::V x) { return _mm256_rcp_ps(x); }
#endif
  // With e = 1 - x y^2, 1 / sqrt(x) = y (1 + e / 2 + 3 e^2 / 8 + ...).
  static RISKERNELS_INLINE void roots(S::V x, S::V& inverse, S::V& root) {
    const auto y = root_estimate(x), h = x * y;
    const auto e = S::splat(1.0f) - h * y;
    auto series = S::splat(0.5f) * e;
    if constexpr (kThirdTerm) series = e * (S::splat(0.5f) + S::splat(0.375f) * e);
    inverse = y + y * series;
    root = h + h * series;
  }
  // With e = 1 - d y, 1 / d = y (1 + e + e^2 + ...).
  static RISKERNELS_INLINE S::V ratio(S::V numerator, S::V denominator) {
    const auto y = inverse_estimate(denominator);
    auto e = S::splat(1.0f) - denominator * y;
    if constexpr (kThirdTerm) e += e * e;
    const auto quotient = numerator * y;
    return quotient + quotient * e;
  }
};
#endif

// Elements in the units of the phase: 2 p / wavelength and 2 |p|^2 / wavelength, [N, 4].
template <typename T>
inline void load_elements(const SteeringProblem<T>& p, T* table) {
  const double unit = 2.0 / p.wavelength;
  for (int64_t n = 0; n < p.elements; ++n) {
    double square = 0;
    for (int64_t i = 0; i < 3; ++i) {
      const double place = p.positions.at(n, i);
      square += place * place;
      table[4 * n + i] = static_cast<T>(unit * place);
    }
    table[4 * n + 3] = static_cast<T>(unit * square);
  }
}

// A block of points: 2 u, the curvature q = 1 / r, and q wavelength / 2.
template <typename T>
struct PointLanes {
  static constexpr int64_t kCount = kPoints<T>;
  alignas(RISKERNELS_VECTOR_BYTES) T direction[3][kCount], curvature[kCount], bend[kCount];

  // Points [first, first + kCount) of a scene; beyond the last one that one again.
  RISKERNELS_INLINE void load(const SteeringProblem<T>& p, int64_t scene, int64_t first) {
    using D = Simd<double>;
    alignas(RISKERNELS_VECTOR_BYTES) double phi[kCount], theta[kCount];
    constexpr double kPerRadian = 0.31830988618379067154;  // half turns
    for (int64_t i = 0; i < kCount; ++i) {
      const int64_t g = first + i < p.points ? first + i : p.points - 1;
      phi[i] = kPerRadian * p.phi.at(scene, g);
      theta[i] = kPerRadian * p.theta.at(scene, g);
      const double r = p.r.at(scene, g);
      const double q = r > 0 ? 1.0 / r : __builtin_nan("");
      curvature[i] = static_cast<T>(q);
      bend[i] = static_cast<T>(0.5 * p.wavelength * q);
    }
    for (int64_t i = 0; i < kCount; i += D::W) {
      D::V sin_phi, cos_phi, sin_theta, cos_theta;
      half_turn_waves<double>(D::load(phi + i), sin_phi, cos_phi);
      half_turn_waves<double>(D::load(theta + i), sin_theta, cos_theta);
      cos_theta += cos_theta;
      const auto x = cos_theta * cos_phi, y = cos_theta * sin_phi, z = sin_theta + sin_theta;
      for (int w = 0; w < D::W; ++w) {
        direction[0][i + w] = static_cast<T>(x[w]);
        direction[1][i + w] = static_cast<T>(y[w]);
        direction[2][i + w] = static_cast<T>(z[w]);
      }
    }
  }
};

// `count` elements of sqrt(N) a(g): element n at a + 2 kPoints n, real parts and then imaginary.
template <bool Taper, typename T>
__attribute__((noinline)) void steering_block(int64_t count, const T* table,
                                              const PointLanes<T>& points, T* a) {
  using S = Simd<T>;
  constexpr int64_t kCount = kPoints<T>;
  for (int64_t n = 0; n < count; ++n, table += 4, a += 2 * kCount) {
    const auto x = S::splat(table[0]), y = S::splat(table[1]), z = S::splat(table[2]);
    const auto square = S::splat(table[3]);
#pragma GCC unroll 4
    for (int v = 0; v < kPointVectors; ++v) {
      const auto at = [&](const T* lanes) { return S::load(lanes + v * S::W); };
      auto doubled = x * at(points.direction[0]);
      doubled += y * at(points.direction[1]);
      doubled += z * at(points.direction[2]);
      doubled -= square * at(points.curvature);
      auto ratio_squared = S::splat(T(1)) - at(points.bend) * doubled;
      if constexpr (Taper) {
        // |u - q p|^2, which near an element keeps the digits that the difference loses.
        const auto across = [&](typename S::V place, const T* direction) RISKERNELS_INLINE_LAMBDA {
          return S::splat(T(0.5)) * at(direction) - at(points.bend) * place;
        };
        const auto dx = across(x, points.direction[0]), dy = across(y, points.direction[1]);
        const auto dz = across(z, points.direction[2]);
        ratio_squared = dx * dx + dy * dy + dz * dz;
      }
      // Rounding alone can make the square of a distance negative, at an element.
      const auto least = S::splat(S::kEpsilon * S::kEpsilon);
      ratio_squared = ratio_squared > least ? ratio_squared : least;
      typename S::V inverse, ratio, sine, cosine;
      Quotients<T>::roots(ratio_squared, inverse, ratio);
      half_turn_waves<T>(Quotients<T>::ratio(doubled, S::splat(T(1)) + ratio), sine, cosine);
      if constexpr (Taper) {
        sine *= inverse;
        cosine *= inverse;
      }
      S::store(a + v * S::W, cosine);
      S::store(a + kCount + v * S::W, sine);
    }
  }
}

template <typename T>
RISKERNELS_INLINE void steering_block(bool taper, int64_t count, const T* table,
                                      const PointLanes<T>& points, T* a) {
  taper ? steering_block<true>(count, table, points, a)
        : steering_block<false>(count, table, points, a);
}

}  // namespace riskernels::RISKERNELS_ISA
