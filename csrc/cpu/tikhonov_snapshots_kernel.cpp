// SPDX-License-Identifier: Apache-2.0
#include "kernels.hpp"
#include "scratch.hpp"
#include "tikhonov_gradient.hpp"

namespace riskernels::RISKERNELS_ISA {

template <typename T>
void tikhonov_snapshots(const TikhonovProblem<T>& problem, T* out, int64_t begin, int64_t end) {
  using S = Simd<T>;
  constexpr int64_t kPanel = TikhonovScene<T>::kPanel;
  const auto with_block = [&](void* block, bool run) {
    Carver carver(block);
    TikhonovScene<T> scene(problem, carver);
    const auto row = take_planar<T>(carver, 1, kPanel);
    for (int64_t b = begin; run && b < end; ++b) {
      scene.back_project(b, [&](int64_t j, int64_t columns) {
        const int64_t length = scene.n - j < columns ? scene.n - j : columns;
        for (int64_t l = 0; l < scene.snapshots; ++l) {
          for (int64_t i = 0; i < columns; i += S::W) {
            typename S::V re, im;
            scene.estimate(l, j + i, re, im);
            S::store(row.re + i, re);
            S::store(row.im + i, im);
          }
          store_row(out + 2 * ((b * scene.snapshots + l) * scene.n + j), length, row.re, row.im);
        }
        scene.prefetch_scene(b + 1, j, columns);
      });
    }
    return carver.used();
  };
  with_block(thread_scratch(static_cast<std::size_t>(with_block(nullptr, false))), true);
}

template <typename T>
void tikhonov_snapshots_backward(const TikhonovProblem<T>& problem, const IncomingGradient<T>& grad,
                                 const TikhonovGradients<T>& gradients, int64_t begin,
                                 int64_t end) {
  const auto with_block = [&](void* block, bool run) {
    Carver carver(block);
    TikhonovScene<T> scene(problem, carver);
    TikhonovGradient<T> gradient(scene, carver);
    for (int64_t b = begin; run && b < end; ++b) {
      scene.back_project(b, [](int64_t, int64_t) {});
      for (int64_t l = 0; l < scene.snapshots; ++l) {
        const auto row = gradient.grad_a.at(l, 0);
        load_row(grad.data + 2 * (b * grad.stride[0] + l * grad.stride[1]), grad.stride[2], scene.n,
                 row.re, row.im);
        for (int64_t i = scene.n; i < scene.n_pad; ++i) row.re[i] = row.im[i] = T(0);
      }
      gradient.finish(b, gradients);
    }
    return carver.used();
  };
  with_block(thread_scratch(static_cast<std::size_t>(with_block(nullptr, false))), true);
}

template void tikhonov_snapshots<float>(const TikhonovProblem<float>&, float*, int64_t, int64_t);
template void tikhonov_snapshots<double>(const TikhonovProblem<double>&, double*, int64_t, int64_t);
template void tikhonov_snapshots_backward<float>(const TikhonovProblem<float>&,
                                                 const IncomingGradient<float>&,
                                                 const TikhonovGradients<float>&, int64_t, int64_t);
template void tikhonov_snapshots_backward<double>(const TikhonovProblem<double>&,
                                                  const IncomingGradient<double>&,
                                                  const TikhonovGradients<double>&, int64_t,
                                                  int64_t);

}  // namespace riskernels::RISKERNELS_ISA
