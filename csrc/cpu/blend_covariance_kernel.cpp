// SPDX-License-Identifier: Apache-2.0
// Memory-bound: one read of two matrices and one write, forward and backward. Only the diagonals
// are read before, for the traces.
//
// Tiles from both sides of the diagonal are many short streams, for which one core cannot keep
// enough cache lines in flight. A scene that fits into a cache is therefore first streamed from
// memory to its output from one end to the other, and made Hermitian there.
#include "hermitian_tiles.hpp"
#include "kernels.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

template <typename T>
bool streamable(const HermitianPart<T>& a, const HermitianPart<T>& b, int64_t n) {
  constexpr int64_t kBytes = 1 << 19;
  return a.row == n && a.column == 1 && b.row == n && b.column == 1 &&
         2 * n * n * static_cast<int64_t>(sizeof(T)) <= kBytes;
}

// out = M + M^H + diagonal I for the matrix whose tiles load(whole, i, j, height, width) gives;
// finished tiles go to use(whole, tile, i, j, height, width) as well.
template <typename T, typename Load, typename Ahead, typename Use>
RISKERNELS_INLINE void add_conjugate_transpose(int64_t n, bool unit, T diagonal, T* out,
                                               const Load& load, const Ahead& ahead,
                                               const Use& use) {
  using M = Tile<T>;
  for_each_tile_pair<T>(
      n, unit,
      [&](auto whole, auto on_diagonal, int64_t i, int64_t j, int64_t height, int64_t width)
          RISKERNELS_INLINE_LAMBDA {
            constexpr bool Whole = decltype(whole)::value;
            M other = load(whole, j, i, width, height);
            other.transpose();
            M tile = load(whole, i, j, height, width);
            tile.add_conjugate(other);
            if constexpr (decltype(on_diagonal)::value) mirror(tile, diagonal);
            store_tile<Whole>(tile, out, n, i, j, height, width);
            use(whole, tile, i, j, height, width);
            if constexpr (!decltype(on_diagonal)::value) {
              tile.conjugate();
              tile.transpose();
              store_tile<Whole>(tile, out, n, j, i, width, height);
              use(whole, tile, j, i, width, height);
            }
          },
      ahead);
}

// The same in place, for a contiguous matrix in a cache.
template <typename T>
void add_conjugate_transpose(int64_t n, T diagonal, T* matrix) {
  const int64_t stride[3] = {0, n, 1};
  const HermitianPart<T> part(matrix, stride, 0);
  add_conjugate_transpose<T>(
      n, true, diagonal, matrix,
      [&](auto whole, auto... place)
          RISKERNELS_INLINE_LAMBDA { return part.template tile<decltype(whole)::value>(place...); },
      [](int64_t, int64_t) RISKERNELS_INLINE_LAMBDA {},
      [](auto, auto&&...) RISKERNELS_INLINE_LAMBDA {});
}

template <typename T>
void blend_scene(const HermitianPart<T>& pred, const HermitianPart<T>& samp, int64_t n,
                 const BlendCoefficients& coefficients, T* out) {
  using S = Simd<T>;
  using M = Tile<T>;
  const T of_pred = static_cast<T>(coefficients.pred / 2);
  const T of_samp = static_cast<T>(coefficients.samp / 2);
  const T diagonal = static_cast<T>(coefficients.diagonal);
  const auto p = M::signs(of_pred, pred.im * of_pred), s = M::signs(of_samp, samp.im * of_samp);
  if (pred.im == samp.im && streamable(pred, samp, n)) {
    const int64_t length = 2 * n * n;
    int64_t k = 0;
    for (; k + S::W <= length; k += S::W)
      S::store(out + k, p * S::load(pred.data + k) + s * S::load(samp.data + k));
    for (; k < length; ++k) out[k] = p[k % 2] * pred.data[k] + s[k % 2] * samp.data[k];
    add_conjugate_transpose(n, diagonal, out);
    return;
  }
  add_conjugate_transpose<T>(
      n, pred.column == 1 && samp.column == 1, diagonal, out,
      [&](auto whole, auto... place) RISKERNELS_INLINE_LAMBDA {
        M a = pred.template tile<decltype(whole)::value>(place...);
        const M b = samp.template tile<decltype(whole)::value>(place...);
#pragma GCC unroll 8
        for (int r = 0; r < M::kSize; ++r) a.row[r] = p * a.row[r] + s * b.row[r];
        return a;
      },
      [&](int64_t i, int64_t j) RISKERNELS_INLINE_LAMBDA {
        pred.prefetch(i, j);
        samp.prefetch(i, j);
        prefetch_lines<1>(out + 2 * (i * n + j), n);
        prefetch_lines<1>(out + 2 * (j * n + i), n);
      },
      [](auto, auto&&...) RISKERNELS_INLINE_LAMBDA {});
}

