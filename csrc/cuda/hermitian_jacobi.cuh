// SPDX-License-Identifier: Apache-2.0
// Eigenvalues and eigenvectors of one Hermitian matrix by the threads of a block: cyclic Jacobi
// rotations in parallel order.
//
// In a step every index is in one pair (p, q), and the rotations J of all pairs, which make the
// entries (p, q) zero, act at once: A <- J^H A J, V <- V J. The block of rows of one pair and
// columns of another depends on these two rotations alone, so that it is updated in place, by one
// thread. After r - 1 steps (r even) every pair has met once. Sweeps of steps follow until one
// finds no entry worth a rotation; from a few sweeps on they square the entries that are left.
#pragma once

#include "lanes.cuh"

namespace riskernels::cuda {

// Six to nine are usual; the bound is there for what nobody has thought of.
constexpr int kJacobiSweeps = 40;
// An entry of half an ulp of the largest diagonal entry moves no eigenvalue by more.
constexpr double kJacobiNegligible = Limits<double>::kEpsilon / 2;

// v_p <- c v_p - conj(s) v_q, v_q <- s v_p + c v_q for columns of V.
struct JacobiRotation {
  double cosine;
  Complex<double> sine;

  // By the sine: the cosine of a small angle rounds to 1.
  RISKERNELS_DEVICE bool idle() const { return sine.re == 0 && sine.im == 0; }
};

struct JacobiPair {
  int p, q;
};

// Pair k of a step among an even number of indices: the last index stays, the others move around
// it.
RISKERNELS_DEVICE JacobiPair jacobi_pair(int step, int k, int indices) {
  const int around = indices - 1;
  if (k == 0) return {step, around};
  const int p = step + k, q = step - k;
  return {p < around ? p : p - around, q < 0 ? q + around : q};
}

// [a b; conj(b) d] -> diagonal.
RISKERNELS_DEVICE JacobiRotation jacobi_rotation(Complex<double>& a, Complex<double>& d,
                                                 Complex<double> b, double size) {
  const double cotangent = (d.re - a.re) / (2 * size);  // of twice the angle
  const double root = sqrt(cotangent * cotangent + 1);
  const double tangent = cotangent < 0 ? 1 / (cotangent - root) : 1 / (cotangent + root);
  const double cosine = 1 / sqrt(tangent * tangent + 1);
  a = {a.re - tangent * size, 0};
  d = {d.re + tangent * size, 0};
  return {cosine, b * (tangent * cosine / size)};
}

// x <- c x - conj(s) y, y <- s x + c y.
RISKERNELS_DEVICE void rotate(const JacobiRotation& by, Complex<double>& x, Complex<double>& y) {
  Complex<double> first = x * by.cosine, second = y * by.cosine;
  subtract_product(first, conj(by.sine), y);
  add_product(second, by.sine, x);
  x = first;
  y = second;
}

// A matrix of the block, both triangles, and V transposed; rows of `pitch`.
struct JacobiMatrix {
  Complex<double>* a;
  Complex<double>* columns;
  int size, pitch;

  RISKERNELS_DEVICE Complex<double>& at(int i, int j) const {
    return a[static_cast<int64_t>(i) * pitch + j];
  }
  RISKERNELS_DEVICE Complex<double>& column(int j, int row) const {
    return columns[static_cast<int64_t>(j) * pitch + row];
  }
};

// The rotations of a step, and what they do to the entries that they are made from. True where a
// thread has one that does anything.
RISKERNELS_DEVICE bool find_rotations(const JacobiMatrix& m, int step, double negligible,
                                      JacobiRotation* rotations) {
  const int pairs = (m.size + 1) / 2;
  bool any = false;
  for (int k = static_cast<int>(threadIdx.x); k < pairs; k += kThreads) {
    const JacobiPair pair = jacobi_pair(step, k, 2 * pairs);
    JacobiRotation rotation{1, {}};
    if (pair.q < m.size) {
      Complex<double>&entry = m.at(pair.p, pair.q), &mirror = m.at(pair.q, pair.p);
      const double size = sqrt(norm(entry));
      if (size > negligible) {
        rotation = jacobi_rotation(m.at(pair.p, pair.p), m.at(pair.q, pair.q), entry, size);
        entry = mirror = {};
        any = true;
      }
    }
    rotations[k] = rotation;
  }
  return any;
}

// The block of rows of pair k and columns of pair l, and its mirror image.
RISKERNELS_DEVICE void rotate_block(const JacobiMatrix& m, int step, int k, int l,
                                    const JacobiRotation* rotations) {
  const JacobiRotation left = rotations[k], right = rotations[l];
  if (left.idle() && right.idle()) return;
  const int indices = (m.size + 1) / 2 * 2;
  const JacobiPair rows = jacobi_pair(step, k, indices), columns = jacobi_pair(step, l, indices);
  // Where the number of indices is odd, one of the pairs lacks its second.
  const bool full_rows = rows.q < m.size, full_columns = columns.q < m.size;
  Complex<double> pp = m.at(rows.p, columns.p), pq{}, qp{}, qq{};
  if (full_columns) pq = m.at(rows.p, columns.q);
  if (full_rows) qp = m.at(rows.q, columns.p);
  if (full_rows && full_columns) qq = m.at(rows.q, columns.q);
  rotate(right, pp, pq);
  rotate(right, qp, qq);
  const JacobiRotation adjoint{left.cosine, conj(left.sine)};
  rotate(adjoint, pp, qp);
  rotate(adjoint, pq, qq);
  const auto put = [&](int i, int j, Complex<double> value) {
    m.at(i, j) = value;
    m.at(j, i) = conj(value);
  };
  put(rows.p, columns.p, pp);
  if (full_columns) put(rows.p, columns.q, pq);
  if (full_rows) put(rows.q, columns.p, qp);
  if (full_rows && full_columns) put(rows.q, columns.q, qq);
}

RISKERNELS_DEVICE void apply_rotations(const JacobiMatrix& m, int step,
                                       const JacobiRotation* rotations) {
  const int pairs = (m.size + 1) / 2;
  const int blocks = pairs * (pairs - 1) / 2, items = blocks + pairs * m.size;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += kThreads) {
    if (item < blocks) {
      const TrianglePosition at(item);
      rotate_block(m, step, at.row + 1, at.column, rotations);
      continue;
    }
    const int k = (item - blocks) / m.size, row = (item - blocks) % m.size;
    const JacobiRotation rotation = rotations[k];
    if (rotation.idle()) continue;
    const JacobiPair pair = jacobi_pair(step, k, 2 * pairs);
    rotate(rotation, m.column(pair.p, row), m.column(pair.q, row));
  }
}

// Leaves the eigenvalues on the diagonal, in no order. False where the sweeps did not suffice. The
// matrix is complete behind a barrier, before and after; reached by all threads.
RISKERNELS_DEVICE bool jacobi(const JacobiMatrix& m, double negligible,
                              JacobiRotation* rotations /* [(size + 1) / 2] */) {
  const int steps = (m.size + 1) / 2 * 2 - 1;
  for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
    bool any = false;
    for (int step = 0; step < steps; ++step) {
      any |= find_rotations(m, step, negligible, rotations);
      __syncthreads();
      apply_rotations(m, step, rotations);
      if (step + 1 < steps) __syncthreads();
    }
    if (__syncthreads_or(any) == 0) return true;
  }
  return false;
}

}  // namespace riskernels::cuda
