// SPDX-License-Identifier: Apache-2.0
// Memory-bound: the factors are read for their energies, and again, from cache, to be scaled and
// put side by side.
#include "interleaved_rows.hpp"
#include "kernels.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

using Double = Simd<double>;

// |x|^2 of one scene, in double.
template <typename T>
double energy(const Rows<T>& x, int64_t n) {
  // Along whichever dimension has unit stride; the order of a sum is free.
  const bool by_columns = x.column != 1 && x.row == 1;
  const int64_t lines = by_columns ? x.columns : n, length = by_columns ? n : x.columns;
  const int64_t line = by_columns ? x.column : x.row, step = by_columns ? x.row : x.column;
  Double::V sums[2] = {};
  double rest = 0;
  for (int64_t i = 0; i < lines; ++i) {
    const T* const from = x.data + 2 * i * line;
    const int64_t reals = step == 1 ? 2 * length : 0;
    const int64_t whole = reals / (2 * Double::W) * (2 * Double::W);
    for (int64_t k = 0; k < whole; k += 2 * Double::W) {
      const auto a = load_as<double>(from + k), b = load_as<double>(from + k + Double::W);
      sums[0] += a * a;
      sums[1] += b * b;
    }
    for (int64_t j = whole / 2; j < length; ++j) {
      const double re = from[2 * j * step], im = from[2 * j * step + 1];
      rest += re * re + im * im;
    }
  }
  return Double::sum(sums[0] + sums[1]) + rest;
}

template <typename T>
Rows<T> factor_rows(const FactoredBlendProblem<T>& p, int64_t b) {
  return {p.factor + 2 * b * p.factor_stride[0], p.factor_stride[1], p.factor_stride[2], p.columns};
}
// The snapshots as the columns of V.
template <typename T>
Rows<T> snapshot_rows(const FactoredBlendProblem<T>& p, int64_t b) {
  return {p.samples + 2 * b * p.samples_stride[0], p.samples_stride[2], p.samples_stride[1],
          p.snapshots};
}

// Whether the trace |V|^2 / L of the snapshots counts, that is, is not 0, decided by the first
// entry that decides it.
template <typename T>
bool has_trace(const FactoredBlendProblem<T>& p, int64_t b) {
  const auto v = snapshot_rows(p, b);
  const double count = static_cast<double>(p.snapshots);
  for (int64_t l = 0; l < v.columns; ++l)
    for (int64_t i = 0; i < p.elements; ++i) {
      const T* const entry = v.data + 2 * (i * v.row + l * v.column);
      const double re = entry[0], im = entry[1];
      if (!((re * re + im * im) / count <= 0)) return true;
    }
  return energy(v, p.elements) / count > 0;
}

}  // namespace

template <typename T>
void factored_blend(const FactoredBlendProblem<T>& p, T* out, T* rho, int64_t begin, int64_t end) {
  const int64_t n = p.elements, pitch = 2 * (p.columns + p.snapshots);
  const double count = static_cast<double>(p.snapshots);
  // Both parts of a row are written while it is in cache.
  constexpr int64_t kRows = 64;
  for (int64_t b = begin; b < end; ++b) {
    const auto factor = factor_rows(p, b), snapshots = snapshot_rows(p, b);
    const auto c =
        blend_coefficients(energy(factor, n), energy(snapshots, n) / count, n, p.options);
    const T of_factor = static_cast<T>(__builtin_sqrt(c.pred));
    const T of_snapshots = static_cast<T>(__builtin_sqrt(c.samp / count));
    for (int64_t first = 0; first < n; first += kRows) {
      const int64_t rows = n - first < kRows ? n - first : kRows;
      T* const to = out + (b * n + first) * pitch;
      pack_rows(factor, first, rows, of_factor, to, pitch);
      pack_rows(snapshots, first, rows, of_snapshots, to + 2 * p.columns, pitch);
    }
    rho[b] = static_cast<T>(c.diagonal);
  }
}

namespace {

// Re<g, a> of one scene, in double.
template <typename T>
double inner(const Rows<T>& g, const Rows<T>& a, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T *x = g.data + 2 * i * g.row, *y = a.data + 2 * i * a.row;
    for (int64_t j = 0; j < a.columns; ++j, x += 2 * g.column, y += 2 * a.column)
      sum += static_cast<double>(x[0]) * y[0] + static_cast<double>(x[1]) * y[1];
  }
  return sum;
}

}  // namespace

template <typename T>
void factored_blend_backward(const FactoredBlendProblem<T>& p, const IncomingGradient<T>& grad,
                             T* grad_factor, int64_t begin, int64_t end) {
  const int64_t n = p.elements, columns = p.columns;
  for (int64_t b = begin; b < end; ++b) {
    const auto a = factor_rows(p, b);
    const Rows<T> g{grad.data + 2 * b * grad.stride[0], grad.stride[1], grad.stride[2], columns};
    const double trace = energy(a, n);
    // c_p depends on the snapshots' trace by its sign alone.
    const auto c = blend_coefficients(trace, has_trace(p, b) ? 1.0 : 0.0, n, p.options);
    const double root = __builtin_sqrt(c.pred);
    const T of_grad = static_cast<T>(root);
    const T of_factor = static_cast<T>(trace == 0 ? 0.0 : root * (inner(g, a, n) / trace));
    T* to = grad_factor + 2 * b * n * columns;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < columns; ++j, to += 2) {
        const T* const x = g.data + 2 * (i * g.row + j * g.column);
        const T* const y = a.data + 2 * (i * a.row + j * a.column);
        to[0] = trace == 0 ? T(0) : of_grad * x[0] - of_factor * y[0];
        to[1] = trace == 0 ? T(0) : of_grad * x[1] - of_factor * y[1];
      }
  }
}

#define RISKERNELS_INSTANTIATE(T)                                                            \
  template void factored_blend<T>(const FactoredBlendProblem<T>&, T*, T*, int64_t, int64_t); \
  template void factored_blend_backward<T>(const FactoredBlendProblem<T>&,                   \
                                           const IncomingGradient<T>&, T*, int64_t, int64_t);
RISKERNELS_INSTANTIATE(float)
RISKERNELS_INSTANTIATE(double)
#undef RISKERNELS_INSTANTIATE

}  // namespace riskernels::RISKERNELS_ISA
