// SPDX-License-Identifier: Apache-2.0
// R = (1/L) sum_l a_l a_l^H: the estimates a_l of a scene, packed as they come, then their outer
// product, all of it or a share.
#include "hermitian_outer.hpp"
#include "kernels.hpp"
#include "scratch.hpp"
#include "tikhonov_scene.hpp"

namespace riskernels::RISKERNELS_ISA {

// Where the output goes past the caches but rows of R are no whole lines, an R of up to so many
// bytes is made in the caches and copied: the scenes follow one another without a gap.
constexpr int64_t kAsideBytes = int64_t(1) << 21;

template <typename T>
void tikhonov_covariance_shares(const TikhonovProblem<T>& problem, int64_t& shares) {
  shares = HermitianOuter<T>(problem.elements, problem.snapshots).shares();
}

// Shares [begin, end), counted over all scenes. Who has a part of a scene estimates all of it: that
// takes no longer than to wait for another thread to do so, and no data goes between caches.
template <typename T>
void tikhonov_covariance(const TikhonovProblem<T>& problem, T* out, bool stream, int64_t begin,
                         int64_t end) {
  const HermitianOuter<T> outer(problem.elements, problem.snapshots);
  const int64_t size = 2 * problem.elements * problem.elements, shares = outer.shares();
  const bool whole_scenes = begin % shares == 0 && end % shares == 0;
  const bool aside = whole_scenes && stream && Simd<T>::kStreams && !outer.whole_lines(out) &&
                     size * static_cast<int64_t>(sizeof(T)) <= kAsideBytes;
  const T scale = T(1) / __builtin_sqrt(static_cast<T>(problem.snapshots));
  const auto with_block = [&](void* block, bool run) {
    Carver carver(block);
    TikhonovScene<T> scene(problem, carver);
    T* const packed = carver.take<T>(outer.packed_size());
    T* const made_aside = aside ? carver.take<T>(size) : nullptr;
    const auto estimate = [&](int64_t l, int64_t i, auto& re, auto& im)
                              RISKERNELS_INLINE_LAMBDA { scene.estimate(l, i, re, im); };
    for (int64_t b = begin / shares; run && b * shares < end; ++b) {
      scene.back_project(b, [&](int64_t j, int64_t columns) {
        outer.pack(estimate, scale, problem.center, j, columns, packed);
        scene.prefetch_scene(b + 1, j, columns);
      });
      const int64_t first = b * shares, from = begin > first ? begin - first : 0;
      const int64_t to = end - first < shares ? end - first : shares;
      if (aside) {
        outer.write(packed, made_aside, false, from, to);
        stream_copy(out + b * size, size, made_aside);
      } else {
        outer.write(packed, out + b * size, stream, from, to);
      }
    }
    return carver.used();
  };
  with_block(thread_scratch(static_cast<std::size_t>(with_block(nullptr, false))), true);
}

#define RISKERNELS_INSTANTIATE(T)                                                              \
  template void tikhonov_covariance<T>(const TikhonovProblem<T>&, T*, bool, int64_t, int64_t); \
  template void tikhonov_covariance_shares<T>(const TikhonovProblem<T>&, int64_t&);
RISKERNELS_INSTANTIATE(float)
RISKERNELS_INSTANTIATE(double)

}  // namespace riskernels::RISKERNELS_ISA
