// SPDX-License-Identifier: Apache-2.0
// Forward: the Gram matrix of [X, S] in double, then algebra of k x k and k x r matrices. Backward:
// that algebra again, and rows of [X, S] times two small matrices in the working precision.
#include "carver.hpp"
#include "joint_gram.hpp"
#include "kernels.hpp"
#include "leakage_transform.hpp"
#include "scratch.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

// An interleaved matrix of complex doubles; `pitch` in reals.
struct Matrix {
  double* data;
  int64_t pitch;

  double* row(int64_t i) const { return data + i * pitch; }
  double* at(int64_t i, int64_t j) const { return row(i) + 2 * j; }
};

Matrix take_matrix(Carver& carver, int64_t rows, int64_t columns) {
  // Products read rows by whole vectors.
  constexpr int64_t kSlack = Simd<double>::W;
  return {carver.take<double>(2 * rows * columns + kSlack), 2 * columns};
}

// out [rows, columns] = a [rows, depth] b
void multiply(int64_t rows, int64_t depth, int64_t columns, const Matrix& a, const Matrix& b,
              const Matrix& out) {
  if (rows == 0) return;
  const RowProducts<double> product{.depth = depth,
                                    .columns = columns,
                                    .a = a.data,
                                    .a_pitch = a.pitch,
                                    .b = b.data,
                                    .b_pitch = b.pitch,
                                    .out = out.data,
                                    .out_pitch = out.pitch};
  product.run(rows);
}

// out [columns, rows] = a^H
void adjoint(int64_t rows, int64_t columns, const Matrix& a, const Matrix& out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      out.at(j, i)[0] = a.at(i, j)[0];
      out.at(j, i)[1] = -a.at(i, j)[1];
    }
}

// Re sum conj(a) b
double inner(int64_t rows, int64_t columns, const Matrix& a, const Matrix& b) {
  using S = Simd<double>;
  const int64_t whole = 2 * columns / S::W * S::W;
  S::V sums{};
  double rest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const double *x = a.row(i), *y = b.row(i);
    for (int64_t j = 0; j < whole; j += S::W) sums += S::load(x + j) * S::load(y + j);
    for (int64_t j = whole; j < 2 * columns; ++j) rest += x[j] * y[j];
  }
  return S::sum(sums) + rest;
}

double trace(int64_t n, const Matrix& a) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a.at(i, i)[0];
  return sum;
}

// The small matrices of one scene.
class Algebra {
 public:
  Algebra(int64_t r_in, int64_t k_in, Carver& carver)
      : r(r_in),
        all(r_in + k_in),
        gram(take_matrix(carver, all, all)),
        transform_(take_matrix(carver, k_in, k_in)),
        transform_adjoint_(take_matrix(carver, k_in, k_in)),
        partial_(take_matrix(carver, k_in, k_in)),
        basis_gram_(take_matrix(carver, k_in, k_in)),
        inside_(take_matrix(carver, k_in, k_in)),
        coupling_adjoint_(take_matrix(carver, r, k_in)),
        coupling_(take_matrix(carver, k_in, r)),
        coupled_gram_(take_matrix(carver, k_in, r)),
        slope_(take_matrix(carver, k_in, r)),
        on_steering_(take_matrix(carver, k_in, r)),
        on_factor_(take_matrix(carver, r, r)),
        work_(carver.take<double>(2 * leakage_transform_work(k_in))) {}

