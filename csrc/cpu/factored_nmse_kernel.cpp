// SPDX-License-Identifier: Apache-2.0
// Forward: the Gram matrix of [X, Y] in double, and the energies of its rows while they are in
// cache. Backward: rows of both factors times small matrices, which are combined in double and
// applied in the working precision.
#include "carver.hpp"
#include "joint_gram.hpp"
#include "kernels.hpp"
#include "scratch.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

using Double = Simd<double>;

// Sum of squares of `count` reals, in double.
template <typename T>
RISKERNELS_INLINE double energy(const T* x, int64_t count) {
  const int64_t whole = count / Double::W * Double::W, pairs = whole / (2 * Double::W) * 2;
  Double::V even{}, odd{};
  for (int64_t k = 0; k < pairs * Double::W; k += 2 * Double::W) {
    const auto a = load_as<double>(x + k), b = load_as<double>(x + k + Double::W);
    even += a * a;
    odd += b * b;
  }
  if (pairs * Double::W < whole) {
    const auto a = load_as<double>(x + pairs * Double::W);
    even += a * a;
  }
  double sum = Double::sum(even + odd);
  for (int64_t k = whole; k < count; ++k) sum += static_cast<double>(x[k]) * x[k];
  return sum;
}

// |G_xx|^2, |G_yx|^2 and |G_yy|^2.
struct GramEnergies {
  double xx = 0, yx = 0, yy = 0;
};
GramEnergies gram_energies(const double* gram, int64_t r, int64_t columns) {
  GramEnergies e;
  for (int64_t i = 0; i < columns; ++i) {
    const double* const row = gram + 2 * i * columns;
    if (i < r) {
      e.xx += energy(row, 2 * r);
    } else {
      e.yx += energy(row, 2 * r);
      e.yy += energy(row + 2 * r, 2 * (columns - r));
    }
  }
  return e;
}

template <typename T>
const bool* scene_mask(const FactoredNmseProblem<T>& p, int64_t b) {
  return p.mask == nullptr ? nullptr : p.mask + b * p.mask_stride[0];
}
template <typename T>
double scene_rho(const FactoredNmseProblem<T>& p, int64_t b) {
  return p.rho == nullptr ? 0.0 : static_cast<double>(p.rho[b * p.rho_stride]);
}

}  // namespace

template <typename T>
void factored_nmse_forward(const FactoredNmseProblem<T>& p, T* nmse, double* sums, double* gram,
                           int64_t begin, int64_t end) {
  const int64_t r = p.factor.columns, columns = r + p.target.columns;
  const JointGram work(
      columns, static_cast<double*>(thread_scratch(JointGram::doubles(columns) * sizeof(double))));
  for (int64_t b = begin; b < end; ++b) {
    const bool* const mask = scene_mask(p, b);
    const double rho = scene_rho(p, b);
    double error_diagonal = 0, difference = 0, target_diagonal = 0;
    int64_t kept = 0;
    work.sum(p.elements, scene_rows(p.factor, b), scene_rows(p.target, b), mask, p.mask_stride[1],
             [&](int64_t first, int64_t count) {
               for (int64_t i = 0; i < count; ++i) {
                 if (mask != nullptr && !mask[(first + i) * p.mask_stride[1]]) continue;
                 const double* const row = work.chunk + i * work.pitch;
                 const double target = energy(row + 2 * r, 2 * (columns - r));
                 const double u = energy(row, 2 * r) - target;
                 error_diagonal += (u + rho) * (u + rho);
                 difference += u * u;
                 target_diagonal += target * target;
                 ++kept;
               }
             });
    double* const scene_gram = gram + 2 * b * columns * columns;
    work.store(columns, columns, scene_gram);
    const auto e = gram_energies(scene_gram, r, columns);
    // Where at most one element is kept there is nothing off the diagonal, not even rounding.
    double error_off = kept > 1 ? e.xx - 2 * e.yx + e.yy - difference : 0.0;
    double target_off = kept > 1 ? e.yy - target_diagonal : 0.0;
    if (error_off < 0) error_off = 0;
    if (target_off < 0) target_off = 0;
    double* const s = sums + 4 * b;
    s[0] = error_diagonal;
    s[1] = error_off;
    s[2] = target_diagonal;
    s[3] = target_off;
    const double parts = p.lam_diag * s[0] / (s[2] + p.eps) + p.lam_off * s[1] / (s[3] + p.eps);
    nmse[b] = static_cast<T>(parts / (p.lam_diag + p.lam_off));
  }
}

