// SPDX-License-Identifier: Apache-2.0
// One scene of a Tikhonov operator: a_l = Phi_l^H z_l with z_l = (Phi_l Phi_l^H + alpha_l I)^{-1}
// y_l, for all snapshots l at once. Snapshots fill the vector lanes of the factorisation and of
// the solves; elements fill them everywhere else.
#pragma once

#include "../common/tikhonov_problem.hpp"
#include "carver.hpp"
#include "cholesky_lanes.hpp"
#include "gauss_products.hpp"
#include "gram_lanes.hpp"

namespace riskernels::RISKERNELS_ISA {

// Two arrays of rows, for real and imaginary parts.
template <typename T>
Planar<T> take_planar(Carver& carver, int64_t rows, int64_t row) {
  T* re = carver.take<T>(rows * row);
  return {re, carver.take<T>(rows * row), row};
}

template <typename T>
RISKERNELS_INLINE Planar<const T> view(const Planar<T>& p) {
  return {p.re, p.im, p.row, p.column};
}

template <typename T>
class TikhonovScene {
 public:
  using S = Simd<T>;
  static constexpr int W = S::W;
  // Columns of x that are computed at a time, to be used while they are in the first-level cache.
  static constexpr int64_t kPanel = 6 * W;

  TikhonovScene(const TikhonovProblem<T>& problem, Carver& carver)
      : p(problem),
        m(problem.antennas),
        n(problem.elements),
        snapshots(problem.snapshots),
        n_pad(padded_row(n)),
        l_pad(round_up(snapshots, W)),
        m_pad(round_up(m, W)),
        h(take_planar<T>(carver, m, n_pad)),
        codes(take_planar<T>(carver, snapshots, n_pad)),
        x(take_planar<T>(carver, snapshots, n_pad)),
        z(take_planar<T>(carver, m, l_pad)),
        loading(carver.take<T>(l_pad)),
        h_difference(carver.take<T>(m * n_pad)),
        z_sum_(carver.take<T>(m * l_pad)),
        z_difference_(carver.take<T>(m * l_pad)),
        weights_(carver.take<T>(n_pad)),
        weights_by_element_(carver.take<T>(n_pad * l_pad)),
        products_(carver.take<T>(GramOfPairs<T>::kRows * n_pad)),
        factor_(take_planar<T>(carver, m * m, l_pad)) {
    factor_.column = l_pad;
    factor_.row = m * l_pad;
  }

  // Everything up to the back-projections of scene b: h, codes, z, x. Calls use(j, columns) as soon
  // as these columns of x are there, all of its rows.
  template <typename F>
  void back_project(int64_t b, const F& use) {
    scene_ = b;
    load_codes();
    if (!p.h_per_snapshot) load_channel(0);
    load_lanes(p.y + 2 * b * p.y_stride[0], p.y_stride[1], p.y_stride[2], z);
    shared_ = weigh() && !p.h_per_snapshot;
    factor();
    solve(z);
    combine();
    if (p.h_per_snapshot) back_project_snapshots();
    for (int64_t j = 0; j < n_pad; j += kPanel) {
      const int64_t columns = n_pad - j < kPanel ? n_pad - j : kPanel;
      if (!p.h_per_snapshot)
        gauss_product<Conjugate::right>(snapshots, columns / W, m, by_snapshot_, channel().at(0, j),
                                        x.at(0, j));
      use(j, columns);
    }
  }

  // One vector of the estimates a = conj(c) x, row l and columns from j on.
  RISKERNELS_INLINE void estimate(int64_t l, int64_t j, typename S::V& re,
                                  typename S::V& im) const {
    const auto c = codes.at(l, j), from = x.at(l, j);
    const auto c_re = S::load(c.re), c_im = S::load(c.im);
    const auto x_re = S::load(from.re), x_im = S::load(from.im);
    re = x_re * c_re + x_im * c_im;
    im = x_im * c_re - x_re * c_im;
  }

  // Asks for columns of the codes and of the first channel of scene b, to the second-level cache.
  void prefetch_scene(int64_t b, int64_t j, int64_t columns) const {
    if (b >= p.scenes) return;
    const int64_t length = n - j < columns ? n - j : columns;
    if (p.codes_stride[2] == 1)
      prefetch_rows(p.codes + 2 * (b * p.codes_stride[0] + j), snapshots, p.codes_stride[1],
                    length);
    if (p.h_stride[3] == 1)
      prefetch_rows(p.h + 2 * (b * p.h_stride[0] + j), m, p.h_stride[2], length);
  }

  // In place: right-hand sides [M, lanes] -> S_l^{-1} of each.
  void solve(Planar<T> rhs) const {
    int64_t g = 0;
    for (; g + 2 * W <= l_pad; g += 2 * W) solve_groups<2>(rhs, g);
    if (g < l_pad) solve_groups<1>(rhs, g);
  }

