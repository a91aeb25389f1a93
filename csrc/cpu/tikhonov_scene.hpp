// SPDX-License-Identifier: Apache-2.0
// One scene of a Tikhonov operator: a_l = Phi_l^H z_l with z_l = (Phi_l Phi_l^H + alpha_l I)^{-1}
// y_l, for all snapshots l at once. Snapshots fill the vector lanes of the factorisation and of
// the solves; elements fill them everywhere else.
#pragma once

#include "../common/tikhonov_problem.hpp"
#include "carver.hpp"
#include "cholesky_lanes.hpp"

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
  static constexpr int64_t kTile = 3 * W;  // edge of a covariance tile; rows are padded to it

  TikhonovScene(const TikhonovProblem<T>& problem, Carver& carver)
      : p(problem),
        m(problem.antennas),
        n(problem.elements),
        snapshots(problem.snapshots),
        n_pad(round_up(n, kTile)),
        l_pad(round_up(snapshots, W)),
        h(take_planar<T>(carver, m, n_pad)),
        codes(take_planar<T>(carver, snapshots, n_pad)),
        a(take_planar<T>(carver, snapshots, n_pad)),
        z(take_planar<T>(carver, m, l_pad)),
        weights(carver.take<T>(snapshots * n_pad)),
        loading(carver.take<T>(l_pad)),
        weights_by_element_(carver.take<T>(n_pad * l_pad)),
        products_(take_planar<T>(carver, m, n_pad)),
        factor_(take_planar<T>(carver, m * m, l_pad)) {
    factor_.column = l_pad;
    factor_.row = m * l_pad;
  }

  // Everything up to the estimates of scene b: h, codes, z, a.
  void estimate(int64_t b) {
    scene_ = b;
    load_codes();
    if (!p.h_per_snapshot) load_channel(0);
    load_lanes(p.y + 2 * b * p.y_stride[0], p.y_stride[1], p.y_stride[2], z);
    shared_ = !p.h_per_snapshot && weights_agree();
    factor();
    solve(z);
    back_project(z, a);
    multiply_by_conjugate_codes(a);
  }

  // In place: right-hand sides [M, lanes] -> S_l^{-1} of each.
  void solve(Planar<T> rhs) const {
    for (int64_t g = 0; g < l_pad; g += W) {
      if (shared_)
        solve_lanes<T, true>(m, view(factor_), rhs.at(0, g));
      else
        solve_lanes<T, false>(m, view(factor_.at_lane(g)), rhs.at(0, g));
    }
  }

  // out(l, n) = sum_m rhs(m, l) conj(H_l(m, n))
  void back_project(Planar<T> rhs, Planar<T> out) {
    const Planar<const T> by_snapshot{rhs.re, rhs.im, 1, rhs.row};
    if (!p.h_per_snapshot) {
      gemm_conj<T>(snapshots, n_pad, m, by_snapshot, view(h), out);
      return;
    }
    for (int64_t l = 0; l < snapshots; ++l) {
      load_channel(l);
      gemm_conj<T>(1, n_pad, m, by_snapshot.at(l, 0), view(h), out.at(l, 0));
    }
  }

  void multiply_by_conjugate_codes(Planar<T> x) const {
    for (int64_t i = 0; i < snapshots * n_pad; i += W) {
      const auto c_re = S::load(codes.re + i), c_im = S::load(codes.im + i);
      const auto re = S::load(x.re + i), im = S::load(x.im + i);
      S::store(x.re + i, re * c_re + im * c_im);
      S::store(x.im + i, im * c_re - re * c_im);
    }
  }

  void scale(Planar<T> x, T factor) const {
    const auto s = S::splat(factor);
    for (int64_t i = 0; i < snapshots * n_pad; i += W) {
      S::store(x.re + i, S::load(x.re + i) * s);
      S::store(x.im + i, S::load(x.im + i) * s);
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
    for (int64_t i = 0; i < m; ++i)
      load_padded(base + 2 * i * p.h_stride[2], p.h_stride[3], h.re + i * n_pad, h.im + i * n_pad);
  }

  const TikhonovProblem<T>& p;
  const int64_t m, n, snapshots, n_pad, l_pad;
  const Planar<T> h;      // [M, n_pad]
  const Planar<T> codes;  // [L, n_pad]
  const Planar<T> a;      // [L, n_pad]
  const Planar<T> z;      // [M, l_pad]
  T* const weights;       // [L, n_pad] |c|^2
  T* const loading;       // [l_pad] alpha_l

 private:
  struct Factor : Planar<T> {
    Factor(Planar<T> planar) : Planar<T>(planar) {}
    Planar<T> at_lane(int64_t g) const {
      return {this->re + g, this->im + g, this->row, this->column};
    }
  };

  void load_padded(const T* row, int64_t stride, T* re, T* im) const {
    load_row(row, stride, n, re, im);
    for (int64_t i = n; i < n_pad; ++i) re[i] = im[i] = T(0);
  }

  void load_codes() {
    const T* base = p.codes + 2 * scene_ * p.codes_stride[0];
    for (int64_t l = 0; l < snapshots; ++l) {
      const auto row = codes.at(l, 0);
      load_padded(base + 2 * l * p.codes_stride[1], p.codes_stride[2], row.re, row.im);
      for (int64_t i = 0; i < n_pad; i += W) {
        const auto re = S::load(row.re + i), im = S::load(row.im + i);
        S::store(weights + l * n_pad + i, re * re + im * im);
      }
    }
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

  // Whether |c_ln|^2 is the same for all l up to the rounding of the codes themselves; the mean
  // over l then replaces it, in row 0 of the weights. NaN never agrees.
  bool weights_agree() {
    const T tolerance = T(16) * S::kEpsilon;
    typename S::I disagree{};
    for (int64_t l = 1; l < snapshots; ++l) {
      for (int64_t i = 0; i < n_pad; i += W) {
        const auto first = S::load(weights + i);
        const auto difference = S::load(weights + l * n_pad + i) - first;
        const auto bound = first * tolerance;
        disagree |= ~((difference <= bound) & (-difference <= bound));
      }
    }
    for (int w = 0; w < W; ++w)
      if (disagree[w] != 0) return false;
    const auto scale = S::splat(T(1) / static_cast<T>(snapshots));
    for (int64_t i = 0; i < n_pad; i += W) {
      auto mean = S::load(weights + i);
      for (int64_t l = 1; l < snapshots; ++l) mean += S::load(weights + l * n_pad + i);
      S::store(weights + i, mean * scale);
    }
    return true;
  }

  void factor() {
    if (shared_) {
      gram_of_snapshot(0, 0);
      load_diagonal(0);
      spread_lane_zero();
      cholesky_lanes<T>(m, factor_, loading);
      return;
    }
    if (p.h_per_snapshot) {
      for (int64_t l = 0; l < snapshots; ++l) {
        load_channel(l);
        gram_of_snapshot(l, l);
      }
    } else {
      gram_of_all_snapshots();
    }
    for (int64_t l = 0; l < snapshots; ++l) load_diagonal(l);
    for (int64_t l = snapshots; l < l_pad; ++l) load_identity(l);
    for (int64_t g = 0; g < l_pad; g += W) cholesky_lanes<T>(m, factor_.at_lane(g), loading + g);
  }

  // Lower triangle of H diag(weights_l) H^H into one lane of the factor.
  void gram_of_snapshot(int64_t l, int64_t lane) {
    const T* w = weights + l * n_pad;
    T* const row_re = products_.re;
    T* const row_im = products_.im;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t k = 0; k < n_pad; k += W) {
        S::store(row_re + k, S::load(h.re + i * n_pad + k) * S::load(w + k));
        S::store(row_im + k, S::load(h.im + i * n_pad + k) * S::load(w + k));
      }
      const auto out = factor_.at_lane(lane).at(i, 0);
      dot_conj<T>(i + 1, n_pad, row_re, row_im, view(h), out.re, out.im, factor_.column);
    }
  }

  // The same for all snapshots that share H: products H_i conj(H_j) once, then one real-weighted
  // sum per lane.
  void gram_of_all_snapshots() {
    for (int64_t k = 0; k < n_pad; ++k)
      for (int64_t l = 0; l < l_pad; ++l)
        weights_by_element_[k * l_pad + l] = l < snapshots ? weights[l * n_pad + k] : T(0);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        for (int64_t k = 0; k < n_pad; k += W) {
          const auto x_re = S::load(h.re + i * n_pad + k), x_im = S::load(h.im + i * n_pad + k);
          const auto y_re = S::load(h.re + j * n_pad + k), y_im = S::load(h.im + j * n_pad + k);
          S::store(products_.re + j * n_pad + k, x_re * y_re + x_im * y_im);
          S::store(products_.im + j * n_pad + k, x_im * y_re - x_re * y_im);
        }
      }
      for (int64_t g = 0; g < l_pad; g += W) {
        auto out = factor_.at_lane(g).at(i, 0);
        out.row = factor_.column;
        gemm_weights<T>(i + 1, n_pad, view(products_), weights_by_element_ + g, l_pad, out);
      }
    }
  }

  // Sets loading[l] and adds it to the diagonal of lane l.
  void load_diagonal(int64_t l) {
    const auto lane = factor_.at_lane(l);
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

  void spread_lane_zero() {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        const auto entry = factor_.at(i, j);
        S::store(entry.re, S::splat(*entry.re));
        S::store(entry.im, S::splat(*entry.im));
      }
    for (int64_t l = 1; l < l_pad; ++l) loading[l] = loading[0];
  }

  T* const weights_by_element_;  // [n_pad, l_pad]
  const Planar<T> products_;     // [M, n_pad]
  Factor factor_;                // [M, M] of l_pad lanes
  int64_t scene_ = 0;
  bool shared_ = false;
};

}  // namespace riskernels::RISKERNELS_ISA
