// SPDX-License-Identifier: Apache-2.0
// The rows of [X, Z], the factors of an operator side by side.
#pragma once

#include "../common/everywhere.hpp"
#include "factor_rows.cuh"

namespace riskernels::cuda {

// The factors [X, Z] of an operator's problem: Z the target's factor, or steering vectors of which
// the first `sources` [B] count, or none.
template <typename T>
struct JointProblem {
  int64_t scenes, elements;
  Factor<T> x, z;
  const bool* mask;  // [N] or [B, N], null without a mask
  int64_t mask_stride[2];
  const int64_t* sources;
  int64_t sources_stride;
};

template <typename T>
RISKERNELS_EVERYWHERE JointProblem<T> joint_problem(const FactoredNmseProblem<T>& p) {
  return {p.scenes, p.elements, p.factor, p.target, p.mask, {p.mask_stride[0], p.mask_stride[1]},
          nullptr,  0};
}
template <typename T>
RISKERNELS_EVERYWHERE JointProblem<T> joint_problem(const FactoredLeakageProblem<T>& p) {
  return {p.scenes, p.elements, p.factor,      p.steering,
          nullptr,  {0, 0},     p.num_sources, p.num_sources_stride};
}
template <typename T>
RISKERNELS_EVERYWHERE JointProblem<T> joint_problem(const FactoredSpectrumProblem<T>& p) {
  return {p.scenes, p.elements, p.factor, {p.factor.data, {0, 0, 0}, 0},
          nullptr,  {0, 0},     nullptr,  0};
}

// Columns [X, Z] of one scene.
template <typename T>
struct JointRows {
  FactorRows<T> x, z;
  RowMask mask;

  RISKERNELS_DEVICE JointRows(const JointProblem<T>& p, int64_t scene)
      : x(p.x, scene),
        z(p.z, scene),
        mask{p.mask == nullptr ? nullptr : p.mask + scene * p.mask_stride[0], p.mask_stride[1]} {
    if (p.sources == nullptr) return;
    const int64_t count = p.sources[scene * p.sources_stride];
    z.kept = count < 0 ? 0 : count < z.columns ? static_cast<int>(count) : z.columns;
  }

  RISKERNELS_DEVICE int columns() const { return x.columns + z.columns; }

  // As stage_rows, of the columns first..first+width-1 of [X, Z].
  template <int Batch, typename S>
  RISKERNELS_DEVICE void stage(int first, int width, int64_t row, int rows, Complex<S>* to,
                               int stride) const {
    int of_x = minimum(x.columns - first, width);
    of_x = of_x < 0 ? 0 : of_x;
    // One loop, so that the code for it is there once.
    RISKERNELS_UNROLL_BY(1)
    for (int side = 0; side < 2; ++side) {
      const bool left = side == 0;
      const int skip = first < x.columns ? 0 : first - x.columns;
      const FactorRows<T> part = left ? x.window(first, of_x) : z.window(skip, width - of_x);
      stage_rows<Batch>(part, mask, row, rows, left ? to : to + of_x, stride);
    }
  }
};

template <typename T>
RISKERNELS_DEVICE double rho_of(const T* rho, int64_t stride, int64_t scene) {
  return rho == nullptr ? 0.0 : static_cast<double>(rho[scene * stride]);
}

// |x_i|^2 and |z_i|^2 of rows begin..end-1: f(row, of_x, of_z), by one thread for each row. Stages
// as many columns at once as there is room for.
template <typename T, typename F>
RISKERNELS_DEVICE void row_powers(const JointRows<T>& rows, int64_t begin, int64_t end,
                                  Complex<double>* area, int64_t area_bytes, const F& f) {
  const Place at;
  const int most = static_cast<int>(area_bytes / (16 * kThreads));
  const int width = minimum(rows.columns(), most > 2 ? (most - 1) | 1 : 1);
  const int stride = staged_stride(width);
  const int chunk = minimum(kThreads, static_cast<int>(area_bytes / (16 * stride)));
  for (int64_t first = begin; first < end; first += chunk) {
    const int count = piece(end - first, chunk);
    double of_x = 0, of_z = 0;
    for (int column = 0; column < rows.columns(); column += width) {
      const int here = minimum(width, rows.columns() - column);
      rows.template stage<kStageBatch<T>>(column, here, first, count, area, stride);
      __syncthreads();
      if (at.thread < count) {
        const Complex<double>* const row = area + at.thread * stride;
        for (int k = 0; k < here; ++k) (column + k < rows.x.columns ? of_x : of_z) += norm(row[k]);
      }
      __syncthreads();
    }
    if (at.thread < count) f(first + at.thread, of_x, of_z);
  }
}

}  // namespace riskernels::cuda