  // T, C, D, U and |R|^2 from `gram`, which the caller has filled. Steering vectors that do not
  // count are the last ones, and take no part.
  void prepare(int64_t kept, double scene_rho, int64_t elements, double ridge) {
    k = kept;
    rho_ = scene_rho;
    for (Matrix* m :
         {&transform_, &transform_adjoint_, &partial_, &basis_gram_, &inside_, &coupling_adjoint_})
      m->pitch = 2 * k;
    const Matrix steering_rows{gram.row(r), gram.pitch}, corner{gram.at(r, r), gram.pitch};
    leakage_transform(k, corner.data, all, ridge, work_, transform_.data);
    adjoint(k, k, transform_, transform_adjoint_);
    multiply(k, k, k, transform_adjoint_, corner, partial_);
    multiply(k, k, k, partial_, transform_, basis_gram_);
    multiply(k, k, r, transform_adjoint_, steering_rows, coupling_);
    multiply(k, r, r, coupling_, gram, coupled_gram_);
    adjoint(k, r, coupling_, coupling_adjoint_);
    multiply(k, r, k, coupling_, coupling_adjoint_, inside_);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < 2 * k; ++j) inside_.row(i)[j] += rho_ * basis_gram_.row(i)[j];
    const double of_factor = trace(r, gram);
    trace_ = of_factor + rho_ * static_cast<double>(elements);
    total = inner(r, r, gram, gram) + rho_ * (of_factor + trace_);
  }

  double leakage() const {
    if (total == 0) return 0;
    const double projected = inner(k, r, coupled_gram_, coupling_) +
                             2 * rho_ * inner(k, r, coupling_, coupling_) +
                             rho_ * rho_ * trace(k, basis_gram_);
    const double outside = total - 2 * projected + inner(k, k, inside_, inside_);
    return (outside < 0 ? 0 : outside) / total;
  }

  // scale M_1 on scale M_2, [r + k, r] with rows `pitch` apart: what rows of [X, S] are multiplied
  // by.
  template <typename T>
  void gradient_matrices(double leakage, double scale, T* to, int64_t pitch) const {
    multiply(k, k, r, inside_, coupling_, slope_);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < 2 * r; ++j)
        slope_.row(i)[j] -= coupled_gram_.row(i)[j] + 2 * rho_ * coupling_.row(i)[j];
    multiply(k, k, r, transform_, slope_, on_steering_);
    multiply(r, k, r, coupling_adjoint_, coupling_, on_factor_);
    for (int64_t i = 0; i < r; ++i) {
      for (int64_t j = 0; j < 2 * r; ++j)
        on_factor_.row(i)[j] = (1 - leakage) * gram.row(i)[j] - on_factor_.row(i)[j];
      on_factor_.at(i, i)[0] += (1 - leakage) * rho_;
    }
    for (int64_t i = 0; i < r + k; ++i) {
      const double* const from = i < r ? on_factor_.row(i) : on_steering_.row(i - r);
      for (int64_t j = 0; j < 2 * r; ++j) to[i * pitch + j] = static_cast<T>(scale * from[j]);
      for (int64_t j = 2 * r; j < pitch; ++j) to[i * pitch + j] = T(0);
    }
  }

  // |R|^2 times dleakage/drho.
  double rho_slope(double leakage) const {
    return 2 * (1 - leakage) * trace_ - 4 * trace(k, inside_) +
           2 * inner(k, k, inside_, basis_gram_);
  }

  const int64_t r, all;
  int64_t k = 0;     // steering vectors that count
  double total = 0;  // |R|^2
  const Matrix gram;

 private:
  Matrix transform_, transform_adjoint_, partial_, basis_gram_, inside_, coupling_adjoint_,
      coupling_, coupled_gram_, slope_, on_steering_, on_factor_;
  double* work_;
  double rho_ = 0, trace_ = 0;  // trace of R
};

template <typename T>
int64_t kept_columns(const FactoredLeakageProblem<T>& p, int64_t b) {
  const int64_t count = p.num_sources[b * p.num_sources_stride], k = p.steering.columns;
  return count < 0 ? 0 : count < k ? count : k;
}
template <typename T>
double scene_rho(const FactoredLeakageProblem<T>& p, int64_t b) {
  return p.rho == nullptr ? 0.0 : static_cast<double>(p.rho[b * p.rho_stride]);
}

}  // namespace

