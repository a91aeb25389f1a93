// SPDX-License-Identifier: Apache-2.0
// The products with Phi_l = H_l diag(c_l), wherever their operands lie: accessors hide whether
// that is shared memory or global memory of any strides.
#pragma once

#include "../common/tikhonov_problem.hpp"
#include "gram.cuh"

namespace riskernels::cuda {

// Entry (row, column) of an input in global memory.
template <typename T>
struct Strided {
  const Complex<T>* data;
  int64_t row, column;

  RISKERNELS_DEVICE Complex<T> operator()(int64_t r, int64_t c) const {
    return data[r * row + c * column];
  }
  RISKERNELS_DEVICE const Complex<T>* at(int64_t r, int64_t c) const {
    return data + r * row + c * column;
  }
};

// H_l(m, n) in global memory; snapshot = 0 where H is shared by the snapshots. Rows past the last
// repeat it.
template <typename T>
struct GlobalChannel {
  const Complex<T>* data;
  int64_t snapshot, row, column_step;
  int rows;

  RISKERNELS_DEVICE Complex<T> operator()(int64_t l, int m, int64_t n) const {
    return data[l * snapshot + minimum(m, rows - 1) * row + n * column_step];
  }
  struct Column {
    const Complex<T>* next;
    int64_t row;
    RISKERNELS_DEVICE Complex<T> take() {
      const Complex<T> entry = *next;
      next += row;
      return entry;
    }
  };
  RISKERNELS_DEVICE Column column(int64_t l, int64_t n) const {
    return {data + l * snapshot + n * column_step, row};
  }
};

// The same in shared memory, which holds the channels of the snapshots from `first` on; rows past
// the last can be read and hold anything.
template <typename T>
struct SharedChannel {
  Rows<T> rows;
  int snapshot;  // rows from one snapshot's channel to the next, 0 where H is shared
  int first;

  RISKERNELS_DEVICE Complex<T> operator()(int l, int m, int n) const {
    return rows.data[((l - first) * snapshot + m) * rows.pitch + n];
  }
  // The entries of column n, row after row.
  struct Column {
    const Complex<T>* next;
    int pitch;
    RISKERNELS_DEVICE Complex<T> take() {
      const Complex<T> entry = *next;
      next += pitch;
      return entry;
    }
  };
  RISKERNELS_DEVICE Column column(int l, int n) const {
    return {rows.data + (l - first) * snapshot * rows.pitch + n, rows.pitch};
  }
};

// Entry (l, n) of an array in shared memory.
template <typename T>
struct SharedRows {
  Rows<T> rows;

  RISKERNELS_DEVICE Complex<T> operator()(int l, int n) const {
    return rows.data[l * rows.pitch + n];
  }
  RISKERNELS_DEVICE void put(int l, int n, Complex<T> value) const {
    rows.data[l * rows.pitch + n] = value;
  }
};

// [L, N] or [L, M] of a scene in a workspace or an output.
template <typename T>
struct GlobalRows {
  Complex<T>* data;
  int64_t pitch;

  RISKERNELS_DEVICE Complex<T> operator()(int64_t l, int64_t n) const {
    return data[l * pitch + n];
  }
  RISKERNELS_DEVICE void put(int64_t l, int64_t n, Complex<T> value) const {
    data[l * pitch + n] = value;
  }
  RISKERNELS_DEVICE ComplexPair<T> two(int64_t l, int64_t m) const {
    return {(*this)(l, m), (*this)(l + 1, m)};
  }
  // R consecutive snapshots, of which `count` exist, antenna after antenna.
  template <int R>
  struct Walk {
    const GlobalRows<T>& rows;
    int64_t l;
    int count, m;
    RISKERNELS_DEVICE void take(Complex<T> (&x)[R]) { rows.load(l, count, m++, x); }
  };
  template <int R>
  RISKERNELS_DEVICE Walk<R> from(int64_t l, int count) const {
    return {*this, l, count, 0};
  }
  // Row m of R consecutive snapshots, of which `count` exist.
  template <int R>
  RISKERNELS_DEVICE void load(int64_t l, int count, int64_t m, Complex<T> (&x)[R]) const {
    RISKERNELS_UNROLL
    for (int r = 0; r < R; ++r) x[r] = (*this)(l + minimum(r, count - 1), m);
  }
};

// Solutions z_l or w_l in shared memory, [M, l_pitch] with the snapshots next to each other. The
// pitch is 2 more than a multiple of 4, which spreads the antennas of a snapshot over the banks.
template <typename T>
struct SharedSolutions {
  Complex<T>* data;
  int pitch;

