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
  static constexpr int64_t kTile = 3 * W;  // rows are padded to it unless told otherwise
  // Columns of a that are estimated at a time, while they stay in the first-level cache.
  static constexpr int64_t kPanel = 6 * W;

  // Rows of elements are padded to a multiple of `row_unit`, itself a multiple of W. With
  // `keep_back_projection` the back-projection outlives the estimates that are made of it.
  TikhonovScene(const TikhonovProblem<T>& problem, Carver& carver, int64_t row_unit = kTile,
                bool keep_back_projection = false)
      : p(problem),
        m(problem.antennas),
        n(problem.elements),
        snapshots(problem.snapshots),
        n_pad(padded_row(n, row_unit)),
        l_pad(round_up(snapshots, W)),
        m_pad(round_up(m, W)),
        h(take_planar<T>(carver, m, n_pad)),
        codes(take_planar<T>(carver, snapshots, n_pad)),
        a(take_planar<T>(carver, snapshots, n_pad)),
        back_projection(keep_back_projection ? take_planar<T>(carver, snapshots, n_pad) : a),
        z(take_planar<T>(carver, m, l_pad)),
        weights(carver.take<T>(snapshots * n_pad)),
        loading(carver.take<T>(l_pad)),
        h_difference(carver.take<T>(m * n_pad)),
        rhs_sum_(carver.take<T>(m * l_pad)),
        rhs_difference_(carver.take<T>(m * l_pad)),
        weights_by_element_(carver.take<T>(n_pad * l_pad)),
        products_(carver.take<T>(GramOfPairs<T>::kRows * n_pad)),
        factor_(take_planar<T>(carver, m * m, l_pad)) {
    factor_.column = l_pad;
    factor_.row = m * l_pad;
  }

  // Everything up to the estimates of scene b: h, codes, z, a.
  void estimate(int64_t b) {
    estimate(b, [](int64_t, int64_t) {});
  }

  // The same; calls use(j, columns) as soon as these columns of a are there, all of its rows.
  template <typename F>
  void estimate(int64_t b, const F& use) {
    scene_ = b;
    load_codes();
    if (!p.h_per_snapshot) load_channel(0);
    load_lanes(p.y + 2 * b * p.y_stride[0], p.y_stride[1], p.y_stride[2], z);
    shared_ = weigh() && !p.h_per_snapshot;
    factor();
    solve(z);
    if (p.h_per_snapshot)
      back_project(z, back_projection);
    else
      combine(z);
    for (int64_t j = 0; j < n_pad; j += kPanel) {
      const int64_t columns = n_pad - j < kPanel ? n_pad - j : kPanel;
      if (!p.h_per_snapshot) back_project_columns(j, columns, back_projection);
      multiply_by_conjugate_codes(j, columns);
      use(j, columns);
    }
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

  // out(l, n) = sum_m rhs(m, l) conj(H_l(m, n))
  void back_project(Planar<T> rhs, Planar<T> out) {
    combine(rhs);
    if (!p.h_per_snapshot) {
      back_project_columns(0, n_pad, out);
      return;
    }
    for (int64_t l = 0; l < snapshots; ++l) {
      load_channel(l);
      gauss_product<Conjugate::right>(1, n_pad / W, m, by_snapshot_.at(l, 0), channel(),
                                      out.at(l, 0));
    }
  }

  // Subtracts from every row its mean over the snapshots.
  void subtract_mean(Planar<T> x) const {
    const auto scale = S::splat(T(1) / static_cast<T>(snapshots));
    for (T* part : {x.re, x.im}) {
      for (int64_t i = 0; i < n_pad; i += W) {
        auto mean = S::load(part + i);
        for (int64_t l = 1; l < snapshots; ++l) mean += S::load(part + l * x.row + i);
        mean *= scale;
        for (int64_t l = 0; l < snapshots; ++l)
          S::store(part + l * x.row + i, S::load(part + l * x.row + i) - mean);
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
  const Planar<T> a;      // [L, n_pad]
  // [L, n_pad] H_l^H z_l: a before its multiplication by the conjugate codes, which takes its place
  // unless it is kept.
  const Planar<T> back_projection;
  const Planar<T> z;      // [M, l_pad]
  T* const weights;       // [L, n_pad] |c|^2
  T* const loading;       // [l_pad] alpha_l
  T* const h_difference;  // [M, n_pad] re - im

 private:
  static int64_t padded_row(int64_t n, int64_t unit) {
    const int64_t row = round_up(n, unit);
    // Rows that lie whole pages apart would compete for the same few lines of the caches.
    return row * static_cast<int64_t>(sizeof(T)) % 1024 == 0 ? row + unit : row;
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

  static void prefetch_rows(const T* first, int64_t rows, int64_t stride, int64_t length) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < length; k += 32 / static_cast<int64_t>(sizeof(T)))  // a line
        __builtin_prefetch(first + 2 * (i * stride + k), 0, 2);
  }

  RightPlanes<T> channel() const { return {h.re, h.im, h_difference, n_pad}; }

  // The left factor of a back-projection: rhs transposed, and its sums and differences.
  void combine(Planar<T> rhs) {
    for (int64_t i = 0; i < m * l_pad; i += W) {
      const auto re = S::load(rhs.re + i), im = S::load(rhs.im + i);
      S::store(rhs_sum_ + i, re + im);
      S::store(rhs_difference_ + i, re - im);
    }
    by_snapshot_ = {rhs.re, rhs_sum_, rhs_difference_, 1, l_pad};
  }

  void back_project_columns(int64_t j, int64_t columns, Planar<T> out) const {
    gauss_product<Conjugate::right>(snapshots, columns / W, m, by_snapshot_, channel().at(0, j),
                                    out.at(0, j));
  }

  void multiply_by_conjugate_codes(int64_t j, int64_t columns) const {
    const auto& x = back_projection;
    for (int64_t l = 0; l < snapshots; ++l)
      for (int64_t i = l * n_pad + j; i < l * n_pad + j + columns; i += W) {
        const auto c_re = S::load(codes.re + i), c_im = S::load(codes.im + i);
        const auto re = S::load(x.re + i), im = S::load(x.im + i);
        S::store(a.re + i, re * c_re + im * c_im);
        S::store(a.im + i, im * c_re - re * c_im);
      }
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

  // The weights |c|^2. Returns whether they are the same for all l up to the rounding of the codes
  // themselves; the mean over l then replaces them, in row 0. NaN never agrees.
  bool weigh() {
    const auto tolerance = S::splat(T(16) * S::kEpsilon);
    const auto scale = S::splat(T(1) / static_cast<T>(snapshots));
    const auto weight = [this](int64_t i) {
      const auto re = S::load(codes.re + i), im = S::load(codes.im + i);
      return re * re + im * im;
    };
    typename S::I disagree{};
    for (int64_t i = 0; i < n_pad; i += W) {
      const auto first = weight(i);
      const auto bound = first * tolerance;
      auto sum = first;
      for (int64_t l = 1; l < snapshots; ++l) {
        const auto other = weight(l * n_pad + i);
        S::store(weights + l * n_pad + i, other);
        const auto difference = other - first;
        disagree |= ~((difference <= bound) & (-difference <= bound));
        sum += other;
      }
      S::store(weights + i, sum * scale);
    }
    bool agree = true;
    for (int w = 0; w < W; ++w) agree &= disagree[w] == 0;
    for (int64_t i = 0; (!agree || p.h_per_snapshot) && i < n_pad; i += W)
      S::store(weights + i, weight(i));
    return agree;
  }

  void factor() {
    if (shared_) {
      const auto triangle = shared_factor();
      for (int64_t i = 0; i < m * m_pad; i += W) {
        S::store(triangle.re + i, typename S::V{});
        S::store(triangle.im + i, typename S::V{});
      }
      gram_of_snapshot(0, triangle);
      load_diagonal(0, triangle);
      for (int64_t l = 1; l < l_pad; ++l) loading[l] = loading[0];
      cholesky_columns<T>(m, triangle, loading[0], rhs_sum_);
      return;
    }
    if (p.h_per_snapshot) {
      for (int64_t l = 0; l < snapshots; ++l) {
        load_channel(l);
        gram_of_snapshot(l, factor_.at_lane(l));
      }
    } else {
      gram_of_all_snapshots();
    }
    for (int64_t l = 0; l < snapshots; ++l) load_diagonal(l, factor_.at_lane(l));
    for (int64_t l = snapshots; l < l_pad; ++l) load_identity(l);
    for (int64_t g = 0; g < l_pad; g += W) cholesky_lanes<T>(m, factor_.at_lane(g), loading + g);
  }

  // Lower triangle of H diag(weights_l) H^H.
  void gram_of_snapshot(int64_t l, const Planar<T>& out) {
    const Planar<T> room{products_, products_ + 2 * n_pad, n_pad};
    weighted_gram<T>(m, n_pad, view(h), weights + l * n_pad, room, out);
  }

  // The same for all snapshots that share H.
  void gram_of_all_snapshots() {
    for (int64_t k = 0; k < n_pad; ++k)
      for (int64_t l = 0; l < l_pad; ++l)
        weights_by_element_[k * l_pad + l] = l < snapshots ? weights[l * n_pad + k] : T(0);
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

  T *const rhs_sum_, *const rhs_difference_;  // [M, l_pad]
  T* const weights_by_element_;               // [n_pad, l_pad]
  T* const products_;                         // rows of products of elements of H
  Factor factor_;                             // [M, M] of l_pad lanes
  LeftPlanes<T> by_snapshot_{};
  int64_t scene_ = 0;
  bool shared_ = false;
};

}  // namespace riskernels::RISKERNELS_ISA
