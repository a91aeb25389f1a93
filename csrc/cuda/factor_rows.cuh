// SPDX-License-Identifier: Apache-2.0
// Rows of factors [N, columns]: how they come from any strides into shared memory, and sums over a
// block of threads.
#pragma once

#include "../common/factored_problem.hpp"
#include "lanes.cuh"

namespace riskernels::cuda {

// The factor of one scene, or some columns of it. Columns from `kept` on count as zero, whatever
// they hold.
template <typename T>
struct FactorRows {
  const Complex<T>* data;
  int64_t row_stride, column_stride;
  int columns, kept;

  RISKERNELS_DEVICE FactorRows(const Factor<T>& factor, int64_t scene)
      : data(complex_at(factor.data, scene * factor.stride[0])),
        row_stride(factor.stride[1]),
        column_stride(factor.stride[2]),
        columns(static_cast<int>(factor.columns)),
        kept(columns) {}

  RISKERNELS_DEVICE FactorRows window(int first, int width) const {
    FactorRows part = *this;
    part.data += first * column_stride;
    part.columns = width;
    part.kept = minimum(kept - first, width);
    return part;
  }
  RISKERNELS_DEVICE Complex<T> entry(int64_t row, int column) const {
    return column < kept ? data[row * row_stride + column * column_stride] : Complex<T>{};
  }
};

// The elements in use; all of them without a mask.
struct RowMask {
  const bool* data;
  int64_t stride;
  RISKERNELS_DEVICE bool keeps(int64_t row) const { return data == nullptr || data[row * stride]; }
};

// Loads that a thread has in flight: the rows of a scene of the usual size (144 x 21 in complex64)
// then take one latency. Where sums occupy the registers meanwhile, there is room for fewer.
template <typename T>
constexpr int kStageBatch = sizeof(T) == 4 ? 12 : 6;
constexpr int kStageBatchBeside = 4;

// Rows first..first+rows-1 to `to`, entry (row, column) at row * stride + column; masked rows and
// columns beyond `kept` become zero. Lanes run along the dimension that is contiguous. Reached by
// all threads; complete behind a barrier.
template <int Batch, typename S, typename T>
RISKERNELS_DEVICE void stage_rows(const FactorRows<T>& from, const RowMask& mask, int64_t first,
                                  int rows, Complex<S>* to, int stride) {
  if (from.columns <= 0) return;
  const Place at;
  const bool along_rows = from.row_stride < from.column_stride;
  const int inner = along_rows ? rows : from.columns, total = rows * from.columns;
  const int step_outer = kThreads / inner, step_inner = kThreads % inner;
  int outer = at.thread / inner, i = at.thread % inner;
  for (int e = at.thread; e < total;) {
    Complex<T> value[Batch];
    int target[Batch];
    RISKERNELS_UNROLL
    for (int u = 0; u < Batch; ++u) {
      const int row = along_rows ? i : outer, column = along_rows ? outer : i;
      target[u] = e < total ? row * stride + column : -1;
      value[u] = {};
      if (e < total && column < from.kept) {
        const Complex<T> read =
            from.data[(first + row) * from.row_stride + column * from.column_stride];
        // Selected, not multiplied: a masked row may hold NaN.
        value[u] = mask.keeps(first + row) ? read : Complex<T>{};
      }
      e += kThreads;
      outer += step_outer;
      i += step_inner;
      if (i >= inner) {
        i -= inner;
        ++outer;
      }
    }
    RISKERNELS_UNROLL
    for (int u = 0; u < Batch; ++u)
      if (target[u] >= 0)
        to[target[u]] = {static_cast<S>(value[u].re), static_cast<S>(value[u].im)};
  }
}

// Complex numbers between staged rows: odd, so that lanes that read one column of neighbouring
// rows do not meet in a bank.
__host__ __device__ constexpr int staged_stride(int columns) { return columns | 1; }

// Every thread gets the block's sums of what all threads bring, added up in a fixed order. Reached
// by all threads; `shared` may be used again behind a barrier.
template <int Count>
RISKERNELS_DEVICE void block_sums(double (&value)[Count], double* shared /* [Count, kWarps] */) {
  const Place at;
  RISKERNELS_UNROLL
  for (int k = 0; k < Count; ++k) {
    RISKERNELS_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      value[k] += __shfl_xor_sync(kFullWarp, value[k], offset);
    if (at.lane() == 0) shared[k * kWarps + at.warp()] = value[k];
  }
  __syncthreads();
  RISKERNELS_UNROLL
  for (int k = 0; k < Count; ++k) {
    value[k] = 0;
    RISKERNELS_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) value[k] += shared[k * kWarps + warp];
  }
}

// Rows or columns of the next piece: `most`, or what is left.
RISKERNELS_DEVICE int piece(int64_t left, int most) {
  return left < most ? static_cast<int>(left) : most;
}

// f(item) for items 0..count-1, dealt to the threads of a block.
template <typename Count, typename F>
RISKERNELS_DEVICE void for_block_items(Count count, const F& f) {
  for (Count item = static_cast<Count>(threadIdx.x); item < count; item += kThreads) f(item);
}

RISKERNELS_DEVICE double square_norm(Complex<double> x) { return norm(x); }
RISKERNELS_DEVICE double square_norm(Complex<float> x) {
  const double re = x.re, im = x.im;
  return re * re + im * im;
}
template <typename T>
RISKERNELS_DEVICE Complex<T> narrowed(Complex<double> x) {
  return {static_cast<T>(x.re), static_cast<T>(x.im)};
}

}  // namespace riskernels::cuda
