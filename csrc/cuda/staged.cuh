// SPDX-License-Identifier: Apache-2.0
// The operators stage by stage: the solves, then products over as many blocks as there are tiles.
// Between the stages z and a live in a workspace, an L / N-th of the covariance.
#pragma once

#include <algorithm>

#include "staged_kernels.cuh"
#include "staged_solve.cuh"

namespace riskernels::cuda {

template <typename T>
class Staged {
 public:
  struct Estimates {
    Complex<T>*z, *a;
  };

  Staged(const Target& target, const TikhonovProblem<T>& problem) : target_(target), p(problem) {}

  // [B, L, columns] of workspace.
  Complex<T>* array(int64_t columns) const {
    const int64_t count = p.scenes * p.snapshots * columns;
    return static_cast<Complex<T>*>(
        target_.workspace(count * static_cast<int64_t>(sizeof(Complex<T>))));
  }

  // a [B, L, N]; returns z [B, L, M].
  Complex<T>* estimate(Complex<T>* a) const {
    Complex<T>* const z = array(p.antennas);
    launch_staged_solve<T>(target_, p, nullptr, z);
    launch(target_, staged_back_project<T>, grid(p.elements, kSpan), kThreads, 0, p, z, a);
    return z;
  }
  Estimates estimate() const {
    Complex<T>* const a = array(p.elements);
    return {estimate(a), a};
  }

  void center(Complex<T>* rows) const {
    launch(target_, staged_center<T>, grid(p.elements, kThreads), kThreads, 0,
           static_cast<int>(p.snapshots), p.elements, rows);
  }

  void outer_products(const Complex<T>* a, T* out) const {
    const int64_t edge = (p.elements + kEdge - 1) / kEdge, tiles = edge * (edge + 1) / 2;
    const int64_t shared = 2 * kDepth * kEdge * static_cast<int64_t>(sizeof(Complex<T>));
    // So many scenes that the grid stays within its limit of 2^31 - 1 blocks.
    const int64_t most = std::max<int64_t>(1, ((int64_t{1} << 31) - 1) / tiles);
    for (int64_t b = 0; b < p.scenes; b += most)
      launch(target_, staged_outer_product<T>, dim3(std::min(most, p.scenes - b) * tiles), kThreads,
             shared, static_cast<int>(p.snapshots), p.elements, a + b * p.snapshots * p.elements,
             out + 2 * b * p.elements * p.elements);
  }

  void hermitian_product(const IncomingGradient<T>& grad, const Complex<T>* a,
                         Complex<T>* g) const {
    const int64_t shared =
        (kPanel * (kSpan + 2) + kDepth * kSpan) * static_cast<int64_t>(sizeof(Complex<T>));
    const int64_t depths = (p.snapshots + kDepth - 1) / kDepth;
    launch(target_, staged_hermitian_product<T>,
           grid(round_up(p.elements, kPanel) * depths, kPanel), kThreads, shared, grad,
           static_cast<int>(p.snapshots), p.elements, a, g);
  }

  void copy(const IncomingGradient<T>& grad, Complex<T>* g) const {
    launch(target_, staged_copy<T>, grid(p.snapshots * p.elements, kThreads), kThreads, 0, grad,
           p.snapshots, p.elements, g);
  }

  // The inputs' gradients from the estimates and g = dL/da, which is used up.
  void finish(const Estimates& estimates, Complex<T>* g, const TikhonovGradients<T>& out) const {
    Complex<T>* const w =
        out.y != nullptr ? reinterpret_cast<Complex<T>*>(out.y) : array(p.antennas);
    launch(target_, staged_project<T>, grid(p.snapshots, kDepth), kThreads, 0, p, g, w);
    launch_staged_solve<T>(target_, p, w, w);
    if (out.h == nullptr && out.codes == nullptr) return;
    T* terms = nullptr;
    if (p.relative) {
      terms = static_cast<T*>(
          target_.workspace(p.scenes * p.snapshots * static_cast<int64_t>(sizeof(T))));
      launch(target_, staged_loading_terms<T>, dim3(p.scenes), kThreads, 0, p, estimates.z, w,
             terms);
    }
    launch(target_, staged_finish<T>, grid(p.elements, kSpan), kThreads, 0, p, estimates.z, w,
           estimates.a, g, static_cast<const T*>(terms), out);
  }

 private:
  // A scene to blockIdx.x, `count` items of work in portions to blockIdx.y.
  dim3 grid(int64_t count, int64_t portion) const {
    return dim3(p.scenes, std::min<int64_t>((count + portion - 1) / portion, 65535));
  }

  const Target& target_;
  const TikhonovProblem<T>& p;
};

}  // namespace riskernels::cuda
