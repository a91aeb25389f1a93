// SPDX-License-Identifier: Apache-2.0
// From g_l = dL/da_l of one scene to the gradients of its inputs. With x_l = H^H z_l,
// w_l = S_l^{-1} Phi_l g_l and v_l = H^H w_l:
//   dL/dy = w
//   dL/dc = conj(g) x - 2 c Re(conj(v) x)
//   dL/dH = sum_l z_l t_l^H - w_l s_l^H, t = c g - |c|^2 v, s = |c|^2 x
// which is dL/dPhi_l = z_l q_l^H - w_l a_l^H with q_l = g_l - Phi_l^H w_l (see the reference), put
// into the products with c_l.
#pragma once

#include "gauss_products.hpp"
#include "tikhonov_scene.hpp"

namespace riskernels::RISKERNELS_ISA {

template <typename T>
class TikhonovGradient {
 public:
  using S = Simd<T>;
  static constexpr int W = S::W;

  TikhonovGradient(TikhonovScene<T>& scene, Carver& carver)
      : grad_a(take_planar<T>(carver, scene.snapshots, scene.n_pad)),
        s(scene),
        by_element_(take_planar<T>(carver, scene.n_pad, scene.l_pad)),
        by_element_sum_(carver.take<T>(scene.n_pad * scene.l_pad)),
        w_(take_planar<T>(carver, scene.m, scene.l_pad)),
        h_sum_(carver.take<T>(scene.m * scene.n_pad)),
        zw_re_(carver.take<T>(scene.m * 2 * scene.l_pad)),
        zw_sum_(carver.take<T>(scene.m * 2 * scene.l_pad)),
        zw_difference_(carver.take<T>(scene.m * 2 * scene.l_pad)),
        panel_(take_planar<T>(carver, 2 * scene.snapshots, kPanel)),
        panel_difference_(carver.take<T>(2 * scene.snapshots * kPanel)),
        channel_(take_planar<T>(carver, scene.m, kPanel)),
        loading_term_(carver.take<T>(scene.l_pad)) {}

  // Snapshots in the vector lanes: f(l, n, re, im), which gives one vector of elements of snapshot
  // l, to a right factor [n_pad, l_pad].
  template <typename F>
  RISKERNELS_INLINE RightPlanes<T> by_element(const F& f) const {
    for (int64_t l = 0; l < s.l_pad; l += W)
      for (int64_t i = 0; i < s.n_pad; i += W) {
        typename S::V re[W], im[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          re[r] = im[r] = typename S::V{};
          if (l + r < s.snapshots) f(l + r, i, re[r], im[r]);
        }
        transpose_vectors<T>(re);
        transpose_vectors<T>(im);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          const int64_t to = (i + r) * s.l_pad + l;
          S::store(by_element_.re + to, re[r]);
          S::store(by_element_.im + to, im[r]);
          S::store(by_element_sum_ + to, re[r] + im[r]);
        }
      }
    return {by_element_.re, by_element_.im, by_element_sum_, s.l_pad};
  }

  // grad_a from its transpose [n_pad, l_pad].
  void take_by_element(const Planar<T>& from) const {
    const auto transpose = [this](const T* source, T* target) {
      for (int64_t i = 0; i < s.n_pad; i += W)
        for (int64_t l = 0; l < s.l_pad; l += W) {
          typename S::V rows[W];
#pragma GCC unroll 16
          for (int r = 0; r < W; ++r) rows[r] = S::load(source + (i + r) * s.l_pad + l);
          transpose_vectors<T>(rows);
#pragma GCC unroll 16
          for (int r = 0; r < W; ++r)
            if (l + r < s.snapshots) S::store(target + (l + r) * s.n_pad + i, rows[r]);
        }
    };
    transpose(from.re, grad_a.re);
    transpose(from.im, grad_a.im);
  }

