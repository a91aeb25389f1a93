// SPDX-License-Identifier: Apache-2.0
// dL/da_l(i) = (1/L) sum_j a_l(j) conj(P(j, i)) with the Hermitian P = G + G^H, and from there to
// the gradients of the inputs.
#include "kernels.hpp"
#include "scratch.hpp"
#include "tikhonov_gradient.hpp"

namespace riskernels::RISKERNELS_ISA {

template <typename T>
void tikhonov_covariance_backward(const TikhonovProblem<T>& problem,
                                  const IncomingGradient<T>& grad,
                                  const TikhonovGradients<T>& gradients, int64_t begin,
                                  int64_t end) {
  constexpr int64_t kTile = TikhonovScene<T>::kTile;
  using S = Simd<T>;
  const auto with_block = [&](void* block, bool run) {
    Carver carver(block);
    TikhonovScene<T> scene(problem, carver);
    TikhonovGradient<T> gradient(scene, carver);
    const auto centered = take_planar<T>(carver, scene.snapshots, scene.n_pad);
    const auto panel = take_planar<T>(carver, scene.n, kTile);
    const auto mirror = take_planar<T>(carver, kTile, scene.n_pad);
    for (int64_t b = begin; run && b < end; ++b) {
      scene.estimate(b);
      const int64_t size = scene.snapshots * scene.n_pad;
      for (int64_t i = 0; i < size; i += S::W) {
        S::store(centered.re + i, S::load(scene.a.re + i));
        S::store(centered.im + i, S::load(scene.a.im + i));
      }
      if (problem.center) scene.subtract_mean(centered);
      // dL/da_l(i) = (1/L) sum_j a_l(j) conj(P(j, i)) with the Hermitian P = G + G^H, by panels of
      // columns of P.
      const T scale = T(1) / static_cast<T>(scene.snapshots);
      const T* g = grad.data + 2 * b * grad.stride[0];
      for (int64_t i0 = 0; i0 < scene.n; i0 += kTile) {
        const int64_t columns = scene.n - i0 < kTile ? scene.n - i0 : kTile;
        for (int64_t c = 0; c < columns; ++c) {
          const auto row = mirror.at(c, 0);
          load_row(g + 2 * (i0 + c) * grad.stride[1], grad.stride[2], scene.n, row.re, row.im);
        }
        for (int64_t j = 0; j < scene.n; ++j) {
          const auto row = panel.at(j, 0);
          load_row(g + 2 * (j * grad.stride[1] + i0 * grad.stride[2]), grad.stride[2], columns,
                   row.re, row.im);
          for (int64_t c = 0; c < columns; ++c) {
            const auto other = mirror.at(c, j);
            row.re[c] = (row.re[c] + *other.re) * scale;
            row.im[c] = (row.im[c] - *other.im) * scale;
          }
          for (int64_t c = columns; c < kTile; ++c) row.re[c] = row.im[c] = T(0);
        }
        gemm_conj<T>(scene.snapshots, kTile, scene.n, view(centered), view(panel),
                     gradient.grad_a.at(0, i0));
      }
      if (problem.center) scene.subtract_mean(gradient.grad_a);
      gradient.finish(b, gradients);
    }
    return carver.used();
  };
  with_block(thread_scratch(static_cast<std::size_t>(with_block(nullptr, false))), true);
}

template void tikhonov_covariance_backward<float>(const TikhonovProblem<float>&,
                                                  const IncomingGradient<float>&,
                                                  const TikhonovGradients<float>&, int64_t,
                                                  int64_t);
template void tikhonov_covariance_backward<double>(const TikhonovProblem<double>&,
                                                   const IncomingGradient<double>&,
                                                   const TikhonovGradients<double>&, int64_t,
                                                   int64_t);

}  // namespace riskernels::RISKERNELS_ISA