  // Subtracts from every row its mean over the snapshots.
  void subtract_mean(Planar<T> rows) const {
    const auto scale = S::splat(T(1) / static_cast<T>(snapshots));
    for (T* part : {rows.re, rows.im}) {
      for (int64_t i = 0; i < n_pad; i += W) {
        auto mean = S::load(part + i);
        for (int64_t l = 1; l < snapshots; ++l) mean += S::load(part + l * rows.row + i);
        mean *= scale;
        for (int64_t l = 0; l < snapshots; ++l)
          S::store(part + l * rows.row + i, S::load(part + l * rows.row + i) - mean);
      }
    }
  }

  // The channel of snapshot l (any l where it is shared) into h.
  void load_channel(int64_t l) {
    const T* base = p.h + 2 * (scene_ * p.h_stride[0] + l * p.h_stride[1]);
    for (int64_t i = 0; i < m; ++i) {
      const auto row = h.at(i, 0);
      load_padded(base + 2 * i * p.h_stride[2], p.h_stride[3], row.re, row.im);
      for (int64_t k = 0; k < n_pad; k += W)
        S::store(h_difference + i * n_pad + k, S::load(row.re + k) - S::load(row.im + k));
    }
  }

  const TikhonovProblem<T>& p;
  const int64_t m, n, snapshots, n_pad, l_pad, m_pad;
  const Planar<T> h;      // [M, n_pad]
  const Planar<T> codes;  // [L, n_pad]
  const Planar<T> x;      // [L, n_pad] H_l^H z_l
  const Planar<T> z;      // [M, l_pad]
  T* const loading;       // [l_pad] alpha_l
  T* const h_difference;  // [M, n_pad] re - im

 private:
  // Whole vectors.
  static int64_t padded_row(int64_t n) {
    const int64_t row = round_up(n, W);
    // Rows that lie whole pages apart would compete for the same few lines of the caches.
    return row * static_cast<int64_t>(sizeof(T)) % 1024 == 0 ? row + W : row;
  }

  struct Factor : Planar<T> {
    Factor(Planar<T> planar) : Planar<T>(planar) {}
    Planar<T> at_lane(int64_t g) const {
      return {this->re + g, this->im + g, this->row, this->column};
    }
  };

  // The one factor of all snapshots, column by column.
  Planar<T> shared_factor() const { return {factor_.re, factor_.im, 1, m_pad}; }

  void load_padded(const T* row, int64_t stride, T* re, T* im) const {
    load_row(row, stride, n, re, im);
    for (int64_t i = n; i < n_pad; ++i) re[i] = im[i] = T(0);
  }

  void load_codes() {
    const T* base = p.codes + 2 * scene_ * p.codes_stride[0];
    for (int64_t l = 0; l < snapshots; ++l) {
      const auto row = codes.at(l, 0);
      load_padded(base + 2 * l * p.codes_stride[1], p.codes_stride[2], row.re, row.im);
    }
  }

  // x(l, n) = sum_m z(m, l) conj(H_l(m, n)), a channel at a time.
  void back_project_snapshots() {
    for (int64_t l = 0; l < snapshots; ++l) {
      load_channel(l);
      gauss_product<Conjugate::right>(1, n_pad / W, m, by_snapshot_.at(l, 0), channel(),
                                      x.at(l, 0));
    }
  }

