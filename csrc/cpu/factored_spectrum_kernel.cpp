// SPDX-License-Identifier: Apache-2.0
// Forward: as many scenes at once as a vector has lanes of double, from the Gram matrix to the
// eigenvectors. Backward: one product of each scene's factor with 2 V diag(g) V^H.
#include "kernels.hpp"
#include "scratch.hpp"
#include "tridiagonal_ql_lanes.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

constexpr int64_t kGramRows = 16;  // rows of the factors that are turned into lanes at a time

// Scene of each lane; the last one again where there are fewer scenes than lanes.
RISKERNELS_INLINE int64_t lane_scene(int64_t first, int64_t end, int w) {
  return first + w < end ? first + w : end - 1;
}

// Rows [n, n + rows) of the factors of a group, in double: row i, column j at x.at(i, j).
template <typename T>
void load_factor_lanes(const FactoredSpectrumProblem<T>& p, int64_t first, int64_t end, int64_t n,
                       int64_t rows, Planar<double> x) {
  for (int w = 0; w < Double::W; ++w) {
    const T* const scene = p.factor.data + 2 * lane_scene(first, end, w) * p.factor.stride[0];
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = scene + 2 * (n + i) * p.factor.stride[1];
      const auto to = x.at(i, 0);
      for (int64_t j = 0; j < p.factor.columns; ++j, from += 2 * p.factor.stride[2]) {
        to.re[j * to.column + w] = from[0];
        to.im[j * to.column + w] = from[1];
      }
    }
  }
}

// The R x C block at (i, j) of a += x^H x.
template <int R, int C>
RISKERNELS_INLINE void add_gram_block(int64_t rows, int64_t i, int64_t j, Planar<double> x,
                                      Planar<double> a) {
  Doubles re[R][C], im[R][C];
  const auto block = a.at(i, j);
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      re[r][c] = Double::load(block.at(r, c).re);
      im[r][c] = Double::load(block.at(r, c).im);
    }
  const double *left = x.at(0, i).re, *right = x.at(0, j).re;
  const int64_t imaginary = x.im - x.re;
  for (int64_t n = 0; n < rows; ++n, left += x.row, right += x.row) {
    Doubles y_re[C], y_im[C];
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      y_re[c] = Double::load(right + c * x.column);
      y_im[c] = Double::load(right + c * x.column + imaginary);
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const auto x_re = Double::load(left + r * x.column);
      const auto x_im = Double::load(left + r * x.column + imaginary);
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) {
        re[r][c] += x_re * y_re[c];
        im[r][c] += x_re * y_im[c];
        re[r][c] += x_im * y_im[c];
        im[r][c] -= x_im * y_re[c];
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      Double::store(block.at(r, c).re, re[r][c]);
      Double::store(block.at(r, c).im, im[r][c]);
    }
}

// a += x^H x, lower triangle, in blocks of two by two columns (whose upper corner on the diagonal
// is filled too, for nobody).
void add_gram(int64_t rows, int64_t columns, Planar<double> x, Planar<double> a) {
  for (int64_t i = 0; i < columns; i += 2) {
    if (i + 1 < columns) {
      for (int64_t j = 0; j <= i; j += 2) add_gram_block<2, 2>(rows, i, j, x, a);
    } else {
      for (int64_t j = 0; j < i; j += 2) add_gram_block<1, 2>(rows, i, j, x, a);
      add_gram_block<1, 1>(rows, i, i, x, a);
    }
  }
}

// 2^e for a normal result.
double power_of_two(int64_t e) {
  const int64_t bits = (e + 1023) << 52;
  double value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// e with 2^e <= x < 2^(e + 1) for x >= 0, or as near to it as leaves 2^-e normal; 0 for x so small
// that its digits are lost.
int64_t scale_exponent(double x) {
  int64_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const int64_t e = (bits >> 52) - 1023;
  return e < -1000 ? 0 : e > 1000 ? 1000 : e;
}

// Gram matrices of the group's lanes with their largest entry, which is on the diagonal, brought to
// [1, 2); by a power of two, so that nothing is rounded. A lane that is not finite becomes the
// identity.
struct LaneScales {
  double back[Double::W];  // what brings the eigenvalues to their size; NaN where not finite
};
LaneScales scale_gram(int64_t n, Planar<double> a) {
  Doubles largest{}, total{};
  for (int64_t i = 0; i < n; ++i) {
    const auto own = Double::load(a.at(i, i).re);
    largest = own > largest ? own : largest;
    total += own - own;  // NaN where it is NaN or infinite
  }
  LaneScales scales;
  alignas(RISKERNELS_VECTOR_BYTES) double forward[Double::W], finite[Double::W];
  for (int w = 0; w < Double::W; ++w) {
    const int64_t e = scale_exponent(total[w] == 0.0 ? largest[w] : 1.0);
    finite[w] = total[w];
    forward[w] = power_of_two(-e);
    scales.back[w] = total[w] == 0.0 ? power_of_two(e) : __builtin_nan("");
  }
  const auto factor = Double::load(forward);
  const auto keeps = Double::load(finite) == 0.0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const auto entry = a.at(i, j);
      const auto re = Double::load(entry.re) * factor, im = Double::load(entry.im) * factor;
      Double::store(entry.re, keeps ? re : Double::splat(i == j ? 1.0 : 0.0));
      Double::store(entry.im, keeps ? im : Doubles{});
    }
  return scales;
}

