// SPDX-License-Identifier: Apache-2.0
// One read of the covariance forward, one read and one write backward. What is of size K x N or
// K x K runs in double.
#include <type_traits>

#include "kernels.hpp"
#include "leakage_rows.hpp"
#include "leakage_transform.hpp"
#include "panel.hpp"
#include "scratch.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

// Scratch of one scene. Rows of planar data are padded with zeros to a whole vector of doubles,
// interleaved ones to the step of the row loops.
template <typename T>
struct Work {
  int64_t n, padded, row;                     // N; N padded; reals of an interleaved row
  Planar<double> steering, basis, projected;  // [K, N]; the basis conjugated
  double *gram, *transform, *small;           // [K, K] complex; work of the transform
  T *first, *second;                          // [K, row]: W, or V and i V
  T* gathered;                                // rows of a covariance without unit stride

  Work(int64_t elements, int64_t columns)
      : n(elements),
        padded(round_up(elements, Simd<double>::W)),
        row(round_up(2 * elements, kStep<T>)) {
    const int64_t plane = columns * padded, square = round_up(2 * columns * columns, 8);
    const int64_t doubles = 6 * plane + 4 * square, panel = columns * row;
    const int64_t reals = 2 * panel + kBackwardRows * row;
    // Planes are multiples of a vector, and so are panels.
    char* block =
        static_cast<char*>(thread_scratch(static_cast<std::size_t>(doubles) * sizeof(double) +
                                          static_cast<std::size_t>(reals) * sizeof(T) + 64));
    double* d = reinterpret_cast<double*>(block);
    const auto planar = [&](int64_t at) { return Planar<double>{d + at, d + at + plane, padded}; };
    steering = planar(0);
    basis = planar(2 * plane);
    projected = planar(4 * plane);
    gram = d + 6 * plane;
    transform = gram + square;
    small = transform + square;
    first = reinterpret_cast<T*>(d + doubles);
    second = first + panel;
    gathered = second + panel;
  }
};

template <typename T>
class Rows {
 public:
  Rows(const LeakageProblem<T>& p, int64_t scene, T* buffer, int64_t buffer_row)
      : base_(p.cov + 2 * scene * p.cov_stride[0]),
        row_(p.cov_stride[1]),
        column_(p.cov_stride[2]),
        n_(p.elements),
        buffer_(buffer),
        buffer_row_(buffer_row) {}

  // Pointers to rows i, i + 1, ...: in place where their stride is 1, gathered otherwise.
  template <int R>
  RISKERNELS_INLINE void at(int64_t i, const T* (&rows)[R]) const {
    const T* from = base_ + 2 * i * row_;
    for (int r = 0; r < R; ++r)
      rows[r] = column_ == 1 ? from + 2 * r * row_ : buffer_ + r * buffer_row_;
    if (column_ == 1) return;
    for (int64_t j = 0; j < n_; ++j)
      for (int r = 0; r < R; ++r) {
        buffer_[r * buffer_row_ + 2 * j] = from[2 * (r * row_ + j * column_)];
        buffer_[r * buffer_row_ + 2 * j + 1] = from[2 * (r * row_ + j * column_) + 1];
      }
  }

 private:
  const T* base_;
  int64_t row_, column_, n_;
  T* buffer_;
  int64_t buffer_row_;
};

// A row of n complex numbers, `stride` apart, into planar double; zeros up to `padded`.
template <typename T>
RISKERNELS_INLINE void widen(const T* from, int64_t stride, int64_t n, int64_t padded, double sign,
                             double* re, double* im) {
  for (int64_t j = 0; j < n; ++j) {
    re[j] = from[2 * j * stride];
    im[j] = sign * from[2 * j * stride + 1];
  }
  for (int64_t j = n; j < padded; ++j) re[j] = im[j] = 0;
}

// c(i, j) = sum_n a(i, n) conj(b(j, n)), [k, k], interleaved.
RISKERNELS_INLINE void small_products(int64_t k, int64_t depth, Planar<const double> a,
                                      Planar<const double> b, double* c) {
  for (int64_t i = 0; i < k; ++i)
    dot_conj<double>(k, depth, a.at(i, 0).re, a.at(i, 0).im, b, c + 2 * i * k, c + 2 * i * k + 1,
                     2);
}

RISKERNELS_INLINE Planar<const double> constant(const Planar<double>& p) {
  return {p.re, p.im, p.row, p.column};
}

