// SPDX-License-Identifier: Apache-2.0
// The kernels of every instruction set, and the choice between them.
#pragma once

#include <cstdint>

#include "../common/blend_problem.hpp"
#include "../common/factored_problem.hpp"
#include "../common/leakage_problem.hpp"
#include "../common/nmse_problem.hpp"
#include "../common/steering_problem.hpp"
#include "../common/tikhonov_problem.hpp"

#define RISKERNELS_DECLARE_KERNELS(ISA)                                                            \
  namespace ISA {                                                                                  \
  template <typename T>                                                                            \
  void tikhonov_covariance(const TikhonovProblem<T>&, T* out, bool stream, int64_t begin,          \
                           int64_t end);                                                           \
  template <typename T>                                                                            \
  void tikhonov_covariance_shares(const TikhonovProblem<T>&, int64_t& shares);                     \
  template <typename T>                                                                            \
  void tikhonov_covariance_backward(const TikhonovProblem<T>&, const IncomingGradient<T>&,         \
                                    const TikhonovGradients<T>&, int64_t begin, int64_t end);      \
  template <typename T>                                                                            \
  void tikhonov_snapshots(const TikhonovProblem<T>&, T* out, int64_t begin, int64_t end);          \
  template <typename T>                                                                            \
  void tikhonov_snapshots_backward(const TikhonovProblem<T>&, const IncomingGradient<T>&,          \
                                   const TikhonovGradients<T>&, int64_t begin, int64_t end);       \
  template <typename T>                                                                            \
  void hermitian_nmse_forward(const NmseProblem<T>&, T* nmse, T* sums, int64_t begin,              \
                              int64_t end);                                                        \
  /* Blocks of rows of all scenes, see nmse_blocks.hpp, into sums [B, blocks, 4]; and from those   \
   */                                                                                              \
  /* the results of scenes. */                                                                     \
  template <typename T>                                                                            \
  void hermitian_nmse_blocks(const NmseProblem<T>&, double* block_sums, int64_t begin,             \
                             int64_t end);                                                         \
  template <typename T>                                                                            \
  void hermitian_nmse_finish(const NmseProblem<T>&, const double* block_sums, T* nmse, T* sums,    \
                             int64_t begin, int64_t end);                                          \
  template <typename T>                                                                            \
  void hermitian_nmse_backward(const NmseProblem<T>&, const T* grad, int64_t grad_stride,          \
                               const T* sums, bool stream, T* grad_estimate, T* grad_target,       \
                               int64_t begin, int64_t end);                                        \
  template <typename T>                                                                            \
  void blend_covariance(const BlendProblem<T>&, T* out, int64_t begin, int64_t end);               \
  template <typename T>                                                                            \
  void blend_covariance_backward(const BlendProblem<T>&, const IncomingGradient<T>&, T* grad_pred, \
                                 int64_t begin, int64_t end);                                      \
  template <typename T>                                                                            \
  void subspace_leakage_forward(const LeakageProblem<T>&, const LeakageState<T>&, int64_t begin,   \
                                int64_t end);                                                      \
  template <typename T>                                                                            \
  void subspace_leakage_backward(const LeakageProblem<T>&, const LeakageState<T>&, const T* grad,  \
                                 int64_t grad_stride, T* grad_cov, int64_t begin, int64_t end);    \
  template <typename T>                                                                            \
  void factored_blend(const FactoredBlendProblem<T>&, T* out, T* rho, int64_t begin, int64_t end); \
  template <typename T>                                                                            \
  void factored_blend_backward(const FactoredBlendProblem<T>&, const IncomingGradient<T>&,         \
                               T* grad_factor, int64_t begin, int64_t end);                        \
  template <typename T>                                                                            \
  void factored_nmse_forward(const FactoredNmseProblem<T>&, T* nmse, double* sums, double* gram,   \
                             int64_t begin, int64_t end);                                          \
  template <typename T>                                                                            \
  void factored_nmse_backward(const FactoredNmseProblem<T>&, const T* grad, int64_t grad_stride,   \
                              const double* sums, const double* gram, T* grad_factor, T* grad_rho, \
                              T* grad_target, int64_t begin, int64_t end);                         \
  template <typename T>                                                                            \
  void factored_leakage_forward(const FactoredLeakageProblem<T>&, T* leakage, double* gram,        \
                                int64_t begin, int64_t end);                                       \
  template <typename T>                                                                            \
  void factored_leakage_backward(const FactoredLeakageProblem<T>&, const T* grad,                  \
                                 int64_t grad_stride, const T* leakage, const double* gram,        \
                                 T* grad_factor, T* grad_rho, int64_t begin, int64_t end);         \
  template <typename T>                                                                            \
  void factored_spectrum_forward(const FactoredSpectrumProblem<T>&, T* values, T* vectors,         \
                                 int64_t begin, int64_t end);                                      \
  template <typename T>                                                                            \
  void factored_spectrum_backward(const FactoredSpectrumProblem<T>&, const T* grad,                \
                                  const int64_t* grad_stride, const T* vectors, T* grad_factor,    \
                                  T* grad_rho, int64_t begin, int64_t end);                        \
  template <typename T>                                                                            \
  void multiply_add_rate(int64_t rounds, T factor, T term, double& flops, T& result);              \
  /* Scenes whose points are worked on together, and blocks of points: tasks are groups x blocks.  \
   */                                                                                              \
  template <typename T>                                                                            \
  void steering_power_tasks(const SteeringProblem<T>&, int64_t& group, int64_t& blocks);           \
  template <typename T>                                                                            \
  void steering_power(const SteeringProblem<T>&, T* power, int64_t begin, int64_t end);            \
  template <typename T>                                                                            \
  void steering_power_backward(const SteeringProblem<T>&, const T* grad,                           \
                               const int64_t* grad_stride, int64_t parts, T* sums, int64_t begin,  \
                               int64_t end);                                                       \
  template <typename T>                                                                            \
  void steering_power_finish(const SteeringProblem<T>&, int64_t parts, const T* sums, T* gradient, \
                             int64_t begin, int64_t end);                                          \
  }

