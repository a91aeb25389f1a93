// SPDX-License-Identifier: Apache-2.0
// The basis Q = S_m T of subspace_leakage, by one block per scene and in double:
//
//   G = S_m^H S_m + ridge I = L D L^H,   G + ridge I = L_2 L_2^H,   T = G^-1 L_2.
//
// Masked columns are not read: only the first m of K columns take part, and the others of Q are 0.
#pragma once

#include "../common/leakage_problem.hpp"
#include "lanes.cuh"

namespace riskernels::cuda {

RISKERNELS_DEVICE Complex<double> widened(Complex<float> x) { return {x.re, x.im}; }
RISKERNELS_DEVICE Complex<double> widened(Complex<double> x) { return x; }

// The small matrices of one scene, K x K by rows.
struct BasisAlgebra {
  Complex<double>* ridged;     // lower triangle of G; below the diagonal L D after elimination
  Complex<double>* doubled;    // the same of G + ridge I
  Complex<double>* transform;  // T
  Complex<double>* pivots;     // [K] real: diagonal of S_m^H S_m, later the inverse of D

  RISKERNELS_DEVICE BasisAlgebra(Complex<double>* memory, int64_t columns)
      : ridged(memory),
        doubled(memory + columns * columns),
        transform(memory + 2 * columns * columns),
        pivots(memory + 3 * columns * columns) {}
};

__host__ __device__ constexpr int64_t basis_algebra_size(int64_t columns) {
  return (3 * columns + 1) * columns;
}

// Entry (n, l) lies at data[n * row + l * column].
template <typename T>
struct SteeringRows {
  const Complex<T>* data;
  int64_t row, column;

  RISKERNELS_DEVICE explicit SteeringRows(const LeakageProblem<T>& p)
      : data(complex_at(p.steering, blockIdx.x * p.steering_stride[0])),
        row(p.steering_stride[1]),
        column(p.steering_stride[2]) {}
  RISKERNELS_DEVICE Complex<double> operator()(int64_t n, int64_t l) const {
    return widened(data[n * row + l * column]);
  }
};

// Entries of the lower triangle, one to a warp.
template <typename T>
RISKERNELS_DEVICE void steering_gram(const SteeringRows<T>& steering, const LeakageProblem<T>& p,
                                     int sources, const BasisAlgebra& a) {
  const int lane = threadIdx.x % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const int n = static_cast<int>(p.elements), columns = static_cast<int>(p.columns);
  for (int item = threadIdx.x / kWarp; item < sources * (sources + 1) / 2; item += warps) {
    const TrianglePosition at(item);
    Complex<double> sum{};
    RISKERNELS_UNROLL_BY(4)
    for (int i = lane; i < n; i += kWarp)
      add_product_conj(sum, steering(i, at.column), steering(i, at.row));
    RISKERNELS_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      sum.re += __shfl_xor_sync(kFullWarp, sum.re, offset);
      sum.im += __shfl_xor_sync(kFullWarp, sum.im, offset);
    }
    if (lane != 0) continue;
    const bool diagonal = at.row == at.column;
    const int entry = at.row * columns + at.column;
    if (diagonal) a.pivots[at.row] = {sum.re, 0.0};
    a.ridged[entry] = {diagonal ? sum.re + p.ridge : sum.re, diagonal ? 0.0 : sum.im};
    a.doubled[entry] = {diagonal ? sum.re + 2 * p.ridge : sum.re, diagonal ? 0.0 : sum.im};
  }
}

// No pivot is below the ridge, nor worth more than the rounding errors of the largest entry. NaN
// passes through.
RISKERNELS_DEVICE double pivot_floor(const BasisAlgebra& a, int sources, double ridge) {
  double largest = 0;
  for (int k = 0; k < sources; ++k) largest = fmax(largest, a.pivots[k].re);
  const double noise = 8 * sources * Limits<double>::kEpsilon * largest;
  return noise > ridge ? noise : ridge;
}
RISKERNELS_DEVICE double floored(double pivot, double floor) {
  return pivot < floor ? floor : pivot;
}