// out += sum_l c(l) rows(l, .), planar, for complex numbers c(l) `step` apart.
RISKERNELS_INLINE void add_rows(int64_t depth, int64_t length, const double* c, int64_t step,
                                Planar<const double> rows, double* out_re, double* out_im) {
  using S = Simd<double>;
  for (int64_t j = 0; j < length; j += S::W) {
    auto re = S::load(out_re + j), im = S::load(out_im + j);
    for (int64_t l = 0; l < depth; ++l) {
      const auto c_re = S::splat(c[2 * l * step]), c_im = S::splat(c[2 * l * step + 1]);
      const auto x_re = S::load(rows.re + l * rows.row + j);
      const auto x_im = S::load(rows.im + l * rows.row + j);
      re += c_re * x_re;
      im += c_re * x_im;
      re -= c_im * x_im;
      im += c_im * x_re;
    }
    S::store(out_re + j, re);
    S::store(out_im + j, im);
  }
}

// Q [n, columns] of one scene in the working precision, zeros from column `active` on, and the
// conjugates of the same numbers in work.basis.
template <typename T>
void form_basis(const LeakageProblem<T>& p, int64_t scene, int64_t active, const Work<T>& work,
                T* out) {
  const T* const steering = p.steering + 2 * scene * p.steering_stride[0];
  for (int64_t k = 0; k < active; ++k)
    widen(steering + 2 * k * p.steering_stride[2], p.steering_stride[1], work.n, work.padded, 1,
          work.steering.at(k, 0).re, work.steering.at(k, 0).im);
  // dot_conj conjugates its second operand: this is the transpose of S^H S, the conjugate matrix.
  small_products(active, work.padded, constant(work.steering), constant(work.steering), work.gram);
  for (int64_t i = 0; i < active * active; ++i) work.gram[2 * i + 1] = -work.gram[2 * i + 1];
  leakage_transform(active, work.gram, active, p.ridge, work.small, work.transform);
  for (int64_t k = 0; k < active; ++k) {
    const auto row = work.basis.at(k, 0);
    for (int64_t j = 0; j < work.padded; ++j) row.re[j] = row.im[j] = 0;
    add_rows(active, work.padded, work.transform + 2 * k, active, constant(work.steering), row.re,
             row.im);
    for (int64_t j = 0; j < work.n; ++j) {
      T* const entry = out + 2 * (j * p.columns + k);
      entry[0] = static_cast<T>(row.re[j]);
      entry[1] = static_cast<T>(row.im[j]);
      row.re[j] = entry[0];
      row.im[j] = -entry[1];
    }
  }
  for (int64_t j = 0; j < work.n; ++j)
    for (int64_t k = 2 * active; k < 2 * p.columns; ++k) out[2 * j * p.columns + k] = T(0);
}

// U = W Q [active, active] into work.gram, with W in work.projected; returns |U|^2.
template <typename T>
double project_twice(const Work<T>& work, int64_t active) {
  small_products(active, work.padded, constant(work.projected), constant(work.basis), work.gram);
  double sum = 0;
  for (int64_t i = 0; i < 2 * active * active; ++i) sum += work.gram[i] * work.gram[i];
  return sum;
}

template <typename T>
void scene_forward(const LeakageProblem<T>& p, const LeakageState<T>& state, int64_t b,
                   const Work<T>& work) {
  const int64_t n = p.elements, length = 2 * n;
  const int64_t given = p.num_sources[b * p.num_sources_stride];
  const int64_t active = given < 0 ? 0 : given < p.columns ? given : p.columns;
  T* const basis = state.basis + 2 * b * n * p.columns;
  form_basis(p, b, active, work, basis);

  for (int64_t j = 0; j < active * work.row; ++j) work.first[j] = T(0);
  const Rows<T> rows(p, b, work.gathered, work.row);
  double total = 0;
  const auto run = [&](auto count, int64_t i) {
    constexpr int R = decltype(count)::value;
    const T* x[R];
    rows.template at<R>(i, x);
    total += project_rows<T, R>(x, length, basis + 2 * i * p.columns, 2 * p.columns, active,
                                work.first, work.row);
  };
  int64_t i = 0;
  for (; i + kForwardRows <= n; i += kForwardRows)
    run(std::integral_constant<int, kForwardRows>(), i);
  for (; i < n; ++i) run(std::integral_constant<int, 1>(), i);

  T* const projected = state.projected + 2 * b * n * p.columns;
  double once = 0;
  for (int64_t k = 0; k < active; ++k) {
    const T* const from = work.first + k * work.row;
    const auto to = work.projected.at(k, 0);
    widen(from, 1, n, work.padded, 1, to.re, to.im);
    for (int64_t j = 0; j < n; ++j) once += to.re[j] * to.re[j] + to.im[j] * to.im[j];
    __builtin_memcpy(projected + k * length, from, static_cast<std::size_t>(length) * sizeof(T));
  }
  for (int64_t j = active * length; j < p.columns * length; ++j) projected[j] = T(0);
  const double outside = total - 2 * once + project_twice(work, active);
  state.total[b] = static_cast<T>(total);
  // Written so that NaN stays.
  state.leakage[b] = total == 0 ? T(0) : static_cast<T>((outside < 0 ? 0 : outside) / total);
}