  static void prefetch_rows(const T* first, int64_t rows, int64_t stride, int64_t length) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < length; k += 32 / static_cast<int64_t>(sizeof(T)))  // a line
        __builtin_prefetch(first + 2 * (i * stride + k), 0, 2);
  }

  RightPlanes<T> channel() const { return {h.re, h.im, h_difference, n_pad}; }

  // The left factor of the back-projection: z transposed, and its sums and differences.
  void combine() {
    for (int64_t i = 0; i < m * l_pad; i += W) {
      const auto re = S::load(z.re + i), im = S::load(z.im + i);
      S::store(z_sum_ + i, re + im);
      S::store(z_difference_ + i, re - im);
    }
    by_snapshot_ = {z.re, z_sum_, z_difference_, 1, l_pad};
  }

  template <int V>
  void solve_groups(Planar<T> rhs, int64_t g) const {
    if (shared_)
      solve_lanes<T, true, V>(m, view(shared_factor()), rhs.at(0, g));
    else
      solve_lanes<T, false, V>(m, view(factor_.at_lane(g)), rhs.at(0, g));
  }

  void load_lanes(const T* base, int64_t l_stride, int64_t m_stride, Planar<T> out) const {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t l = 0; l < l_pad; ++l) {
        const T* from = base + 2 * (l * l_stride + i * m_stride);
        out.re[i * l_pad + l] = l < snapshots ? from[0] : T(0);
        out.im[i * l_pad + l] = l < snapshots ? from[1] : T(0);
      }
    }
  }

  // One vector of |c_l|^2.
  RISKERNELS_INLINE typename S::V weight(int64_t l, int64_t i) const {
    const auto c = codes.at(l, i);
    const auto re = S::load(c.re), im = S::load(c.im);
    return re * re + im * im;
  }

  // Whether the weights |c|^2 are the same for all l up to the rounding of the codes themselves;
  // their mean over l is then in weights_. NaN never agrees.
  bool weigh() const {
    const auto tolerance = S::splat(T(16) * S::kEpsilon);
    const auto scale = S::splat(T(1) / static_cast<T>(snapshots));
    typename S::I disagree{};
    for (int64_t i = 0; i < n_pad; i += W) {
      const auto first = weight(0, i);
      const auto bound = first * tolerance;
      auto sum = first;
      for (int64_t l = 1; l < snapshots; ++l) {
        const auto other = weight(l, i);
        const auto difference = other - first;
        disagree |= ~((difference <= bound) & (-difference <= bound));
        sum += other;
      }
      S::store(weights_ + i, sum * scale);
    }
    bool agree = true;
    for (int w = 0; w < W; ++w) agree &= disagree[w] == 0;
    return agree;
  }

  void factor() {
    if (shared_) {
      const auto triangle = shared_factor();
      for (int64_t i = 0; i < m * m_pad; i += W) {
        S::store(triangle.re + i, typename S::V{});
        S::store(triangle.im + i, typename S::V{});
      }
      weighted_gram_of(triangle);
      load_diagonal(0, triangle);
      for (int64_t l = 1; l < l_pad; ++l) loading[l] = loading[0];
      cholesky_columns<T>(m, triangle, loading[0], z_sum_);  // which combine() fills later
      return;
    }
    if (p.h_per_snapshot) {
      for (int64_t l = 0; l < snapshots; ++l) {
        load_channel(l);
        for (int64_t i = 0; i < n_pad; i += W) S::store(weights_ + i, weight(l, i));
        weighted_gram_of(factor_.at_lane(l));
      }
    } else {
      gram_of_all_snapshots();
    }
    for (int64_t l = 0; l < snapshots; ++l) load_diagonal(l, factor_.at_lane(l));
    for (int64_t l = snapshots; l < l_pad; ++l) load_identity(l);
    for (int64_t g = 0; g < l_pad; g += W) cholesky_lanes<T>(m, factor_.at_lane(g), loading + g);
  }

  // Lower triangle of H diag(weights_) H^H.
  void weighted_gram_of(const Planar<T>& out) const {
    const Planar<T> room{products_, products_ + 2 * n_pad, n_pad};
    weighted_gram<T>(m, n_pad, view(h), weights_, room, out);
  }

  // The same for all snapshots that share H, each with its own weights.
  void gram_of_all_snapshots() const {
    for (int64_t l = 0; l < l_pad; l += W)
      for (int64_t i = 0; i < n_pad; i += W) {
        typename S::V rows[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r)
          rows[r] = l + r < snapshots ? weight(l + r, i) : typename S::V{};
        transpose_vectors<T>(rows);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) S::store(weights_by_element_ + (i + r) * l_pad + l, rows[r]);
      }
    GramOfPairs<T>{n_pad, l_pad, view(h), weights_by_element_, products_, factor_}.run(m);
  }

  // Sets loading[l] and adds it to the diagonal of lane l.
  void load_diagonal(int64_t l, const Planar<T>& lane) {
    T value = static_cast<T>(p.alpha);
    if (p.relative) {
      T trace = 0;
      for (int64_t i = 0; i < m; ++i) trace += *lane.at(i, i).re;
      value = value * (trace / static_cast<T>(n));
      // Where Phi = 0 the estimate is 0 whatever S is. Elsewhere the product may underflow.
      if (trace == T(0)) value = T(1);
      if (value < S::kSmallest) value = S::kSmallest;
    }
    loading[l] = value;
    for (int64_t i = 0; i < m; ++i) *lane.at(i, i).re += value;
  }

  // A lane past the last snapshot solves the identity.
  void load_identity(int64_t l) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        const auto entry = factor_.at_lane(l).at(i, j);
        *entry.re = i == j ? T(1) : T(0);
        *entry.im = T(0);
      }
    loading[l] = T(1);
  }

  T *const z_sum_, *const z_difference_;  // [M, l_pad]
  T* const weights_;                      // [n_pad] |c|^2 of all snapshots, or of one
  T* const weights_by_element_;           // [n_pad, l_pad]
  T* const products_;                     // rows of products of elements of H
  Factor factor_;                         // [M, M] of l_pad lanes
  LeftPlanes<T> by_snapshot_{};
  int64_t scene_ = 0;
  bool shared_ = false;
};

}  // namespace riskernels::RISKERNELS_ISA