// c H - (c / trace) Re<H, P> I with c = `coefficient`; the sum is over c H.
template <typename T>
void gradient_scene(const HermitianPart<T>& grad, const HermitianPart<T>& pred, int64_t n,
                    double coefficient, double trace, T* out) {
  using S = Simd<T>;
  using M = Tile<T>;
  const T half = static_cast<T>(coefficient / 2);
  const auto g = M::signs(half, grad.im * half);
  // The Hermitian part of pred pairs with H alike from both triangles.
  const auto p = M::signs(T(1), pred.im);
  // Sums in the working precision, moved to double every few vectors.
  double inner = 0;
  typename S::V sum{};
  if (streamable(grad, pred, n)) {
    const int64_t length = 2 * n * n;
    constexpr int64_t kFlush = 64 * S::W;
    int64_t k = 0;
    for (; k + S::W <= length; k += S::W) S::store(out + k, g * S::load(grad.data + k));
    for (; k < length; ++k) out[k] = g[k % 2] * grad.data[k];
    add_conjugate_transpose(n, T(0), out);
    const int64_t vectors = length / S::W * S::W;
    for (k = 0; k < vectors;) {
      const int64_t end = vectors - k < kFlush ? vectors : k + kFlush;
      typename S::V even{}, odd{};
      for (; k + 2 * S::W <= end; k += 2 * S::W) {
        even += S::load(out + k) * S::load(pred.data + k);
        odd += S::load(out + k + S::W) * S::load(pred.data + k + S::W);
      }
      for (; k < end; k += S::W) even += S::load(out + k) * S::load(pred.data + k);
      inner += S::sum(p * (even + odd));
    }
    for (; k < length; ++k) inner += p[k % 2] * out[k] * pred.data[k];
  } else {
    int pending = 0;
    add_conjugate_transpose<T>(
        n, grad.column == 1 && pred.column == 1, T(0), out,
        [&](auto whole, auto... place) RISKERNELS_INLINE_LAMBDA {
          M tile = grad.template tile<decltype(whole)::value>(place...);
#pragma GCC unroll 8
          for (int r = 0; r < M::kSize; ++r) tile.row[r] *= g;
          return tile;
        },
        [&](int64_t i, int64_t j) RISKERNELS_INLINE_LAMBDA {
          grad.prefetch(i, j);
          pred.prefetch(i, j);
          prefetch_lines<1>(out + 2 * (i * n + j), n);
          prefetch_lines<1>(out + 2 * (j * n + i), n);
        },
        [&](auto whole, const M& tile, auto... place) RISKERNELS_INLINE_LAMBDA {
          const M other = pred.template tile<decltype(whole)::value>(place...);
#pragma GCC unroll 8
          for (int r = 0; r < M::kSize; ++r) sum += tile.row[r] * other.row[r];
          if (++pending < 32) return;
          inner += S::sum(p * sum);
          sum = typename S::V{};
          pending = 0;
        });
    inner += S::sum(p * sum);
  }
  const T on_diagonal = static_cast<T>(inner / trace);
  for (int64_t i = 0; i < n; ++i) out[2 * i * (n + 1)] -= on_diagonal;
}

}  // namespace

template <typename T>
void blend_covariance(const BlendProblem<T>& problem, T* out, int64_t begin, int64_t end) {
  const int64_t n = problem.elements;
  for (int64_t b = begin; b < end; ++b) {
    const HermitianPart<T> pred(problem.pred, problem.pred_stride, b);
    const HermitianPart<T> samp(problem.samp, problem.samp_stride, b);
    const auto coefficients = blend_coefficients(pred.trace(n), samp.trace(n), n, problem.options);
    blend_scene(pred, samp, n, coefficients, out + 2 * b * n * n);
  }
}

template <typename T>
void blend_covariance_backward(const BlendProblem<T>& problem, const IncomingGradient<T>& incoming,
                               T* grad_pred, int64_t begin, int64_t end) {
  const int64_t n = problem.elements;
  for (int64_t b = begin; b < end; ++b) {
    const HermitianPart<T> grad(incoming.data, incoming.stride, b);
    const HermitianPart<T> pred(problem.pred, problem.pred_stride, b);
    const HermitianPart<T> samp(problem.samp, problem.samp_stride, b);
    T* const out = grad_pred + 2 * b * n * n;
    const double trace = pred.trace(n);
    if (trace <= 0) {
      __builtin_memset(out, 0, static_cast<std::size_t>(2 * n * n) * sizeof(T));
      continue;
    }
    const auto coefficients = blend_coefficients(trace, samp.trace(n), n, problem.options);
    gradient_scene(grad, pred, n, coefficients.pred, trace, out);
  }
}

template void blend_covariance<float>(const BlendProblem<float>&, float*, int64_t, int64_t);
template void blend_covariance<double>(const BlendProblem<double>&, double*, int64_t, int64_t);
template void blend_covariance_backward<float>(const BlendProblem<float>&,
                                               const IncomingGradient<float>&, float*, int64_t,
                                               int64_t);
template void blend_covariance_backward<double>(const BlendProblem<double>&,
                                                const IncomingGradient<double>&, double*, int64_t,
                                                int64_t);

}  // namespace riskernels::RISKERNELS_ISA