namespace {

// What the backward multiplies by, from the sums of the forward.
struct NmseWeights {
  double diagonal, off, diagonal_ratio, off_ratio;  // w_d, w_o, q_d, q_o
};
template <typename T>
NmseWeights nmse_weights(const FactoredNmseProblem<T>& p, double grad, const double* sums,
                         bool several) {
  const double total = p.lam_diag + p.lam_off;
  NmseWeights w{};
  w.diagonal = grad * p.lam_diag / (total * (sums[2] + p.eps));
  w.diagonal_ratio = w.diagonal * sums[0] / (sums[2] + p.eps);
  // Nothing lies off the diagonal of a single element: its weight, which may be 0/0, meets nothing.
  if (!several) return w;
  w.off = grad * p.lam_off / (total * (sums[3] + p.eps));
  w.off_ratio = w.off * sums[1] / (sums[3] + p.eps);
  return w;
}

// Columns [first, first + width) of the Gram matrix to `to`: the first r rows times on_x, the
// others times on_y.
template <typename T>
void scaled_gram(const double* gram, int64_t r, int64_t columns, int64_t first, int64_t width,
                 double on_x, double on_y, T* to, int64_t pitch) {
  for (int64_t i = 0; i < columns; ++i) {
    const double* const row = gram + 2 * (i * columns + first);
    const double scale = i < r ? on_x : on_y;
    for (int64_t k = 0; k < 2 * width; ++k) to[i * pitch + k] = static_cast<T>(scale * row[k]);
    for (int64_t k = 2 * width; k < pitch; ++k) to[i * pitch + k] = T(0);
  }
}

// Scratch of the backward: rows of [X, Y], the two matrices, and the rows' own factors.
template <typename T>
struct BackwardWork {
  static constexpr int64_t kRows = 48;
  int64_t pitch, x_pitch, y_pitch;
  T *rows, *on_x, *on_y, *own_x, *own_y;

  BackwardWork(int64_t r, int64_t k, Carver& carver)
      : pitch(2 * (r + k)),
        x_pitch(round_up(2 * r, Simd<T>::W)),
        y_pitch(round_up(2 * k, Simd<T>::W)),
        // A row's own columns are read by whole vectors.
        rows(carver.take<T>(kRows * pitch + Simd<T>::W)),
        on_x(carver.take<T>((r + k) * x_pitch)),
        on_y(carver.take<T>((r + k) * y_pitch)),
        own_x(carver.take<T>(kRows)),
        own_y(carver.take<T>(kRows)) {}
};

template <typename T>
void clear_masked(const bool* mask, int64_t stride, int64_t count, int64_t width, T* out) {
  for (int64_t i = 0; mask != nullptr && i < count; ++i)
    if (!mask[i * stride])
      for (int64_t k = 0; k < width; ++k) out[i * width + k] = T(0);
}

}  // namespace