  // Uses grad_a and the back-projections of scene b.
  void finish(int64_t b, const TikhonovGradients<T>& out) {
    project();
    s.solve(w_);
    if (out.y != nullptr) write_y(out.y + 2 * b * s.snapshots * s.m);
    if (out.h == nullptr && out.codes == nullptr) return;
    relative_terms();
    pack_solutions();
    T* const codes = out.codes == nullptr ? nullptr : out.codes + 2 * b * s.snapshots * s.n;
    if (!s.p.h_per_snapshot) {
      next_ = b + 1 < s.p.scenes ? b + 1 : b;
      write(0, s.snapshots, out.h == nullptr ? nullptr : out.h + 2 * b * s.m * s.n, codes);
      return;
    }
    for (int64_t l = 0; l < s.snapshots; ++l) {
      s.load_channel(l);
      T* const h = out.h == nullptr ? nullptr : out.h + 2 * (b * s.snapshots + l) * s.m * s.n;
      write(l, 1, h, codes);
    }
  }

  const Planar<T> grad_a;  // [L, n_pad] dL/da, filled by the caller; 0 from column N on

 private:
  // Columns that are written at a time. Of 32 registers the products use all with three vectors; of
  // 16 they do so with one, which leaves the first-level cache to their factors.
  static constexpr int64_t kPanel = (RISKERNELS_VECTOR_BYTES == 64 ? 3 : 1) * W;

  // w = Phi g, ready for the solve.
  void project() {
    const auto scaled = [this](int64_t l, int64_t i, auto& re, auto& im) RISKERNELS_INLINE_LAMBDA {
      const auto c = s.codes.at(l, i), g = grad_a.at(l, i);
      const auto c_re = S::load(c.re), c_im = S::load(c.im);
      const auto g_re = S::load(g.re), g_im = S::load(g.im);
      re = c_re * g_re - c_im * g_im;
      im = c_re * g_im + c_im * g_re;
    };
    if (!s.p.h_per_snapshot) {
      for (int64_t i = 0; i < s.m * s.n_pad; i += W)
        S::store(h_sum_ + i, S::load(s.h.re + i) + S::load(s.h.im + i));
      const LeftPlanes<T> h{s.h.re, h_sum_, s.h_difference, s.n_pad, 1};
      gauss_product<Conjugate::none>(s.m, s.l_pad / W, s.n, h, by_element(scaled), w_);
      return;
    }
    for (int64_t i = 0; i < s.m * s.l_pad; ++i) w_.re[i] = w_.im[i] = T(0);
    for (int64_t l = 0; l < s.snapshots; ++l) {
      s.load_channel(l);
      for (int64_t i = 0; i < s.n_pad; i += W) {
        typename S::V re, im;
        scaled(l, i, re, im);
        S::store(by_element_.re + i, re);
        S::store(by_element_.im + i, -im);
      }
      const auto w = w_.at(0, l);
      dot_conj<T>(s.m, s.n_pad, by_element_.re, by_element_.im, view(s.h), w.re, w.im, s.l_pad);
      for (int64_t i = 0; i < s.m; ++i) w.im[i * s.l_pad] = -w.im[i * s.l_pad];
    }
  }

  // loading_term(l) = 2 (alpha / N) dL/dalpha_l, dL/dalpha_l = -Re(w_l^H z_l); only `relative` asks
  // for it.
  void relative_terms() {
    if (!s.p.relative) return;
    const auto scale = S::splat(T(-2) * static_cast<T>(s.p.alpha) / static_cast<T>(s.n));
    for (int64_t l = 0; l < s.l_pad; l += W) {
      auto inner = typename S::V{};
      for (int64_t i = l; i < s.m * s.l_pad; i += s.l_pad)
        inner +=
            S::load(w_.re + i) * S::load(s.z.re + i) + S::load(w_.im + i) * S::load(s.z.im + i);
      S::store(loading_term_ + l, scale * inner);
    }
  }

  void write_y(T* out) const {
    for (int64_t l = 0; l < s.snapshots; ++l)
      for (int64_t i = 0; i < s.m; ++i) {
        out[2 * (l * s.m + i)] = w_.re[i * s.l_pad + l];
        out[2 * (l * s.m + i) + 1] = w_.im[i * s.l_pad + l];
      }
  }