// Indices by descending value of one lane: an insertion sort, which the order in which the
// iteration finds eigenvalues (nearly ascending) suits from its end.
void sort_lane(int64_t n, const double* values, int64_t* order) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t index = n - 1 - i;
    const double value = values[index * Double::W];
    int64_t k = i;
    for (; k > 0 && values[order[k - 1] * Double::W] < value; --k) order[k] = order[k - 1];
    order[k] = index;
  }
}

template <typename T>
void write_scene(const FactoredSpectrumProblem<T>& p, const EigenLanes& t, int64_t scene, int w,
                 double back, int64_t* order, T* values, T* vectors) {
  const int64_t r = t.size;
  sort_lane(r, t.diagonal + w, order);
  const double rho = p.rho == nullptr ? 0.0 : double(p.rho[scene * p.rho_stride]);
  T* const value = values + scene * r;
  for (int64_t i = 0; i < r; ++i) {
    const double raw = t.diagonal[order[i] * Double::W + w];
    const double kept = i < p.elements && raw > 0.0 ? raw : 0.0;
    value[i] = static_cast<T>(kept * back + rho);
  }
  // A lane that is not finite has the vectors of the identity so far.
  const double blank = back - back;
  T* vector = vectors + 2 * scene * r * r;
  for (int64_t k = 0; k < r; ++k) {
    const auto row = t.vectors.at(k, 0);
    for (int64_t i = 0; i < r; ++i, vector += 2) {
      vector[0] = static_cast<T>(row.re[order[i] * row.column + w] + blank);
      vector[1] = static_cast<T>(row.im[order[i] * row.column + w] + blank);
    }
  }
}

}  // namespace

template <typename T>
void factored_spectrum_forward(const FactoredSpectrumProblem<T>& p, T* values, T* vectors,
                               int64_t begin, int64_t end) {
  constexpr int64_t kLanes = Double::W;
  const int64_t r = p.factor.columns;
  const int64_t work = EigenLanes::doubles(r), rows = 2 * kGramRows * r * kLanes;
  auto* const memory =
      static_cast<double*>(thread_scratch((work + rows) * sizeof(double) + r * sizeof(int64_t)));
  const EigenLanes t(r, memory);
  const Planar<double> x{memory + work, memory + work + kLanes, 2 * r * kLanes, 2 * kLanes};
  auto* const order = reinterpret_cast<int64_t*>(memory + work + rows);
  for (int64_t first = begin; first < end; first += kLanes) {
    for (int64_t k = 0; k < r * r * kLanes; ++k) t.matrix.re[k] = t.matrix.im[k] = 0.0;
    for (int64_t n = 0; n < p.elements; n += kGramRows) {
      const int64_t count = n + kGramRows < p.elements ? kGramRows : p.elements - n;
      load_factor_lanes(p, first, end, n, count, x);
      add_gram(count, r, x, t.matrix);
    }
    const auto scales = scale_gram(r, t.matrix);
    tridiagonalise_lanes(t);
    const auto converged = diagonalise_lanes(t);
    back_transform_lanes(t);
    for (int w = 0; w < kLanes && first + w < end; ++w)
      write_scene(p, t, first + w, w, converged[w] ? scales.back[w] : __builtin_nan(""), order,
                  values, vectors);
  }
}

namespace {

constexpr int64_t kProductRows = 32;  // rows of a factor that are multiplied at a time

// 2 V diag(g) V^H of one scene into `slope`, conjugated and in the precision of the factor; V and
// V diag(2 g) pass through double.
template <typename T>
struct SlopeWork {
  int64_t r, pitch, wide;
  Planar<double> scaled, transposed, product;
  Planar<T> slope, rows, out;