template <typename T>
void factored_leakage_forward(const FactoredLeakageProblem<T>& p, T* leakage, double* gram,
                              int64_t begin, int64_t end) {
  const int64_t r = p.factor.columns, all = r + p.steering.columns;
  struct Work {
    Algebra algebra;
    double* joint;
  };
  const auto carve = [&](Carver& carver) {
    return Work{Algebra(r, p.steering.columns, carver),
                carver.take<double>(JointGram::doubles(all))};
  };
  Carver count(nullptr);
  carve(count);
  Carver carver(thread_scratch(static_cast<std::size_t>(count.used())));
  auto work = carve(carver);
  Algebra& algebra = work.algebra;
  const JointGram joint(all, work.joint);
  for (int64_t b = begin; b < end; ++b) {
    auto steering = scene_rows(p.steering, b);
    steering.columns = kept_columns(p, b);
    joint.sum(p.elements, scene_rows(p.factor, b), steering, nullptr, 0, [](int64_t, int64_t) {});
    joint.store(r + steering.columns, all, algebra.gram.data);
    __builtin_memcpy(gram + 2 * b * all * all, algebra.gram.data,
                     static_cast<std::size_t>(2 * all * all) * sizeof(double));
    algebra.prepare(steering.columns, scene_rho(p, b), p.elements, p.ridge);
    leakage[b] = static_cast<T>(algebra.leakage());
  }
}

template <typename T>
void factored_leakage_backward(const FactoredLeakageProblem<T>& p, const T* grad,
                               int64_t grad_stride, const T* leakage, const double* gram,
                               T* grad_factor, T* grad_rho, int64_t begin, int64_t end) {
  constexpr int64_t kRows = 48;  // of [X, S] that are packed at a time
  const int64_t n = p.elements, r = p.factor.columns, all = r + p.steering.columns;
  const int64_t pitch = 2 * all, matrix_pitch = round_up(2 * r, Simd<T>::W);
  struct Work {
    Algebra algebra;
    T *rows, *matrix;
  };
  const auto carve = [&](Carver& carver) {
    return Work{Algebra(r, p.steering.columns, carver), carver.take<T>(kRows * pitch),
                carver.take<T>(all * matrix_pitch)};
  };
  Carver count(nullptr);
  carve(count);
  Carver carver(thread_scratch(static_cast<std::size_t>(count.used())));
  auto work = carve(carver);
  for (int64_t b = begin; b < end; ++b) {
    auto steering = scene_rows(p.steering, b);
    steering.columns = kept_columns(p, b);
    __builtin_memcpy(work.algebra.gram.data, gram + 2 * b * all * all,
                     static_cast<std::size_t>(2 * all * all) * sizeof(double));
    work.algebra.prepare(steering.columns, scene_rho(p, b), n, p.ridge);
    const double total = work.algebra.total, value = leakage[b];
    const double scale = total == 0 ? 0.0 : grad[b * grad_stride] / total;
    if (grad_rho != nullptr) grad_rho[b] = static_cast<T>(scale * work.algebra.rho_slope(value));
    if (grad_factor == nullptr) continue;
    work.algebra.gradient_matrices(value, 4 * scale, work.matrix, matrix_pitch);
    const auto factor = scene_rows(p.factor, b);
    for (int64_t first = 0; first < n; first += kRows) {
      const int64_t rows = n - first < kRows ? n - first : kRows;
      pack_rows(factor, first, rows, T(1), work.rows, pitch);
      pack_rows(steering, first, rows, T(1), work.rows + 2 * r, pitch);
      const RowProducts<T> product{.depth = r + steering.columns,
                                   .columns = r,
                                   .a = work.rows,
                                   .a_pitch = pitch,
                                   .b = work.matrix,
                                   .b_pitch = matrix_pitch,
                                   .out = grad_factor + 2 * (b * n + first) * r,
                                   .out_pitch = 2 * r};
      product.run(rows);
    }
  }
}

#define RISKERNELS_INSTANTIATE(T)                                                                 \
  template void factored_leakage_forward<T>(const FactoredLeakageProblem<T>&, T*, double*,        \
                                            int64_t, int64_t);                                    \
  template void factored_leakage_backward<T>(const FactoredLeakageProblem<T>&, const T*, int64_t, \
                                             const T*, const double*, T*, T*, int64_t, int64_t);
RISKERNELS_INSTANTIATE(float)
RISKERNELS_INSTANTIATE(double)
#undef RISKERNELS_INSTANTIATE

}  // namespace riskernels::RISKERNELS_ISA