// How many columns there are before those that are all zero, as masked ones are.
template <typename T>
int64_t count_active(const T* basis, int64_t n, int64_t columns) {
  for (int64_t k = columns; k > 0; --k)
    for (int64_t j = 0; j < n; ++j) {
      const T* const entry = basis + 2 * (j * columns + k - 1);
      if (!(entry[0] == 0 && entry[1] == 0)) return k;
    }
  return 0;
}

template <typename T>
void scene_backward(const LeakageProblem<T>& p, const LeakageState<T>& state, int64_t b,
                    double grad, const Work<T>& work, T* out) {
  const int64_t n = p.elements, length = 2 * n;
  const double total = state.total[b];
  if (total == 0) {
    __builtin_memset(out, 0, static_cast<std::size_t>(n * length) * sizeof(T));
    return;
  }
  const T* const basis = state.basis + 2 * b * n * p.columns;
  const int64_t active = count_active(basis, n, p.columns);
  for (int64_t k = 0; k < active; ++k) {
    const auto q = work.basis.at(k, 0), w = work.projected.at(k, 0);
    widen(basis + 2 * k, p.columns, n, work.padded, -1, q.re, q.im);
    widen(state.projected + (b * p.columns + k) * length, 1, n, work.padded, 1, w.re, w.im);
  }
  project_twice(work, active);
  // -scale (2W - U Q^H), so that one row loop adds it to the covariance.
  const double scale = 2 * grad / total;
  for (int64_t k = 0; k < active; ++k) {
    const auto v = work.steering.at(k, 0), w = work.projected.at(k, 0);
    for (int64_t j = 0; j < work.padded; ++j) {
      v.re[j] = -2 * w.re[j];
      v.im[j] = -2 * w.im[j];
    }
    add_rows(active, work.padded, work.gram + 2 * k * active, 1, constant(work.basis), v.re, v.im);
    T* const plain = work.first + k * work.row;
    T* const exchanged = work.second + k * work.row;
    for (int64_t j = 0; j < n; ++j) {
      const T re = static_cast<T>(scale * v.re[j]), im = static_cast<T>(scale * v.im[j]);
      plain[2 * j] = re;
      plain[2 * j + 1] = im;
      exchanged[2 * j] = im;
      exchanged[2 * j + 1] = -re;
    }
    for (int64_t j = length; j < work.row; ++j) plain[j] = exchanged[j] = T(0);
  }
  const T alpha = static_cast<T>(scale * (1 - static_cast<double>(state.leakage[b])));
  const Rows<T> rows(p, b, work.gathered, work.row);
  const auto run = [&](auto count, int64_t i) {
    constexpr int R = decltype(count)::value;
    const T* x[R];
    rows.template at<R>(i, x);
    gradient_rows<T, R>(x, length, alpha, basis + 2 * i * p.columns, 2 * p.columns, active,
                        work.first, work.second, work.row, out + i * length);
  };
  int64_t i = 0;
  for (; i + kBackwardRows <= n; i += kBackwardRows)
    run(std::integral_constant<int, kBackwardRows>(), i);
  for (; i < n; ++i) run(std::integral_constant<int, 1>(), i);
}

}  // namespace

template <typename T>
void subspace_leakage_forward(const LeakageProblem<T>& p, const LeakageState<T>& state,
                              int64_t begin, int64_t end) {
  const Work<T> work(p.elements, p.columns);
  for (int64_t b = begin; b < end; ++b) scene_forward(p, state, b, work);
}

template <typename T>
void subspace_leakage_backward(const LeakageProblem<T>& p, const LeakageState<T>& state,
                               const T* grad, int64_t grad_stride, T* grad_cov, int64_t begin,
                               int64_t end) {
  const Work<T> work(p.elements, p.columns);
  for (int64_t b = begin; b < end; ++b)
    scene_backward(p, state, b, grad[b * grad_stride], work,
                   grad_cov + 2 * b * p.elements * p.elements);
}

template void subspace_leakage_forward<float>(const LeakageProblem<float>&,
                                              const LeakageState<float>&, int64_t, int64_t);
template void subspace_leakage_forward<double>(const LeakageProblem<double>&,
                                               const LeakageState<double>&, int64_t, int64_t);
template void subspace_leakage_backward<float>(const LeakageProblem<float>&,
                                               const LeakageState<float>&, const float*, int64_t,
                                               float*, int64_t, int64_t);
template void subspace_leakage_backward<double>(const LeakageProblem<double>&,
                                                const LeakageState<double>&, const double*, int64_t,
                                                double*, int64_t, int64_t);

}  // namespace riskernels::RISKERNELS_ISA
