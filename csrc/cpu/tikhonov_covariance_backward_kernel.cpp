// SPDX-License-Identifier: Apache-2.0
// dL/da_l = (1/L) P a_l with the Hermitian P = G + G^H, and from there to the gradients of the
// inputs.
#include "hermitian_product.hpp"
#include "kernels.hpp"
#include "scratch.hpp"
#include "tikhonov_gradient.hpp"

namespace riskernels::RISKERNELS_ISA {

template <typename T>
void tikhonov_covariance_backward(const TikhonovProblem<T>& problem,
                                  const IncomingGradient<T>& grad,
                                  const TikhonovGradients<T>& gradients, int64_t begin,
                                  int64_t end) {
  using S = Simd<T>;
  const auto with_block = [&](void* block, bool run) {
    Carver carver(block);
    TikhonovScene<T> scene(problem, carver);
    TikhonovGradient<T> gradient(scene, carver);
    HermitianProduct<T> product(carver, scene.n, scene.n_pad, scene.l_pad);
    const auto by_element = take_planar<T>(carver, product.rows, scene.l_pad);
    const auto scale = S::splat(T(1) / static_cast<T>(scene.snapshots));
    for (int64_t b = begin; run && b < end; ++b) {
      scene.back_project(b, [](int64_t, int64_t) {});
      // Until the gradient takes its place.
      const auto& centred = gradient.grad_a;
      if (problem.center) {
        for (int64_t l = 0; l < scene.snapshots; ++l)
          for (int64_t i = 0; i < scene.n_pad; i += S::W) {
            typename S::V re, im;
            scene.estimate(l, i, re, im);
            S::store(centred.at(l, i).re, re);
            S::store(centred.at(l, i).im, im);
          }
        scene.subtract_mean(centred);
      }
      const auto scaled = [&](int64_t l, int64_t i, auto& re, auto& im) RISKERNELS_INLINE_LAMBDA {
        if (problem.center) {
          re = S::load(centred.at(l, i).re);
          im = S::load(centred.at(l, i).im);
        } else {
          scene.estimate(l, i, re, im);
        }
        re *= scale;
        im *= scale;
      };
      const auto right = gradient.by_element(scaled);
      product.run(HermitianPart<T>(grad.data, grad.stride, b),
                  HermitianPart<T>(grad.data, grad.stride, b + 1 < end ? b + 1 : b), right,
                  by_element);
      gradient.take_by_element(by_element);
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