namespace riskernels {

// Outputs of more bytes, several times the second-level cache of a core, go past the caches: their
// lines would otherwise be fetched only to be overwritten. Reading them afterwards takes no longer.
constexpr int64_t kStreamBytes = int64_t(4) << 20;

enum class SimdLevel { portable, avx2, avx512 };

// The widest set that this processor, this build and RISKERNELS_SIMD allow; decided once.
SimdLevel simd_level();
const char* simd_level_name();

// What is in this build: all sets of the processor's kind, or one alone in a build for tests.
#if defined(RISKERNELS_HAS_PORTABLE)
RISKERNELS_DECLARE_KERNELS(portable)
#define RISKERNELS_CASE_PORTABLE(...)     \
  case ::riskernels::SimdLevel::portable: \
    ::riskernels::portable::__VA_ARGS__;  \
    break;
#else
#define RISKERNELS_CASE_PORTABLE(...)
#endif
#if defined(RISKERNELS_HAS_AVX2)
RISKERNELS_DECLARE_KERNELS(avx2)
#define RISKERNELS_CASE_AVX2(...)     \
  case ::riskernels::SimdLevel::avx2: \
    ::riskernels::avx2::__VA_ARGS__;  \
    break;
#else
#define RISKERNELS_CASE_AVX2(...)
#endif
#if defined(RISKERNELS_HAS_AVX512)
RISKERNELS_DECLARE_KERNELS(avx512)
#define RISKERNELS_CASE_AVX512(...)     \
  case ::riskernels::SimdLevel::avx512: \
    ::riskernels::avx512::__VA_ARGS__;  \
    break;
#else
#define RISKERNELS_CASE_AVX512(...)
#endif

#define RISKERNELS_RUN(function, ...)               \
  switch (::riskernels::simd_level()) {             \
    RISKERNELS_CASE_AVX512(function(__VA_ARGS__))   \
    RISKERNELS_CASE_AVX2(function(__VA_ARGS__))     \
    RISKERNELS_CASE_PORTABLE(function(__VA_ARGS__)) \
    default:                                        \
      break;                                        \
  }

}  // namespace riskernels