  explicit SlopeWork(int64_t columns)
      : r(columns), pitch(round_up(columns, Simd<T>::W)), wide(round_up(columns, Double::W)) {
    const int64_t in_double = 2 * r * r + 4 * r * wide;
    const int64_t in_single = 2 * r * pitch + 4 * kProductRows * pitch;
    auto* memory =
        static_cast<char*>(thread_scratch(in_double * sizeof(double) + in_single * sizeof(T)));
    const auto take = [&]<typename R>(R, int64_t height, int64_t width) {
      auto* const start = reinterpret_cast<R*>(memory);
      memory += 2 * height * width * sizeof(R);
      return Planar<R>{start, start + height * width, width};
    };
    scaled = take(0.0, r, r);
    transposed = take(0.0, r, wide);
    product = take(0.0, r, wide);
    slope = take(T(0), r, pitch);
    rows = take(T(0), kProductRows, pitch);
    out = take(T(0), kProductRows, pitch);
    for (int64_t k = 0; k < 2 * r * wide; ++k) transposed.re[k] = 0.0;
  }
};

template <typename T>
void form_slope(const SlopeWork<T>& work, const T* vectors, const T* grad, int64_t grad_stride) {
  const int64_t r = work.r;
  for (int64_t i = 0; i < r; ++i)
    for (int64_t k = 0; k < r; ++k) {
      const double re = vectors[2 * (i * r + k)], im = vectors[2 * (i * r + k) + 1];
      const double weight = 2.0 * grad[k * grad_stride];
      const auto scaled = work.scaled.at(i, k), transposed = work.transposed.at(k, i);
      *scaled.re = weight * re;
      *scaled.im = weight * im;
      *transposed.re = re;
      *transposed.im = im;
    }
  const auto constant = [](Planar<double> m) {
    return Planar<const double>{m.re, m.im, m.row, m.column};
  };
  gemm_conj(r, work.wide, r, constant(work.scaled), constant(work.transposed), work.product);
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < work.pitch; ++j) {
      const auto to = work.slope.at(i, j), from = work.product.at(i, j);
      *to.re = j < r ? static_cast<T>(*from.re) : T(0);
      *to.im = j < r ? static_cast<T>(-*from.im) : T(0);
    }
}

}  // namespace

template <typename T>
void factored_spectrum_backward(const FactoredSpectrumProblem<T>& p, const T* grad,
                                const int64_t* grad_stride, const T* vectors, T* grad_factor,
                                T* grad_rho, int64_t begin, int64_t end) {
  const int64_t r = p.factor.columns, n = p.elements;
  if (grad_rho != nullptr)
    for (int64_t b = begin; b < end; ++b) {
      double sum = 0;
      for (int64_t k = 0; k < r; ++k) sum += grad[b * grad_stride[0] + k * grad_stride[1]];
      grad_rho[b] = static_cast<T>(sum);
    }
  if (grad_factor == nullptr) return;
  const SlopeWork<T> work(r);
  const Planar<const T> slope{work.slope.re, work.slope.im, work.pitch};
  const Planar<const T> rows{work.rows.re, work.rows.im, work.pitch};
  for (int64_t b = begin; b < end; ++b) {
    form_slope(work, vectors + 2 * b * r * r, grad + b * grad_stride[0], grad_stride[1]);
    const T* const scene = p.factor.data + 2 * b * p.factor.stride[0];
    for (int64_t first = 0; first < n; first += kProductRows) {
      const int64_t count = first + kProductRows < n ? kProductRows : n - first;
      for (int64_t i = 0; i < count; ++i)
        load_row(scene + 2 * (first + i) * p.factor.stride[1], p.factor.stride[2], r,
                 work.rows.at(i, 0).re, work.rows.at(i, 0).im);
      gemm_conj(count, work.pitch, r, rows, slope, work.out);
      for (int64_t i = 0; i < count; ++i)
        store_row(grad_factor + 2 * (b * n + first + i) * r, r, work.out.at(i, 0).re,
                  work.out.at(i, 0).im);
    }
  }
}

#define RISKERNELS_INSTANTIATE(T)                                                                \
  template void factored_spectrum_forward<T>(const FactoredSpectrumProblem<T>&, T*, T*, int64_t, \
                                             int64_t);                                           \
  template void factored_spectrum_backward<T>(const FactoredSpectrumProblem<T>&, const T*,       \
                                              const int64_t*, const T*, T*, T*, int64_t, int64_t);
RISKERNELS_INSTANTIATE(float)
RISKERNELS_INSTANTIATE(double)
#undef RISKERNELS_INSTANTIATE

}  // namespace riskernels::RISKERNELS_ISA
