// SPDX-License-Identifier: Apache-2.0
// Rows of interleaved complex numbers: packing them from factors of any strides, and their products
// with small matrices.
//
// A product of interleaved data needs no split into real and imaginary parts: with b = (re, im)
// pairs, the sums of re(a) b and of im(a) b hold all four real products, and are put together once
// at the end.
#pragma once

#include "../common/factored_problem.hpp"
#include "even_blocks.hpp"
#include "hermitian_tiles.hpp"

namespace riskernels::RISKERNELS_ISA {

// One scene of a factor: element (i, j) at data + 2 * (i * row + j * column).
template <typename T>
struct Rows {
  const T* data;
  int64_t row, column, columns;
};

template <typename T>
RISKERNELS_INLINE Rows<T> scene_rows(const Factor<T>& factor, int64_t b) {
  return {factor.data + 2 * b * factor.stride[0], factor.stride[1], factor.stride[2],
          factor.columns};
}

// Half a vector of floats: a vector of doubles after conversion.
typedef float FloatHalf __attribute__((vector_size(RISKERNELS_VECTOR_BYTES / 2)));
typedef float UnalignedFloatHalf
    __attribute__((vector_size(RISKERNELS_VECTOR_BYTES / 2), aligned(4), may_alias));

// One vector of U from as many numbers of T.
template <typename U, typename T>
RISKERNELS_INLINE typename Simd<U>::V load_as(const T* from) {
  if constexpr (sizeof(T) == sizeof(U)) {
    return Simd<U>::load(from);
  } else {
    const FloatHalf half = *reinterpret_cast<const UnalignedFloatHalf*>(from);
    return __builtin_convertvector(half, typename Simd<U>::V);
  }
}

template <typename T, typename Simd<T>::Int... K>
RISKERNELS_INLINE typename Simd<T>::V swap_pairs_(
    typename Simd<T>::V v, std::integer_sequence<typename Simd<T>::Int, K...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (K ^ 1)...);
#else
  return __builtin_shuffle(v, typename Simd<T>::I{(K ^ 1)...});
#endif
}
// (re, im) -> (im, re)
template <typename T>
RISKERNELS_INLINE typename Simd<T>::V swap_pairs(typename Simd<T>::V v) {
  return swap_pairs_<T>(v, std::make_integer_sequence<typename Simd<T>::Int, Simd<T>::W>());
}

// Rows [first, first + count) of a factor, times `scale`, to rows of U that lie `pitch` apart. Fast
// where either the columns or the rows have unit stride.
template <typename U, typename T>
inline void pack_rows(const Rows<T>& from, int64_t first, int64_t count, U scale, U* to,
                      int64_t pitch) {
  using S = Simd<U>;
  const int64_t columns = from.columns, whole = 2 * columns / S::W * S::W;
  const T* const base = from.data + 2 * first * from.row;
  const auto scales = S::splat(scale);
  const auto scalar = [&](int64_t i, int64_t j) {
    const T* const element = base + 2 * (i * from.row + j * from.column);
    to[i * pitch + 2 * j] = scale * static_cast<U>(element[0]);
    to[i * pitch + 2 * j + 1] = scale * static_cast<U>(element[1]);
  };
  if (from.column == 1) {
    for (int64_t i = 0; i < count; ++i) {
      const T* const row = base + 2 * i * from.row;
      U* const out = to + i * pitch;
      for (int64_t k = 0; k < whole; k += S::W) S::store(out + k, scales * load_as<U>(row + k));
      for (int64_t k = whole; k < 2 * columns; ++k) out[k] = scale * static_cast<U>(row[k]);
    }
    return;
  }
  int64_t in_tiles_i = 0, in_tiles_j = 0;
  if (from.row == 1) {
    constexpr int64_t kSize = Tile<U>::kSize;
    in_tiles_i = count / kSize * kSize;
    in_tiles_j = columns / kSize * kSize;
    for (int64_t j = 0; j < in_tiles_j; j += kSize)
      for (int64_t i = 0; i < in_tiles_i; i += kSize) {
        Tile<U> tile;
#pragma GCC unroll 8
        for (int r = 0; r < kSize; ++r)
          tile.row[r] = scales * load_as<U>(base + 2 * (i + (j + r) * from.column));
        tile.transpose();
#pragma GCC unroll 8
        for (int r = 0; r < kSize; ++r) S::store(to + (i + r) * pitch + 2 * j, tile.row[r]);
      }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = i < in_tiles_i ? in_tiles_j : 0; j < columns; ++j) scalar(i, j);
}

template <typename F>
RISKERNELS_INLINE void for_vector_groups(int64_t vectors, const F& f) {
  for_even_blocks<3>(vectors, f);
}

// Accumulators of V vectors and as many rows as registers allow, for each of re(a) b and im(a) b:
// 12 of 16 registers, or 24 of 32.
constexpr int kPairs = RISKERNELS_VECTOR_BYTES == 64 ? 12 : 6;

// `columns` complex columns of out(i, :) = sum_m a(i, m) b(m, :), plus own[i] * a(i, own_column +
// :) where `own` is not null. Pitches count real numbers. Rows of b are padded with anything to
// whole vectors; so are those of a where `own` asks for them.
template <typename T>
struct RowProducts {
  using S = Simd<T>;
  int64_t depth, columns;
  const T* a;
  int64_t a_pitch;
  const T* b;
  int64_t b_pitch;
  T* out;
  int64_t out_pitch;
  const T* own = nullptr;
  int64_t own_column = 0;

  void run(int64_t rows) const {
    const int64_t vectors = (2 * columns + S::W - 1) / S::W;
    for_vector_groups(vectors, [&](auto size, int64_t v) {
      constexpr int V = decltype(size)::value, R = kPairs / V;
      for (int64_t i = 0; i < rows; i += R) block<V, R>(rows, i, v * S::W);
    });
  }

 private:
  // Not inlined: registers are for this loop alone.
  template <int V, int R>
  __attribute__((noinline)) void block(int64_t rows, int64_t i, int64_t start) const {
    // Rows beyond the last are that one again, and are not stored.
    const T* row[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) row[r] = a + (i + r < rows ? i + r : rows - 1) * a_pitch;
    typename S::V by_re[R][V], by_im[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) by_re[r][v] = by_im[r][v] = typename S::V{};
    const T* right = b + start;
    for (int64_t m = 0; m < depth; ++m, right += b_pitch) {
      typename S::V x[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[v] = S::load(right + v * S::W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto re = S::splat(row[r][2 * m]), im = S::splat(row[r][2 * m + 1]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          by_re[r][v] += re * x[v];
          by_im[r][v] += im * x[v];
        }
      }
    }
    const auto sign = Tile<T>::signs(T(-1), T(1));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      if (i + r >= rows) break;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t k = start + v * S::W;
        auto value = by_re[r][v] + sign * swap_pairs<T>(by_im[r][v]);
        if (own != nullptr) value += S::splat(own[i + r]) * S::load(row[r] + 2 * own_column + k);
        store(out + (i + r) * out_pitch + k, value, 2 * columns - k);
      }
    }
  }

  static RISKERNELS_INLINE void store(T* to, typename S::V value, int64_t count) {
    if (count >= S::W) {
      S::store(to, value);
      return;
    }
    alignas(RISKERNELS_VECTOR_BYTES) T lanes[S::W];
    S::store(lanes, value);
    for (int64_t k = 0; k < count; ++k) to[k] = lanes[k];
  }
};

}  // namespace riskernels::RISKERNELS_ISA