  // Columns z_0 w_0 z_1 w_1 ... of one left factor [M, 2 l_pad].
  void pack_solutions() const {
    for (int64_t i = 0; i < s.m * s.l_pad; i += W) {
      typename S::V re[2], im[2];
      S::interleave(S::load(s.z.re + i), S::load(w_.re + i), re[0], re[1]);
      S::interleave(S::load(s.z.im + i), S::load(w_.im + i), im[0], im[1]);
      for (int half = 0; half < 2; ++half) {
        const int64_t to = 2 * i + half * W;
        S::store(zw_re_ + to, re[half]);
        S::store(zw_sum_ + to, re[half] + im[half]);
        S::store(zw_difference_ + to, re[half] - im[half]);
      }
    }
  }

  // Gradients to the codes of `count` snapshots from `first` on, which share the channel in s.h,
  // and to that channel; a panel of columns at a time, which stays in the first-level cache.
  void write(int64_t first, int64_t count, T* h, T* codes) {
    const LeftPlanes<T> zw =
        LeftPlanes<T>{zw_re_, zw_sum_, zw_difference_, 2 * s.l_pad, 1}.at(0, 2 * first);
    const LeftPlanes<T> by_w{zw.re + 1, zw.sum + 1, zw.difference + 1, 2, zw.row};
    const RightPlanes<T> right{panel_.re, panel_.im, panel_difference_, kPanel};
    const Planar<T> v{panel_.re + kPanel, panel_.im + kPanel, 2 * kPanel};
    const bool shared = !s.p.h_per_snapshot;
    for (int64_t i = 0; i < s.n; i += kPanel) {
      const int64_t columns = s.n - i < kPanel ? s.n - i : kPanel;
      const int64_t vectors = (columns + W - 1) / W;
      const RightPlanes<T> channel{s.h.re + i, s.h.im + i, s.h_difference + i, s.n_pad};
      if (codes != nullptr) prefetch(codes + 2 * (first * s.n + i), s.n, count, columns);
      if (shared && s.p.h_stride[3] == 1)
        prefetch(s.p.h + 2 * (next_ * s.p.h_stride[0] + i), s.p.h_stride[2], s.m, columns);
      gauss_product<Conjugate::right>(count, vectors, s.m, by_w, channel, v);
      if (h != nullptr) prefetch(h + 2 * i, s.n, s.m, columns);
      if (s.p.relative && codes != nullptr) channel_energy(i, columns);
      if (h == nullptr)
        write_elements<true, false>(first, count, i, columns, codes);
      else if (codes == nullptr)
        write_elements<false, true>(first, count, i, columns, codes);
      else
        write_elements<true, true>(first, count, i, columns, codes);
      if (shared && s.p.codes_stride[2] == 1)
        prefetch(s.p.codes + 2 * (next_ * s.p.codes_stride[0] + i), s.p.codes_stride[1], count,
                 columns);
      if (h == nullptr) continue;
      gauss_product<Conjugate::right>(s.m, vectors, 2 * count, zw, right, channel_);
      if (s.p.relative) add_loading(first, count, i, columns);
      for (int64_t r = 0; r < s.m; ++r) {
        const auto row = channel_.at(r, 0);
        store_row(h + 2 * (r * s.n + i), columns, row.re, row.im);
      }
    }
  }