template <typename T>
void factored_nmse_backward(const FactoredNmseProblem<T>& p, const T* grad, int64_t grad_stride,
                            const double* sums, const double* gram, T* grad_factor, T* grad_rho,
                            T* grad_target, int64_t begin, int64_t end) {
  const int64_t n = p.elements, r = p.factor.columns, k = p.target.columns, columns = r + k;
  Carver count(nullptr);
  const BackwardWork<T> sizes(r, k, count);
  Carver carver(thread_scratch(static_cast<std::size_t>(count.used())));
  const BackwardWork<T> work(r, k, carver);
  for (int64_t i = 0; i < BackwardWork<T>::kRows * work.pitch + Simd<T>::W; ++i) work.rows[i] = 0;
  for (int64_t b = begin; b < end; ++b) {
    const bool* const mask = scene_mask(p, b);
    const int64_t mask_stride = p.mask_stride[1];
    int64_t kept = n;
    for (int64_t i = 0; mask != nullptr && i < n; ++i) kept -= mask[i * mask_stride] ? 0 : 1;
    const auto w = nmse_weights(p, grad[b * grad_stride], sums + 4 * b, kept > 1);
    const double* const scene_gram = gram + 2 * b * columns * columns;
    scaled_gram(scene_gram, r, columns, 0, r, 4 * w.off, -4 * w.off, work.on_x, work.x_pitch);
    if (grad_target != nullptr)
      scaled_gram(scene_gram, r, columns, r, k, -4 * w.off, 4 * (w.off - w.off_ratio), work.on_y,
                  work.y_pitch);
    const auto x = scene_rows(p.factor, b), y = scene_rows(p.target, b);
    const double rho = scene_rho(p, b);
    double loaded = 0;
    for (int64_t first = 0; first < n; first += BackwardWork<T>::kRows) {
      const int64_t rows = n - first < BackwardWork<T>::kRows ? n - first : BackwardWork<T>::kRows;
      pack_rows(x, first, rows, T(1), work.rows, work.pitch);
      pack_rows(y, first, rows, T(1), work.rows + 2 * r, work.pitch);
      const bool* const row_mask = mask == nullptr ? nullptr : mask + first * mask_stride;
      for (int64_t i = 0; i < rows; ++i) {
        const T* const row = work.rows + i * work.pitch;
        const double target = energy(row + 2 * r, 2 * k), u = energy(row, 2 * r) - target;
        const double own = w.diagonal * (u + rho) - w.off * u;
        work.own_x[i] = static_cast<T>(4 * own);
        work.own_y[i] = static_cast<T>(-4 * (own + (w.diagonal_ratio - w.off_ratio) * target));
        if (row_mask == nullptr || row_mask[i * mask_stride]) loaded += u + rho;
      }
      const auto apply = [&](const T* matrix, int64_t matrix_pitch, const T* own, int64_t column,
                             int64_t width, T* out) {
        if (out == nullptr) return;
        T* const to = out + 2 * (b * n + first) * width;
        const RowProducts<T> product{.depth = columns,
                                     .columns = width,
                                     .a = work.rows,
                                     .a_pitch = work.pitch,
                                     .b = matrix,
                                     .b_pitch = matrix_pitch,
                                     .out = to,
                                     .out_pitch = 2 * width,
                                     .own = own,
                                     .own_column = column};
        product.run(rows);
        clear_masked(row_mask, mask_stride, rows, 2 * width, to);
      };
      apply(work.on_x, work.x_pitch, work.own_x, 0, r, grad_factor);
      apply(work.on_y, work.y_pitch, work.own_y, r, k, grad_target);
    }
    if (grad_rho != nullptr) grad_rho[b] = static_cast<T>(2 * w.diagonal * loaded);
  }
}

#define RISKERNELS_INSTANTIATE(T)                                                             \
  template void factored_nmse_forward<T>(const FactoredNmseProblem<T>&, T*, double*, double*, \
                                         int64_t, int64_t);                                   \
  template void factored_nmse_backward<T>(const FactoredNmseProblem<T>&, const T*, int64_t,   \
                                          const double*, const double*, T*, T*, T*, int64_t,  \
                                          int64_t);
RISKERNELS_INSTANTIATE(float)
RISKERNELS_INSTANTIATE(double)
#undef RISKERNELS_INSTANTIATE

}  // namespace riskernels::RISKERNELS_ISA