// Both matrices at once, a barrier per column. Columns stay as elimination leaves them, times their
// pivot.
RISKERNELS_DEVICE void eliminate(const BasisAlgebra& a, int sources, int columns, double floor) {
  for (int j = 0; j + 1 < sources; ++j) {
    const int rest = sources - 1 - j, items = rest * rest;
    for (int item = threadIdx.x; item < 2 * items; item += blockDim.x) {
      Complex<double>* const matrix = item < items ? a.ridged : a.doubled;
      const int entry = item < items ? item : item - items;
      const int row = entry / rest, i = j + 1 + row, l = j + 1 + entry - row * rest;
      if (l > i) continue;
      const double inverse = 1.0 / floored(matrix[j * columns + j].re, floor);
      subtract_product(matrix[i * columns + l], matrix[i * columns + j] * inverse,
                       conj(matrix[l * columns + j]));
    }
    __syncthreads();
  }
}

// Columns of T, one to a warp.
RISKERNELS_DEVICE void solve_transform(const BasisAlgebra& a, int sources, int columns,
                                       double floor) {
  const int lane = threadIdx.x % kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  for (int c = threadIdx.x / kWarp; c < sources; c += warps) {
    Complex<double>* const x = a.transform + c;  // entry i at i * columns
    const double root = sqrt(floored(a.doubled[c * columns + c].re, floor)), inverse = 1.0 / root;
    for (int i = lane; i < sources; i += kWarp) {
      const Complex<double> below =
          i > c ? a.doubled[i * columns + c] * inverse : Complex<double>{};
      x[i * columns] = i == c ? Complex<double>{root, 0.0} : below;
    }
    __syncwarp();
    for (int j = c; j + 1 < sources; ++j) {
      const Complex<double> scaled = x[j * columns] * a.pivots[j].re;
      for (int i = j + 1 + lane; i < sources; i += kWarp)
        subtract_product(x[i * columns], a.ridged[i * columns + j], scaled);
      __syncwarp();
    }
    for (int i = lane; i < sources; i += kWarp) x[i * columns] = x[i * columns] * a.pivots[i].re;
    __syncwarp();
    for (int j = sources - 1; j > 0; --j) {
      const Complex<double> known = x[j * columns];
      for (int i = lane; i < j; i += kWarp)
        subtract_product(x[i * columns], conj(a.ridged[j * columns + i]) * a.pivots[i].re, known);
      __syncwarp();
    }
  }
}

// Writes the basis [N, K] of this block's scene, and where `kept` is not null also there, `pitch`
// apart, with zeros from K on. Reached by all threads; complete behind a barrier.
template <typename T>
RISKERNELS_DEVICE void leakage_basis(const LeakageProblem<T>& p, const BasisAlgebra& a,
                                     Complex<T>* basis, Complex<T>* kept, int pitch) {
  const SteeringRows<T> steering(p);
  const int columns = static_cast<int>(p.columns), n = static_cast<int>(p.elements);
  const int64_t wanted = p.num_sources[blockIdx.x * p.num_sources_stride];
  const int sources = wanted < 0 ? 0 : wanted > columns ? columns : static_cast<int>(wanted);
  steering_gram(steering, p, sources, a);
  __syncthreads();
  const double floor = pivot_floor(a, sources, p.ridge);
  eliminate(a, sources, columns, floor);
  // With a single column there was no barrier since the floor was found.
  __syncthreads();
  for (int k = threadIdx.x; k < sources; k += blockDim.x)
    a.pivots[k].re = 1.0 / floored(a.ridged[k * columns + k].re, floor);
  __syncthreads();
  solve_transform(a, sources, columns, floor);
  __syncthreads();
  for (int item = threadIdx.x; item < n * columns; item += blockDim.x) {
    const int row = item / columns, k = item - row * columns;
    Complex<double> sum{};
    for (int l = 0; k < sources && l < sources; ++l)
      add_product(sum, steering(row, l), a.transform[l * columns + k]);
    const Complex<T> entry{static_cast<T>(sum.re), static_cast<T>(sum.im)};
    basis[item] = entry;
    if (kept != nullptr) kept[row * pitch + k] = entry;
  }
  if (kept == nullptr) return;
  const int rest = pitch - columns;
  for (int item = threadIdx.x; item < n * rest; item += blockDim.x)
    kept[item / rest * pitch + columns + item % rest] = {};
}

}  // namespace riskernels::cuda