  // Asks for rows of `columns` complex numbers, `row` of them apart: too short for hardware to
  // foresee the next.
  static RISKERNELS_INLINE void prefetch(const T* from, int64_t row, int64_t rows,
                                         int64_t columns) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t r = 0; r < rows; ++r, from += 2 * row)
      for (int64_t k = 0; k < 2 * columns; k += kLine) __builtin_prefetch(from + k);
  }

  // For a panel whose odd rows hold the v_l. With Codes, writes dL/dc. With Channel, puts t_l and
  // -s_l = -|c|^2 x_l into the panel, in the places of z_l and w_l; the latter is that of v_l.
  template <bool Codes, bool Channel>
  void write_elements(int64_t first, int64_t count, int64_t column, int64_t columns, T* out) const {
    for (int64_t l = first; l < first + count; ++l) {
      const auto t = panel_.at(2 * (l - first), 0), v = panel_.at(2 * (l - first) + 1, 0);
      T* const t_difference = panel_difference_ + 2 * (l - first) * kPanel;
      const auto g = grad_a.at(l, column), c = s.codes.at(l, column), x = s.x.at(l, column);
      alignas(RISKERNELS_VECTOR_BYTES) T row_re[kPanel], row_im[kPanel];
      for (int64_t k = 0; k < columns; k += W) {
        const auto c_re = S::load(c.re + k), c_im = S::load(c.im + k);
        const auto g_re = S::load(g.re + k), g_im = S::load(g.im + k);
        const auto x_re = S::load(x.re + k), x_im = S::load(x.im + k);
        const auto v_re = S::load(v.re + k), v_im = S::load(v.im + k);
        if constexpr (Codes) {
          auto real = T(-2) * (v_re * x_re + v_im * x_im);
          if (s.p.relative) real += S::splat(loading_term_[l]) * S::load(energy_ + k);
          S::store(row_re + k, g_re * x_re + g_im * x_im + real * c_re);
          S::store(row_im + k, g_re * x_im - g_im * x_re + real * c_im);
        }
        if constexpr (Channel) {
          const auto weight = c_re * c_re + c_im * c_im;
          const auto t_re = c_re * g_re - c_im * g_im - weight * v_re;
          const auto t_im = c_re * g_im + c_im * g_re - weight * v_im;
          const auto s_re = -weight * x_re, s_im = -weight * x_im;
          S::store(t.re + k, t_re);
          S::store(t.im + k, t_im);
          S::store(t_difference + k, t_re - t_im);
          S::store(v.re + k, s_re);
          S::store(v.im + k, s_im);
          S::store(t_difference + kPanel + k, s_re - s_im);
        }
      }
      if constexpr (Codes) store_row(out + 2 * (l * s.n + column), columns, row_re, row_im);
    }
  }

  // energy(n) = sum_m |H(m, n)|^2 of a panel; only `relative` asks for it.
  void channel_energy(int64_t column, int64_t columns) {
    for (int64_t k = 0; k < columns; k += W) {
      auto energy = typename S::V{};
      for (int64_t i = 0; i < s.m; ++i) {
        const auto h = s.h.at(i, column + k);
        const auto re = S::load(h.re), im = S::load(h.im);
        energy += re * re + im * im;
      }
      S::store(energy_ + k, energy);
    }
  }

  // Adds 2 (alpha / N) sum_l dL/dalpha_l |c_l|^2 H to a panel of the channel's gradient.
  void add_loading(int64_t first, int64_t count, int64_t column, int64_t columns) const {
    for (int64_t k = 0; k < columns; k += W) {
      auto weight = typename S::V{};
      for (int64_t l = first; l < first + count; ++l) {
        const auto c = s.codes.at(l, column + k);
        const auto re = S::load(c.re), im = S::load(c.im);
        weight += S::splat(loading_term_[l]) * (re * re + im * im);
      }
      for (int64_t i = 0; i < s.m; ++i) {
        const auto h = s.h.at(i, column + k), out = channel_.at(i, k);
        S::store(out.re, S::load(out.re) + S::load(h.re) * weight);
        S::store(out.im, S::load(out.im) + S::load(h.im) * weight);
      }
    }
  }

  TikhonovScene<T>& s;
  int64_t next_ = 0;            // scene whose inputs are asked for while one is finished
  const Planar<T> by_element_;  // [n_pad, l_pad], also a row for one snapshot
  T* const by_element_sum_;
  const Planar<T> w_;  // [M, l_pad]
  T* const h_sum_;     // [M, n_pad] re + im
  T* const zw_re_;     // [M, 2 l_pad]
  T* const zw_sum_;
  T* const zw_difference_;
  const Planar<T> panel_;  // [2 L, kPanel]
  T* const panel_difference_;
  const Planar<T> channel_;  // [M, kPanel]
  T* const loading_term_;    // [l_pad]
  alignas(RISKERNELS_VECTOR_BYTES) T energy_[kPanel];
};

}  // namespace riskernels::RISKERNELS_ISA
