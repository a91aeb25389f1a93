// SPDX-License-Identifier: Apache-2.0
// R = (1/L) sum_l a_l a_l^H, tile by tile: a tile on or above the diagonal is computed once and
// written twice, as it is and as its conjugate transpose.
#include "kernels.hpp"
#include "scratch.hpp"
#include "tikhonov_gradient.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

// Complex numbers as opaque units that move without being taken apart.
template <typename T>
struct Unit;
template <>
struct Unit<float> {
  static constexpr int kBlock = 4;
  typedef int64_t Row __attribute__((vector_size(32), aligned(4), may_alias));
  typedef int64_t Mask __attribute__((vector_size(32)));
};

#if defined(__clang__)
#define RISKERNELS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RISKERNELS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Unit<float>::Mask{__VA_ARGS__})
#endif

// out(c, r) = conj(tile(r, c)) for a 4 x 4 block of complex64.
RISKERNELS_INLINE void transpose_block(const float* tile, int64_t tile_row, float* out,
                                       int64_t out_row) {
  using Mask = Unit<float>::Mask;
  const auto row = [&](int64_t r) -> Mask {
    return *reinterpret_cast<const Unit<float>::Row*>(tile + r * tile_row);
  };
  const Mask r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
  const Mask t0 = RISKERNELS_SHUFFLE(r0, r1, 0, 4, 2, 6);
  const Mask t1 = RISKERNELS_SHUFFLE(r0, r1, 1, 5, 3, 7);
  const Mask t2 = RISKERNELS_SHUFFLE(r2, r3, 0, 4, 2, 6);
  const Mask t3 = RISKERNELS_SHUFFLE(r2, r3, 1, 5, 3, 7);
  const int64_t sign = INT64_MIN;
  const Mask conjugate = {sign, sign, sign, sign};
  const auto put = [&](int64_t c, Mask v) {
    *reinterpret_cast<Unit<float>::Row*>(out + c * out_row) = v ^ conjugate;
  };
  put(0, RISKERNELS_SHUFFLE(t0, t2, 0, 1, 4, 5));
  put(1, RISKERNELS_SHUFFLE(t1, t3, 0, 1, 4, 5));
  put(2, RISKERNELS_SHUFFLE(t0, t2, 2, 3, 6, 7));
  put(3, RISKERNELS_SHUFFLE(t1, t3, 2, 3, 6, 7));
}

template <typename T>
RISKERNELS_INLINE void transpose_scalar(const T* tile, int64_t tile_row, int64_t rows,
                                        int64_t columns, T* out, int64_t out_row) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) {
      out[c * out_row + 2 * r] = tile[r * tile_row + 2 * c];
      out[c * out_row + 2 * r + 1] = -tile[r * tile_row + 2 * c + 1];
    }
}

// out(c, r) = conj(tile(r, c)); both are interleaved complex.
inline void write_mirror(const float* tile, int64_t tile_row, int64_t rows, int64_t columns,
                         float* out, int64_t out_row) {
  if (rows % 4 != 0 || columns % 4 != 0) {
    transpose_scalar(tile, tile_row, rows, columns, out, out_row);
    return;
  }
  for (int64_t c = 0; c < columns; c += 4)
    for (int64_t r = 0; r < rows; r += 4)
      transpose_block(tile + r * tile_row + 2 * c, tile_row, out + c * out_row + 2 * r, out_row);
}
inline void write_mirror(const double* tile, int64_t tile_row, int64_t rows, int64_t columns,
                         double* out, int64_t out_row) {
  transpose_scalar(tile, tile_row, rows, columns, out, out_row);
}

// One row of a tile; a call to memcpy of a run-time size costs more than the copy.
template <typename T>
RISKERNELS_INLINE void copy_row(const T* from, int64_t columns, T* to) {
  using S = Simd<T>;
  int64_t k = 0;
  for (; k + S::W <= 2 * columns; k += S::W) S::store(to + k, S::load(from + k));
  for (; k < 2 * columns; ++k) to[k] = from[k];
}

