// SPDX-License-Identifier: Apache-2.0
// What both passes of subspace_leakage over R share: how threads lie over its columns, the rows of
// Q in shared memory, and products of W and Q.
//
// A thread keeps a few entries of W, or of V = 2W - U Q^H, for some columns of R in registers and
// goes down their rows, while the rows of Q come from shared memory. More than eight columns of Q
// take further passes over R.
#pragma once

#include "entries.cuh"
#include "leakage_basis.cuh"

namespace riskernels::cuda {

// Threads of a block, at most. Two blocks fit a multiprocessor, with 40 KiB (complex64) or 32 KiB
// of loads in flight.
template <typename T>
constexpr unsigned kLeakageThreads = sizeof(T) == 8 ? 256 : 320;
constexpr int kLeakageBlocks = 2;
constexpr int kBasisRows = 256;  // rows of Q in shared memory
// Rows whose loads are in flight together.
__host__ __device__ constexpr int leakage_batch(int columns) { return columns > 5 ? 2 : 4; }

// Numbers between rows of Q in shared memory, whose pairs lie on 16 bytes.
__host__ __device__ constexpr int basis_pitch(int columns) { return (columns + 1) / 2 * 2; }

// How a block's threads lie over columns: `slots` threads side by side, in groups that take
// different rows.
struct LeakageWalk {
  int slots;
  int share;     // columns (forward) or rows (backward) of one block
  int prefetch;  // rows to start on their way while the block computes without them
};

template <int Width>
struct LeakageThread {
  int groups, group, column;  // column: of its first entry in a panel of slots * Width

  RISKERNELS_DEVICE explicit LeakageThread(const LeakageWalk& walk)
      : groups(static_cast<int>(blockDim.x) / walk.slots),
        group(static_cast<int>(threadIdx.x) / walk.slots),
        column((static_cast<int>(threadIdx.x) - group * walk.slots) * Width) {}
  RISKERNELS_DEVICE bool active(int width) const { return group < groups && column < width; }
};

// Row `row` of the staged columns of Q.
template <typename T, int Columns>
RISKERNELS_DEVICE void basis_row(const Complex<T>* staged, int row, Complex<T> (&q)[Columns]) {
  RISKERNELS_UNROLL
  for (int k = 0; k < Columns; k += 2) {
    const ComplexPair<T> pair = load_pair(staged + row * basis_pitch(Columns) + k);
    q[k] = pair.first;
    if (k + 1 < Columns) q[k + 1] = pair.second;
  }
}

// Rows first..first+rows-1 of columns k0.. of Q [N, K]; columns past the last become zero.
template <typename T, int Columns>
RISKERNELS_DEVICE void stage_basis(const Complex<T>* basis, int columns, int first, int rows,
                                   int k0, Complex<T>* staged) {
  constexpr int kPitch = basis_pitch(Columns);
  for (int item = threadIdx.x; item < rows * kPitch; item += blockDim.x) {
    const int row = item / kPitch, k = item % kPitch;
    const bool inside = k < Columns && k0 + k < columns;
    staged[item] =
        inside ? basis[static_cast<int64_t>(first + row) * columns + k0 + k] : Complex<T>{};
  }
}

template <typename T>
RISKERNELS_DEVICE void prefetch_rows(const LeakageProblem<T>& p, int first_row, int rows,
                                     int first_column, int end_column) {
  constexpr int kLine = 128 / static_cast<int>(sizeof(Complex<T>));
  const int lines = (end_column - first_column + kLine - 1) / kLine;
  const Complex<T>* const from =
      complex_at(p.cov, blockIdx.x * p.cov_stride[0] + first_row * p.cov_stride[1] + first_column);
  for (int item = threadIdx.x; item < rows * lines; item += blockDim.x)
    prefetch_line(from + item / lines * p.cov_stride[1] + item % lines * kLine);
}

// Sum over j of W_kj Q_jl, in all lanes of a warp.
template <typename T>
RISKERNELS_DEVICE Complex<double> lane_product(const Complex<T>* w_row, const Complex<T>* q_column,
                                               int64_t q_pitch, int n) {
  Complex<double> sum{};
  RISKERNELS_UNROLL_BY(4)
  for (int j = threadIdx.x % kWarp; j < n; j += kWarp)
    add_product(sum, widened(w_row[j]), widened(q_column[j * q_pitch]));
  return {lane_sum(sum.re), lane_sum(sum.im)};
}

}  // namespace riskernels::cuda
