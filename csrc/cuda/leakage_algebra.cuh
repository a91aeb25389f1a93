// SPDX-License-Identifier: Apache-2.0
// The small matrices of factored_leakage, by the threads of one block, in double. With the Gram
// matrix of [X, S] and T as in riskernels/reference/subspace_leakage.py,
//   C = T^H Gsx [k, r],   D = T^H Gss T [k, k],   U = C C^H + rho D.
// They lie in shared memory, or in a workspace where they do not fit it.
#pragma once

#include "joint_gram.cuh"

namespace riskernels::cuda {

struct LeakageMatrices {
  Complex<double>*factor, *transform;  // [k, k]: L D of Gss + ridge I; T transposed
  Complex<double>*basis, *inner;       // [k, k]: D and U
  Complex<double>*coupling, *back;     // [k, r]: C; U C - C Gxx - 2 rho C
  double* inverse;                     // [k] reciprocal pivots

  RISKERNELS_DEVICE LeakageMatrices(char* memory, int r, int k) {
    const auto take = [&](int64_t bytes) {
      char* const at = memory;
      memory += round_up(bytes, 16) + kGuard;
#if !defined(__CUDACC__)
      guard(at + bytes, memory - at - bytes);
#endif
      return at;
    };
    const auto matrix = [&](int64_t entries) {
      return reinterpret_cast<Complex<double>*>(take(entries * 16));
    };
    factor = matrix(int64_t{k} * k);
    transform = matrix(int64_t{k} * k);
    basis = matrix(int64_t{k} * k);
    inner = matrix(int64_t{k} * k);
    coupling = matrix(int64_t{k} * r);
    back = matrix(int64_t{k} * r);
    inverse = reinterpret_cast<double*>(take(int64_t{k} * 8));
  }
  static int64_t bytes(int64_t r, int64_t k) {
    return (4 * k * k + 2 * k * r) * 16 + round_up(k * 8, 16) + 7 * kGuard;
  }
};

// Entry (i, j) of the lower half of a Hermitian matrix becomes that of L D (column j holds L_ij
// d_j), for G + ridge I in `factor` and for G + 2 ridge I in `doubled` at once. Pivots take a
// floor: the ridge, or the rounding errors of nearly dependent columns. NaN passes.
RISKERNELS_DEVICE void factor_ridged(int k, double floor, Complex<double>* factor,
                                     Complex<double>* doubled, double* inverse) {
  const int entries = k * k;
  for (int step = 0; step < k; ++step) {
    for_block_items(2 * entries, [&](int item) {
      Complex<double>* const matrix = item < entries ? factor : doubled;
      const int entry = item < entries ? item : item - entries;
      const int i = entry / k, j = entry % k;
      if (j <= step || i < j) return;
      double pivot = matrix[step * k + step].re;
      pivot = pivot < floor ? floor : pivot;
      const Complex<double> scaled = matrix[i * k + step] * (1 / pivot);
      subtract_product(matrix[entry], scaled, conj(matrix[j * k + step]));
    });
    __syncthreads();
  }
  for_block_items(k, [&](int step) {
    const double pivot = factor[step * k + step].re;
    inverse[step] = 1 / (pivot < floor ? floor : pivot);
  });
}

// x [k], in memory that the lanes of a warp share, becomes (L D L^H)^{-1} x.
RISKERNELS_DEVICE void solve_ridged(const Place& at, int k, const Complex<double>* factor,
                                    const double* inverse, Complex<double>* x) {
  for (int step = 0; step < k; ++step) {
    __syncwarp();
    const Complex<double> value = x[step] * inverse[step];
    for (int i = step + 1 + at.lane(); i < k; i += kWarp)
      subtract_product(x[i], factor[i * k + step], value);
  }
  __syncwarp();
  for (int i = at.lane(); i < k; i += kWarp) x[i] = x[i] * inverse[i];
  for (int step = k - 1; step > 0; --step) {
    __syncwarp();
    const Complex<double> value = x[step];
    const Complex<double>* const row = factor + step * k;
    for (int j = at.lane(); j < step; j += kWarp)
      subtract_product(x[j], conj(row[j]) * inverse[j], value);
  }
  __syncwarp();
}

// sum over s of conj(x[s * step_x]) y[s * step_y]
RISKERNELS_DEVICE Complex<double> inner_product(int count, const Complex<double>* x, int step_x,
                                                const Complex<double>* y, int step_y) {
  Complex<double> sum{};
  for (int s = 0; s < count; ++s, x += step_x, y += step_y) add_product_conj(sum, *y, *x);
  return sum;
}

// T, C, D and U. `gram` [r + k, r + k] is complete and masked columns of it are zero. Reached by
// all threads; ends behind a barrier.
RISKERNELS_DEVICE void leakage_matrices(const Complex<double>* gram, int r, int k, int sources,
                                        double rho, double ridge, const LeakageMatrices& to) {
  const Place at;
  const int c = r + k;
  const Complex<double>* const steering = gram + r * c + r;  // Gss
  const Complex<double>* const mixed = gram + r * c;         // Gsx
  double largest = 0;
  for (int i = 0; i < sources; ++i) {
    const double entry = steering[i * c + i].re;
    largest = entry > largest ? entry : largest;
  }
  const double noise = 8 * sources * Limits<double>::kEpsilon * largest;
  const double floor = noise > ridge ? noise : ridge;
  Complex<double>* const doubled = to.inner;  // until U is formed
  for_block_items(k * k, [&](int item) {
    const int i = item / k, j = item % k;
    Complex<double> entry = steering[i * c + j];
    if (i == j) entry.re += (i < sources ? 0.0 : 1.0) + ridge;
    to.factor[item] = entry;
    if (i == j) entry.re += ridge;
    doubled[item] = entry;
  });
  __syncthreads();
  factor_ridged(k, floor, to.factor, doubled, to.inverse);
  // Row t of `transform`: column t of the Cholesky factor of G + 2 ridge I, then of T.
  for_block_items(k * k, [&](int item) {
    const int t = item / k, i = item % k;
    double pivot = doubled[t * k + t].re;
    pivot = sqrt(pivot < floor ? floor : pivot);
    const Complex<double> entry = doubled[i * k + t] * (1 / pivot);
    to.transform[item] = i == t ? Complex<double>{pivot, 0} : i > t ? entry : Complex<double>{};
  });
  __syncthreads();
  for (int t = at.warp(); t < k; t += kWarps) {
    Complex<double>* const column = to.transform + t * k;
    solve_ridged(at, k, to.factor, to.inverse, column);
    for (int i = sources + at.lane(); i < k; i += kWarp) column[i] = {};
  }
  __syncthreads();
  Complex<double>* const product = to.factor;  // Gss T, of which T^H takes D
  for_block_items(k * r, [&](int item) {
    const int s = item / r, j = item % r;
    to.coupling[item] = inner_product(k, to.transform + s * k, 1, mixed + j, c);
  });
  for_block_items(k * k, [&](int item) {
    const int a = item / k, t = item % k;
    // Gss is Hermitian: its column a is the conjugate of its row.
    product[item] = inner_product(k, steering + a, c, to.transform + t * k, 1);
  });
  __syncthreads();
  for_block_items(k * k, [&](int item) {
    const int s = item / k, t = item % k;
    const Complex<double> d = inner_product(k, to.transform + s * k, 1, product + t, k);
    // (C C^H)_st = sum_j conj(C_tj) C_sj
    const Complex<double> cc = inner_product(r, to.coupling + t * r, 1, to.coupling + s * r, 1);
    to.basis[item] = d;
    to.inner[item] = cc + d * rho;
  });
  __syncthreads();
}

// Entry (s, j) of C Gxx.
RISKERNELS_DEVICE Complex<double> coupled_gram(const Complex<double>* gram, int r, int c,
                                               const LeakageMatrices& of, int s, int j) {
  Complex<double> sum{};
  const Complex<double>* const row = of.coupling + s * r;
  for (int b = 0; b < r; ++b) add_product(sum, row[b], gram[b * c + j]);
  return sum;
}

}  // namespace riskernels::cuda