template <typename T>
void outer_products(const TikhonovScene<T>& scene, const Planar<T>& tile, T* interleaved, T* out) {
  constexpr int64_t kTile = TikhonovScene<T>::kTile;
  using S = Simd<T>;
  const int64_t n = scene.n;
  const auto scale = S::splat(T(1) / static_cast<T>(scene.snapshots));
  const Planar<const T> a = view(scene.a);
  const Planar<const T> by_element{a.re, a.im, 1, a.row};
  for (int64_t i0 = 0; i0 < n; i0 += kTile) {
    const int64_t rows = n - i0 < kTile ? n - i0 : kTile;
    for (int64_t j0 = i0; j0 < n; j0 += kTile) {
      const int64_t columns = n - j0 < kTile ? n - j0 : kTile;
      gemm_conj<T>(rows, kTile, scene.snapshots, by_element.at(i0, 0), a.at(0, j0), tile);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < kTile; c += S::W) {
          typename S::V low, high;
          S::interleave(S::load(tile.re + r * kTile + c) * scale,
                        S::load(tile.im + r * kTile + c) * scale, low, high);
          S::store(interleaved + 2 * (r * kTile + c), low);
          S::store(interleaved + 2 * (r * kTile + c) + S::W, high);
        }
      }
      if (i0 == j0) {
        // Fused multiply-adds round (r, c) and (c, r) differently: keep one of them.
        for (int64_t r = 0; r < rows; ++r) {
          T* const row = interleaved + 2 * r * kTile;
          row[2 * r + 1] = T(0);
          for (int64_t c = 0; c < r; ++c) {
            row[2 * c] = interleaved[2 * (c * kTile + r)];
            row[2 * c + 1] = -interleaved[2 * (c * kTile + r) + 1];
          }
        }
      } else {
        write_mirror(interleaved, 2 * kTile, rows, columns, out + 2 * (j0 * n + i0), 2 * n);
      }
      for (int64_t r = 0; r < rows; ++r)
        copy_row(interleaved + 2 * r * kTile, columns, out + 2 * ((i0 + r) * n + j0));
    }
  }
}

}  // namespace

template <typename T>
void tikhonov_covariance(const TikhonovProblem<T>& problem, T* out, int64_t begin, int64_t end) {
  constexpr int64_t kTile = TikhonovScene<T>::kTile;
  const auto with_block = [&](void* block, bool run) {
    Carver carver(block);
    TikhonovScene<T> scene(problem, carver);
    const auto tile = carver.take_planar<T>(kTile, kTile);
    T* const interleaved = carver.take<T>(2 * kTile * kTile);
    for (int64_t b = begin; run && b < end; ++b) {
      scene.estimate(b);
      if (problem.center) scene.subtract_mean(scene.a);
      outer_products(scene, tile, interleaved, out + 2 * b * scene.n * scene.n);
    }
    return carver.used();
  };
  with_block(thread_scratch(static_cast<std::size_t>(with_block(nullptr, false))), true);
}

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
    const auto centered = carver.take_planar<T>(scene.snapshots, scene.n_pad);
    const auto panel = carver.take_planar<T>(scene.n, kTile);
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
        for (int64_t j = 0; j < scene.n; ++j) {
          for (int64_t c = 0; c < kTile; ++c) {
            const int64_t i = i0 + c;
            T re = 0, im = 0;
            if (i < scene.n) {
              const T* direct = g + 2 * (j * grad.stride[1] + i * grad.stride[2]);
              const T* mirror = g + 2 * (i * grad.stride[1] + j * grad.stride[2]);
              re = (direct[0] + mirror[0]) * scale;
              im = (direct[1] - mirror[1]) * scale;
            }
            panel.re[j * kTile + c] = re;
            panel.im[j * kTile + c] = im;
          }
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

template void tikhonov_covariance<float>(const TikhonovProblem<float>&, float*, int64_t, int64_t);
template void tikhonov_covariance<double>(const TikhonovProblem<double>&, double*, int64_t,
                                          int64_t);
template void tikhonov_covariance_backward<float>(const TikhonovProblem<float>&,
                                                  const IncomingGradient<float>&,
                                                  const TikhonovGradients<float>&, int64_t,
                                                  int64_t);
template void tikhonov_covariance_backward<double>(const TikhonovProblem<double>&,
                                                   const IncomingGradient<double>&,
                                                   const TikhonovGradients<double>&, int64_t,
                                                   int64_t);

}  // namespace riskernels::RISKERNELS_ISA
