// SPDX-License-Identifier: Apache-2.0
// R = (1/L) sum_l a_l a_l^H: the estimates a_l of a scene, packed as they come, then their outer
// product. Where there are fewer scenes than threads, the two are calls of their own, so that
// several threads can share the second.
#include "hermitian_outer.hpp"
#include "kernels.hpp"
#include "scratch.hpp"
#include "tikhonov_scene.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

template <typename T>
HermitianOuter<T> outer_product(const TikhonovProblem<T>& problem) {
  return {problem.elements, problem.snapshots};
}

// Estimates scenes [begin, end) and calls use(b, packed) for each, with packed = destination(b).
template <typename T, typename Destination, typename Use>
void for_each_packed(const TikhonovProblem<T>& problem, int64_t own_size, int64_t begin,
                     int64_t end, const Destination& destination, const Use& use) {
  const auto outer = outer_product(problem);
  const T scale = T(1) / __builtin_sqrt(static_cast<T>(problem.snapshots));
  const auto with_block = [&](void* block, bool run) {
    Carver carver(block);
    TikhonovScene<T> scene(problem, carver, Simd<T>::W);
    T* const own = carver.take<T>(own_size);
    for (int64_t b = begin; run && b < end; ++b) {
      T* const packed = destination(b, own);
      scene.estimate(b, [&](int64_t j, int64_t columns) {
        outer.pack(view(scene.a), scale, problem.center, j, columns, packed);
      });
      use(b, packed);
    }
    return carver.used();
  };
  with_block(thread_scratch(static_cast<std::size_t>(with_block(nullptr, false))), true);
}

}  // namespace

template <typename T>
void tikhonov_covariance(const TikhonovProblem<T>& problem, T* out, bool stream, int64_t begin,
                         int64_t end) {
  const auto outer = outer_product(problem);
  const int64_t size = 2 * problem.elements * problem.elements;
  for_each_packed(
      problem, outer.packed_size(), begin, end, [](int64_t, T* own) { return own; },
      [&](int64_t b, const T* packed) {
        outer.write(packed, out + b * size, stream, 0, outer.shares());
      });
}

template <typename T>
void packed_estimates(const TikhonovProblem<T>& problem, PackedEstimates& estimates) {
  const auto outer = outer_product(problem);
  estimates = {outer.packed_size(), outer.shares()};
}

template <typename T>
void pack_estimates(const TikhonovProblem<T>& problem, T* packed, int64_t begin, int64_t end) {
  const int64_t size = outer_product(problem).packed_size();
  for_each_packed(
      problem, 0, begin, end, [&](int64_t b, T*) { return packed + b * size; },
      [](int64_t, const T*) {});
}

template <typename T>
void outer_products(const TikhonovProblem<T>& problem, const T* packed, T* out, bool stream,
                    int64_t begin, int64_t end) {
  const auto outer = outer_product(problem);
  const int64_t size = 2 * problem.elements * problem.elements, shares = outer.shares();
  for (int64_t b = begin / shares; b * shares < end; ++b) {
    const int64_t first = b * shares;
    outer.write(packed + b * outer.packed_size(), out + b * size, stream,
                begin > first ? begin - first : 0, end - first < shares ? end - first : shares);
  }
}

#define RISKERNELS_INSTANTIATE(T)                                                              \
  template void tikhonov_covariance<T>(const TikhonovProblem<T>&, T*, bool, int64_t, int64_t); \
  template void packed_estimates<T>(const TikhonovProblem<T>&, PackedEstimates&);              \
  template void pack_estimates<T>(const TikhonovProblem<T>&, T*, int64_t, int64_t);            \
  template void outer_products<T>(const TikhonovProblem<T>&, const T*, T*, bool, int64_t, int64_t);
RISKERNELS_INSTANTIATE(float)
RISKERNELS_INSTANTIATE(double)

}  // namespace riskernels::RISKERNELS_ISA