  RISKERNELS_DEVICE Complex<T> operator()(int l, int m) const { return data[m * pitch + l]; }
  RISKERNELS_DEVICE void put(int l, int m, Complex<T> value) const { data[m * pitch + l] = value; }
  // Snapshots l and l + 1, l even.
  RISKERNELS_DEVICE ComplexPair<T> two(int l, int m) const {
    return load_pair(data + m * pitch + l);
  }
  template <int R>
  struct Walk {
    Complex<T>* next;
    int pitch;
    RISKERNELS_DEVICE void take(Complex<T> (&x)[R]) {
      SharedSolutions<T>{next, pitch}.template load<R>(0, R, 0, x);
      next += pitch;
    }
  };
  template <int R>
  RISKERNELS_DEVICE Walk<R> from(int l, int) const {
    return {data + l, pitch};
  }
  template <int R>
  RISKERNELS_DEVICE void load(int l, int, int m, Complex<T> (&x)[R]) const {
    if constexpr (R % 2 == 0) {
      // l is a multiple of R and the pitch even: 16-byte aligned, and never past the row.
      RISKERNELS_UNROLL
      for (int r = 0; r < R; r += 2) {
        const ComplexPair<T> pair = load_pair(data + m * pitch + l + r);
        x[r] = pair.first;
        x[r + 1] = pair.second;
      }
    } else {
      static_assert(R == 1, "one snapshot, or an even number");
      x[0] = data[m * pitch + l];
    }
  }
};

// Runs f(l, count, n) for blocks of 32 elements of [n_begin, n_end) and R snapshots of
// [l_begin, l_end): a block to a warp, an element to a lane. A span has less than 2^31 elements.
template <int R, typename F>
RISKERNELS_DEVICE void for_warp_blocks(const Place& at, int64_t n_begin, int64_t n_end, int l_begin,
                                       int l_end, const F& f) {
  const unsigned columns = static_cast<unsigned>(n_end - n_begin + kWarp - 1) / kWarp;
  const unsigned rows = static_cast<unsigned>(l_end - l_begin + R - 1) / R;
  for (unsigned block = at.warp(); block < columns * rows; block += kWarps) {
    const unsigned row = block / columns;
    const int64_t n = n_begin + (block - row * columns) * kWarp + at.lane();
    const int l = l_begin + static_cast<int>(row) * R;
    if (n < n_end) f(l, minimum(R, l_end - l), n);
  }
}

// sum_r(n) = sum_m conj(H_l(m, n)) x_{l+r}(m) for R snapshots that share H_l.
template <int R, typename T, typename Channel, typename Solutions, typename Index>
RISKERNELS_DEVICE void multiply_adjoint(int m, const Channel& h, const Solutions& x, int l,
                                        int count, Index n, Complex<T> (&sum)[R]) {
  RISKERNELS_UNROLL
  for (int r = 0; r < R; ++r) sum[r] = Complex<T>{T(0), T(0)};
  auto column = h.column(l, n);
  auto solutions = x.template from<R>(l, count);
  RISKERNELS_UNROLL_BY(2)
  for (int i = 0; i < m; ++i) {
    const Complex<T> entry = conj(column.take());
    Complex<T> value[R];
    solutions.take(value);
    RISKERNELS_UNROLL
    for (int r = 0; r < R; ++r) add_product(sum[r], entry, value[r]);
  }
}

// sink(l, n, a_l(n)) with a_l = Phi_l^H z_l. R > 1 only where H is shared by the snapshots.
template <int R, typename T, typename Channel, typename Codes, typename Solutions, typename Sink>
RISKERNELS_DEVICE void back_project(const Place& at, int m, int64_t n_begin, int64_t n_end,
                                    int l_begin, int l_end, const Channel& h, const Codes& codes,
                                    const Solutions& z, const Sink& sink) {
  for_warp_blocks<R>(at, n_begin, n_end, l_begin, l_end, [&](int l, int count, int64_t n) {
    Complex<T> sum[R];
    multiply_adjoint<R>(m, h, z, l, count, static_cast<int>(n), sum);
    RISKERNELS_UNROLL
    for (int r = 0; r < R; ++r)
      if (r < count) sink(l + r, n, sum[r] * conj(codes(l + r, n)));
  });
}

// sink(l, m, u_l(m)) with u_l = Phi_l g_l. A team takes 2 snapshots x 8 antennas where H is shared,
// else one snapshot x 16 antennas.
template <bool kPerSnapshot, typename T, typename Channel, typename Codes, typename Gradients,
          typename Sink>
RISKERNELS_DEVICE void project(const Place& at, int m, int n, int l_begin, int l_end,
                               const Channel& h, const Codes& codes, const Gradients& g,
                               const Sink& sink) {
  constexpr int kRows = kPerSnapshot ? 1 : 2, kColumns = 16 / kRows;
  const int blocks = (m + kColumns - 1) / kColumns;
  const int rows = (l_end - l_begin + kRows - 1) / kRows;
  for_team_items(at, rows * blocks, [&](int item, bool valid) {
    const int l = l_begin + item / blocks * kRows, i = item % blocks * kColumns;
    Complex<T> sum[16] = {};
    RISKERNELS_UNROLL_BY(1)
    for (int k = at.term(); k < n; k += kTerms) {
      Complex<T> x[kRows];
      RISKERNELS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int row = minimum(l + r, l_end - 1);
        x[r] = codes(row, k) * g(row, k);
      }
      RISKERNELS_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        const Complex<T> entry = h(l, i + c, k);
        RISKERNELS_UNROLL
        for (int r = 0; r < kRows; ++r) add_product(sum[r * kColumns + c], x[r], entry);
      }
    }
    const Complex<T> whole = exchange_sums(sum, at.term());
    const int row = l + at.term() / kColumns, column = i + at.term() % kColumns;
    if (valid && row < l_end && column < m) sink(row, column, whole);
  });
}

}  // namespace riskernels::cuda
