// SPDX-License-Identifier: Apache-2.0
// Sums of matrices and their conjugate transposes, in square tiles of one vector per row: tile
// (I, J) is processed together with (J, I), so that every matrix is read once and nothing else than
// registers is transposed.
#pragma once

#include <type_traits>

#include "simd.hpp"

// Tiles stay in registers only where all that works on them is inlined.
#define RISKERNELS_INLINE_LAMBDA __attribute__((always_inline))

namespace riskernels::RISKERNELS_ISA {

// A square tile of complex numbers, one vector per row.
template <typename T>
struct Tile {
  using S = Simd<T>;
  static constexpr int kSize = S::W / 2;
  typename S::V row[kSize];

  // Transposes blocks of 1, 2, 4, ... elements of pairs of rows.
  RISKERNELS_INLINE void transpose() {
    if constexpr (kSize > 1) exchange<1>();
    if constexpr (kSize > 2) exchange<2>();
    if constexpr (kSize > 4) exchange<4>();
    static_assert(kSize <= 8, "transpose() lists the block sizes");
  }
  RISKERNELS_INLINE void conjugate() {
    const auto sign = signs(T(1), T(-1));
#pragma GCC unroll 8
    for (int r = 0; r < kSize; ++r) row[r] *= sign;
  }
  RISKERNELS_INLINE void add_conjugate(const Tile& other) {
    const auto sign = signs(T(1), T(-1));
#pragma GCC unroll 8
    for (int r = 0; r < kSize; ++r) row[r] += sign * other.row[r];
  }
  // `re` in the lanes of real parts, `im` in those of imaginary parts.
  static RISKERNELS_INLINE typename S::V signs(T re, T im) { return pairs_(re, im, Lanes()); }

 private:
  using Int = typename S::Int;
  using Lanes = std::make_integer_sequence<Int, S::W>;

  template <int Step>
  RISKERNELS_INLINE void exchange() {
#pragma GCC unroll 8
    for (int r = 0; r < kSize; ++r) {
      if (r & Step) continue;
      const auto a = row[r], b = row[r + Step];
      row[r] = merge_<Step>(a, b, Lanes());
      row[r + Step] = merge_high_<Step>(a, b, Lanes());
    }
  }
  // Lane of a (b from W on) that comes to lane k, where a keeps its blocks with (k/2) & Step == 0.
  static constexpr Int from_low(Int k, Int step) {
    return ((k / 2) & step) == 0 ? k : k - 2 * step + S::W;
  }
  static constexpr Int from_high(Int k, Int step) {
    return ((k / 2) & step) == 0 ? k + 2 * step : k + S::W;
  }
  template <Int... K>
  static RISKERNELS_INLINE typename S::V pairs_(T re, T im, std::integer_sequence<Int, K...>) {
    return typename S::V{(K % 2 == 0 ? re : im)...};
  }
#if defined(__clang__)
  template <int Step, Int... K>
  static RISKERNELS_INLINE
      typename S::V merge_(typename S::V a, typename S::V b, std::integer_sequence<Int, K...>) {
    return __builtin_shufflevector(a, b, (from_low(K, Step))...);
  }
  template <int Step, Int... K>
  static RISKERNELS_INLINE typename S::V merge_high_(typename S::V a, typename S::V b,
                                                     std::integer_sequence<Int, K...>) {
    return __builtin_shufflevector(a, b, (from_high(K, Step))...);
  }
#else
  template <int Step, Int... K>
  static RISKERNELS_INLINE
      typename S::V merge_(typename S::V a, typename S::V b, std::integer_sequence<Int, K...>) {
    return __builtin_shuffle(a, b, typename S::I{(from_low(K, Step))...});
  }
  template <int Step, Int... K>
  static RISKERNELS_INLINE typename S::V merge_high_(typename S::V a, typename S::V b,
                                                     std::integer_sequence<Int, K...>) {
    return __builtin_shuffle(a, b, typename S::I{(from_high(K, Step))...});
  }
#endif
};

// Complex numbers in a cache line, and so the rows of a block of tiles.
template <typename T>
constexpr int64_t kLineElements =
    64 / (2 * sizeof(T)) > Tile<T>::kSize ? 64 / (2 * sizeof(T)) : Tile<T>::kSize;

// One line of each row of a block, for reading or for writing.
template <int Write, typename T>
RISKERNELS_INLINE void prefetch_lines(const T* from, int64_t row) {
#pragma GCC unroll 8
  for (int64_t r = 0; r < kLineElements<T>; ++r) __builtin_prefetch(from + 2 * r * row, Write, 3);
}

// One scene of a matrix that counts by its Hermitian part. A matrix whose columns have unit stride
// is read as its transpose, whose Hermitian part is the conjugate: `im` is then -1.
template <typename T>
struct HermitianPart {
  const T* data;
  int64_t row, column;
  T im;

  HermitianPart(const T* base, const int64_t* stride, int64_t scene)
      : data(base + 2 * scene * stride[0]), row(stride[1]), column(stride[2]), im(1) {
    if (column == 1 || row != 1) return;
    row = column;
    column = 1;
    im = T(-1);
  }

