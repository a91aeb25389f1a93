// SPDX-License-Identifier: Apache-2.0
// R = (1/L) sum_l a_l a_l^H, tile by tile: a tile on or above the diagonal is computed once and
// written twice, as it is and as its conjugate transpose.
#include "kernels.hpp"
#include "scratch.hpp"
#include "tikhonov_scene.hpp"

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

// One tile of sum_l a_l a_l^H, interleaved, from row i0 and column j0 on. On a diagonal tile,
// blocks that lie below the diagonal are left out, and the rest of that triangle is mirrored.
template <typename T>
void make_tile(const TikhonovScene<T>& scene, int64_t i0, int64_t j0, int64_t rows, T* tile) {
  using S = Simd<T>;
  constexpr int64_t kTile = TikhonovScene<T>::kTile;
  const Planar<const T> a = view(scene.a);
  const Planar<const T> by_element{a.re, a.im, 1, a.row};
  for (int64_t c = 0; c < kTile; c += S::W) {
    for_row_blocks(rows, [&](auto size, int64_t first) {
      constexpr int R = decltype(size)::value;
      if (i0 == j0 && c + S::W <= first) return;
      typename S::V re[R] = {}, im[R] = {};
      multiply_block<T, R>(scene.snapshots, by_element.at(i0 + first, 0), a.at(0, j0 + c), re, im);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        typename S::V low, high;
        S::interleave(re[r], im[r], low, high);
        T* const out = tile + 2 * ((first + r) * kTile + c);
        S::store(out, low);
        S::store(out + S::W, high);
      }
    });
  }
  if (i0 != j0) return;
  // Fused multiply-adds round (r, c) and (c, r) differently: keep one of them.
  for (int64_t r = 0; r < rows; ++r) {
    T* const row = tile + 2 * r * kTile;
    row[2 * r + 1] = T(0);
    for (int64_t c = 0; c < r; ++c) {
      row[2 * c] = tile[2 * (c * kTile + r)];
      row[2 * c + 1] = -tile[2 * (c * kTile + r) + 1];
    }
  }
}

// Asks for the cache lines of a block of the output, so that they arrive while it is computed.
template <typename T>
RISKERNELS_INLINE void prefetch_block(const T* out, int64_t rows, int64_t columns, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < 2 * columns; k += kLine) __builtin_prefetch(out + 2 * r * n + k, 1, 3);
}

// Overwrites the estimates by their multiples with 1 / sqrt(L).
template <typename T>
void outer_products(const TikhonovScene<T>& scene, T* tile, T* out) {
  constexpr int64_t kTile = TikhonovScene<T>::kTile;
  const int64_t n = scene.n;
  scene.scale(scene.a, T(1) / __builtin_sqrt(static_cast<T>(scene.snapshots)));
  for (int64_t i0 = 0; i0 < n; i0 += kTile) {
    const int64_t rows = n - i0 < kTile ? n - i0 : kTile;
    for (int64_t j0 = i0; j0 < n; j0 += kTile) {
      const int64_t columns = n - j0 < kTile ? n - j0 : kTile;
      T* const direct = out + 2 * (i0 * n + j0);
      T* const mirror = out + 2 * (j0 * n + i0);
      prefetch_block(direct, rows, columns, n);
      if (i0 != j0) prefetch_block(mirror, columns, rows, n);
      make_tile(scene, i0, j0, rows, tile);
      for (int64_t r = 0; r < rows; ++r)
        copy_row(tile + 2 * r * kTile, columns, direct + 2 * r * n);
      if (i0 != j0) write_mirror(tile, 2 * kTile, rows, columns, mirror, 2 * n);
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
    T* const tile = carver.take<T>(2 * kTile * kTile);
    for (int64_t b = begin; run && b < end; ++b) {
      scene.estimate(b);
      if (problem.center) scene.subtract_mean(scene.a);
      outer_products(scene, tile, out + 2 * b * scene.n * scene.n);
    }
    return carver.used();
  };
  with_block(thread_scratch(static_cast<std::size_t>(with_block(nullptr, false))), true);
}

template void tikhonov_covariance<float>(const TikhonovProblem<float>&, float*, int64_t, int64_t);
template void tikhonov_covariance<double>(const TikhonovProblem<double>&, double*, int64_t,
                                          int64_t);

}  // namespace riskernels::RISKERNELS_ISA
