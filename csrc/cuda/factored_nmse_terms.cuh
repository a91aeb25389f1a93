// SPDX-License-Identifier: Apache-2.0
// What factored_nmse makes of its Gram matrix and of the powers of the rows: the value forward, the
// gradient's matrix and the coefficients of the rows backward. With G the Gram matrix of [X, Y] and
// u_i = |x_i|^2 - |y_i|^2,
//   e_D = sum (u_i + rho)^2,   e_O = |Gxx|^2 - 2 |Gyx|^2 + |Gyy|^2 - sum u_i^2,
//   t_D = sum |y_i|^4,         t_O = |Gyy|^2 - t_D,
// all in double; see riskernels/reference/factored_nmse.py.
#pragma once

#include "row_products.cuh"

namespace riskernels::cuda {

// What a scene's value takes, as sums: over rows, and over the entries of its Gram matrix.
enum : int { kErrorDiagonal, kUnloaded, kTargetDiagonal, kKept, kRowSums };
enum : int { kFactorSquare = kRowSums, kMixedSquare, kTargetSquare, kNmseTerms };

RISKERNELS_DEVICE void add_row(double (&sum)[kNmseTerms], double of_x, double of_y, double rho) {
  const double difference = of_x - of_y;
  sum[kErrorDiagonal] += (difference + rho) * (difference + rho);
  sum[kUnloaded] += difference * difference;
  sum[kTargetDiagonal] += of_y * of_y;
  sum[kKept] += 1;
}

// Entry (i, j), i <= j, and its mirror image.
RISKERNELS_DEVICE void add_entry(double (&sum)[kNmseTerms], int i, int j, int of_x,
                                 Complex<double> value) {
  const double square = norm(value);
  sum[kFactorSquare] += j < of_x ? (i == j ? square : 2 * square) : 0.0;
  sum[kMixedSquare] += i < of_x && j >= of_x ? square : 0.0;
  sum[kTargetSquare] += i >= of_x ? (i == j ? square : 2 * square) : 0.0;
}

// One thread writes what the operator returns for one scene, but for the Gram matrix.
template <typename T>
RISKERNELS_DEVICE void write_factored_nmse(const FactoredNmseProblem<T>& p, int64_t scene,
                                           const double (&sum)[kNmseTerms], T* nmse, double* sums) {
  const bool several = sum[kKept] > 1;
  double error = sum[kFactorSquare] - 2 * sum[kMixedSquare] + sum[kTargetSquare] - sum[kUnloaded];
  double power = sum[kTargetSquare] - sum[kTargetDiagonal];
  // Rounding may leave less than nothing; NaN stays.
  error = !several || error < 0 ? 0 : error;
  power = !several || power < 0 ? 0 : power;
  sums[4 * scene] = sum[kErrorDiagonal];
  sums[4 * scene + 1] = error;
  sums[4 * scene + 2] = sum[kTargetDiagonal];
  sums[4 * scene + 3] = power;
  const double parts = p.lam_diag * sum[kErrorDiagonal] / (sum[kTargetDiagonal] + p.eps) +
                       p.lam_off * error / (power + p.eps);
  nmse[scene] = static_cast<T>(parts / (p.lam_diag + p.lam_off));
}

// w_S and q_S of a scene, times 4. Nothing off the diagonal, as with a single element, has no
// gradient; the products that form it would leave their rounding over eps.
struct NmseWeights {
  double diagonal, off, ratio_diagonal, ratio_off;

  template <typename T>
  RISKERNELS_DEVICE NmseWeights(const FactoredNmseProblem<T>& p, double grad, const double* sums)
      : diagonal(4 * grad * p.lam_diag / ((p.lam_diag + p.lam_off) * (sums[2] + p.eps))),
        off(0),
        ratio_diagonal(diagonal * sums[0] / (sums[2] + p.eps)),
        ratio_off(0) {
    if (sums[1] == 0 && sums[3] == 0) return;
    off = 4 * grad * p.lam_off / ((p.lam_diag + p.lam_off) * (sums[3] + p.eps));
    ratio_off = off * sums[1] / (sums[3] + p.eps);
  }

  // Coefficients of the rows themselves.
  RISKERNELS_DEVICE double of_factor(double difference, double rho) const {
    return diagonal * (difference + rho) - off * difference;
  }
  RISKERNELS_DEVICE double of_target(double difference, double rho, double of_y) const {
    return -(of_factor(difference, rho) + (ratio_diagonal - ratio_off) * of_y);
  }
};

// The matrix of [X, Y] -> gradients [c, columns]. Reached by all threads of a block.
template <typename T>
RISKERNELS_DEVICE void nmse_matrix(const NmseWeights& weights, const Complex<double>* gram,
                                   const RowGradients<T>& out, Complex<T>* matrix) {
  const int c = out.of_x + out.of_z;
  for_block_items(c * out.columns, [&](int item) {
    const int row = item / out.columns;
    const int column = out.first + item % out.columns;
    const bool from_x = row < out.of_x, to_x = column < out.of_x;
    const double scale = from_x ? (to_x ? weights.off : -weights.off)
                         : to_x ? -weights.off
                                : weights.off - weights.ratio_off;
    matrix[item] = narrowed<T>(gram[static_cast<int64_t>(row) * c + column] * scale);
  });
}

// dL/drho = 2 w_D sum (u_i + rho), by the trace of the Gram matrix. Reached by all threads.
template <typename T>
RISKERNELS_DEVICE void write_nmse_rho(const FactoredNmseProblem<T>& p, int64_t scene,
                                      const NmseWeights& weights, const Complex<double>* gram,
                                      double* shared /* [kWarps] */, T* to_rho) {
  const int64_t r = p.factor.columns, c = r + p.target.columns;
  const JointRows<T> rows(joint_problem(p), scene);
  const double rho = rho_of(p.rho, p.rho_stride, scene);
  double sum[1] = {};
  for_block_items(p.elements, [&](int64_t n) { sum[0] += rows.mask.keeps(n) ? rho : 0.0; });
  for_block_items(c, [&](int64_t k) {
    const double power = gram[k * c + k].re;
    sum[0] += k < r ? power : -power;
  });
  block_sums(sum, shared);
  if (threadIdx.x == 0) to_rho[scene] = static_cast<T>(0.5 * weights.diagonal * sum[0]);
}

}  // namespace riskernels::cuda