  // Rows from i, columns from j. With `Whole`, all of them exist and columns have unit stride;
  // otherwise `height` x `width` exist, the others are 0.
  template <bool Whole>
  RISKERNELS_INLINE Tile<T> tile(int64_t i, int64_t j, int64_t height, int64_t width) const {
    using S = Simd<T>;
    constexpr int kSize = Tile<T>::kSize;
    Tile<T> result;
    if constexpr (Whole) {
      const T* from = data + 2 * (i * row + j);
#pragma GCC unroll 8
      for (int r = 0; r < kSize; ++r) result.row[r] = S::load(from + 2 * r * row);
    } else {
      alignas(RISKERNELS_VECTOR_BYTES) T buffer[kSize * S::W] = {};
      const T* from = data + 2 * (i * row + j * column);
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) {
          buffer[r * S::W + 2 * c] = from[2 * (r * row + c * column)];
          buffer[r * S::W + 2 * c + 1] = from[2 * (r * row + c * column) + 1];
        }
      for (int r = 0; r < kSize; ++r) result.row[r] = S::load(buffer + r * S::W);
    }
    return result;
  }

  RISKERNELS_INLINE void prefetch(int64_t i, int64_t j) const {
    prefetch_lines<0>(data + 2 * (i * row + j), row);
    prefetch_lines<0>(data + 2 * (j * row + i), row);
  }

  // Re tr, in double.
  double trace(int64_t n) const {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += data[2 * i * (row + column)];
    return sum;
  }
};

// Writes a tile, or the part of it that exists, into a contiguous n x n matrix.
template <bool Whole, typename T>
RISKERNELS_INLINE void store_tile(const Tile<T>& tile, T* matrix, int64_t n, int64_t i, int64_t j,
                                  int64_t height, int64_t width) {
  using S = Simd<T>;
  constexpr int kSize = Tile<T>::kSize;
  T* const to = matrix + 2 * (i * n + j);
  if constexpr (Whole) {
#pragma GCC unroll 8
    for (int r = 0; r < kSize; ++r) S::store(to + 2 * r * n, tile.row[r]);
  } else {
    alignas(RISKERNELS_VECTOR_BYTES) T buffer[kSize * S::W];
    for (int r = 0; r < kSize; ++r) S::store(buffer + r * S::W, tile.row[r]);
    for (int64_t r = 0; r < height; ++r)
      __builtin_memcpy(to + 2 * r * n, buffer + r * S::W,
                       static_cast<std::size_t>(2 * width) * sizeof(T));
  }
}

// The upper triangle of a tile on the diagonal decides: the lower one becomes its conjugate and the
// diagonal real, whichever way the compiler rounded the two sides.
template <typename T>
RISKERNELS_INLINE void mirror(Tile<T>& tile, T diagonal) {
  using S = Simd<T>;
  constexpr int kSize = Tile<T>::kSize;
  alignas(RISKERNELS_VECTOR_BYTES) T buffer[kSize * S::W];
  for (int r = 0; r < kSize; ++r) S::store(buffer + r * S::W, tile.row[r]);
  for (int r = 0; r < kSize; ++r) {
    buffer[r * S::W + 2 * r] += diagonal;
    // Zero, but for a part that is not finite.
    T& imaginary = buffer[r * S::W + 2 * r + 1];
    imaginary -= imaginary;
    for (int c = 0; c < r; ++c) {
      buffer[r * S::W + 2 * c] = buffer[c * S::W + 2 * r];
      buffer[r * S::W + 2 * c + 1] = -buffer[c * S::W + 2 * r + 1];
    }
  }
  for (int r = 0; r < kSize; ++r) tile.row[r] = S::load(buffer + r * S::W);
}

// Calls f(whole, diagonal, i, j, height, width), the first two as constants, for the tiles on and
// above the diagonal. `unit` says that the columns of all matrices have unit stride. Tiles are
// taken in blocks as wide as a cache line, so that each line is used up at once; ahead(i, j) names
// the block that comes kAhead blocks later, of whose lines hardware prefetching foresees few.
template <typename T, typename F, typename A>
RISKERNELS_INLINE void for_each_tile_pair(int64_t n, bool unit, const F& f, const A& ahead) {
  constexpr int64_t kSize = Tile<T>::kSize, kLine = kLineElements<T>, kAhead = 2;
  const std::true_type yes;
  const std::false_type no;
  const int64_t whole = unit ? n / kLine * kLine : 0;
  const auto look_ahead = [&](int64_t i, int64_t j) RISKERNELS_INLINE_LAMBDA {
    j += kAhead * kLine;
    // On to the next row of blocks, which starts on the diagonal.
    for (; j >= whole && i < whole; i += kLine) j += i + kLine - whole;
    if (i < whole) ahead(i, j);
  };
  for (int64_t i = 0; i < whole; i += kLine) {
    look_ahead(i, i);
    for (int64_t y = i; y < i + kLine; y += kSize) {
      f(yes, yes, y, y, kSize, kSize);
      for (int64_t x = y + kSize; x < i + kLine; x += kSize) f(yes, no, y, x, kSize, kSize);
    }
    for (int64_t j = i + kLine; j < whole; j += kLine) {
      look_ahead(i, j);
      for (int64_t y = i; y < i + kLine; y += kSize)
        for (int64_t x = j; x < j + kLine; x += kSize) f(yes, no, y, x, kSize, kSize);
    }
  }
  const auto size = [n](int64_t at) { return n - at < kSize ? n - at : kSize; };
  for (int64_t j = whole; j < n; j += kSize) {
    for (int64_t i = 0; i < j; i += kSize) f(no, no, i, j, size(i), size(j));
    f(no, yes, j, j, size(j), size(j));
  }
}

}  // namespace riskernels::RISKERNELS_ISA
