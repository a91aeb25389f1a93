// SPDX-License-Identifier: Apache-2.0
// From dL/da_l of one scene to the gradients of its inputs. With w_l = S_l^{-1} Phi_l g_l and
// q_l = g_l - Phi_l^H w_l: dL/dy_l = w_l, dL/dPhi_l = z_l q_l^H - w_l a_l^H (see the reference).
#pragma once

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
        u_(take_planar<T>(carver, scene.snapshots, scene.n_pad)),
        v_(take_planar<T>(carver, scene.snapshots, scene.n_pad)),
        w_(take_planar<T>(carver, scene.m, scene.l_pad)),
        row_(take_planar<T>(carver, scene.m, scene.n_pad)),
        element_energy_(carver.take<T>(scene.n_pad)),
        loading_term_(carver.take<T>(scene.l_pad)) {}

  // Uses grad_a and the estimate of scene b.
  void finish(int64_t b, const TikhonovGradients<T>& out) {
    const auto& p = s.p;
    project();
    s.solve(w_);
    if (out.y != nullptr) write_y(out.y + 2 * b * s.snapshots * s.m);
    if (out.h == nullptr && out.codes == nullptr) return;
    relative_terms();
    s.back_project(w_, v_);  // v = H^H w, before the codes
    form_q();                // grad_a becomes q = g - conj(c) v
    if (out.codes != nullptr) write_codes(out.codes + 2 * b * s.snapshots * s.n);
    if (out.h != nullptr) {
      const int64_t size = p.h_per_snapshot ? s.snapshots * s.m * s.n : s.m * s.n;
      write_h(out.h + 2 * b * size);
    }
  }

  const Planar<T> grad_a;  // [L, n_pad] dL/da, filled by the caller

 private:
  // w(m, l) = sum_n H(m, n) conj(u(l, n)), u = conj(c g): Phi g, ready for the solve.
  void project() {
    for (int64_t i = 0; i < s.snapshots * s.n_pad; i += W) {
      const auto c_re = S::load(s.codes.re + i), c_im = S::load(s.codes.im + i);
      const auto g_re = S::load(grad_a.re + i), g_im = S::load(grad_a.im + i);
      S::store(u_.re + i, c_re * g_re - c_im * g_im);
      S::store(u_.im + i, -(c_re * g_im + c_im * g_re));
    }
    for (int64_t i = 0; i < s.m * s.l_pad; ++i) w_.re[i] = w_.im[i] = T(0);
    if (!s.p.h_per_snapshot) {
      for (int64_t i = 0; i < s.m; ++i)
        dot_conj<T>(s.snapshots, s.n_pad, s.h.re + i * s.n_pad, s.h.im + i * s.n_pad, view(u_),
                    w_.re + i * s.l_pad, w_.im + i * s.l_pad, 1);
      return;
    }
    for (int64_t l = 0; l < s.snapshots; ++l) {
      s.load_channel(l);
      for (int64_t i = 0; i < s.m; ++i)
        dot_conj<T>(1, s.n_pad, s.h.re + i * s.n_pad, s.h.im + i * s.n_pad, view(u_.at(l, 0)),
                    w_.re + i * s.l_pad + l, w_.im + i * s.l_pad + l, 1);
    }
  }

  // loading_term(l) = 2 (alpha / N) dL/dalpha_l, dL/dalpha_l = -Re(w_l^H z_l); 0 unless relative.
  void relative_terms() {
    const T scale = s.p.relative ? T(2) * static_cast<T>(s.p.alpha) / static_cast<T>(s.n) : T(0);
    for (int64_t l = 0; l < s.snapshots; ++l) {
      T inner = 0;
      for (int64_t i = l; i < s.m * s.l_pad; i += s.l_pad)
        inner += w_.re[i] * s.z.re[i] + w_.im[i] * s.z.im[i];
      loading_term_[l] = s.p.relative ? -scale * inner : T(0);
    }
  }

  void form_q() {
    for (int64_t i = 0; i < s.snapshots * s.n_pad; i += W) {
      const auto c_re = S::load(s.codes.re + i), c_im = S::load(s.codes.im + i);
      const auto v_re = S::load(v_.re + i), v_im = S::load(v_.im + i);
      S::store(grad_a.re + i, S::load(grad_a.re + i) - (v_re * c_re + v_im * c_im));
      S::store(grad_a.im + i, S::load(grad_a.im + i) - (v_im * c_re - v_re * c_im));
    }
  }

  void write_y(T* out) const {
    for (int64_t l = 0; l < s.snapshots; ++l)
      for (int64_t i = 0; i < s.m; ++i) {
        out[2 * (l * s.m + i)] = w_.re[i * s.l_pad + l];
        out[2 * (l * s.m + i) + 1] = w_.im[i * s.l_pad + l];
      }
  }

  // dL/dc = conj(q) x - conj(a) v (+ the loading term), with x = H^H z and v = H^H w.
  void write_codes(T* out) {
    s.back_project(s.z, u_);
    if (!s.p.h_per_snapshot) channel_energy();
    for (int64_t l = 0; l < s.snapshots; ++l) {
      if (s.p.h_per_snapshot) {
        s.load_channel(l);
        channel_energy();
      }
      const auto q = grad_a.at(l, 0), x = u_.at(l, 0), v = v_.at(l, 0), a = s.a.at(l, 0),
                 c = s.codes.at(l, 0);
      const auto term = S::splat(loading_term_[l]);
      for (int64_t i = 0; i < s.n_pad; i += W) {
        const auto q_re = S::load(q.re + i), q_im = S::load(q.im + i);
        const auto x_re = S::load(x.re + i), x_im = S::load(x.im + i);
        const auto a_re = S::load(a.re + i), a_im = S::load(a.im + i);
        const auto v_re = S::load(v.re + i), v_im = S::load(v.im + i);
        auto re = q_re * x_re + q_im * x_im - (a_re * v_re + a_im * v_im);
        auto im = q_re * x_im - q_im * x_re - (a_re * v_im - a_im * v_re);
        if (s.p.relative) {
          const auto energy = term * S::load(element_energy_ + i);
          re += energy * S::load(c.re + i);
          im += energy * S::load(c.im + i);
        }
        S::store(row_.re + i, re);
        S::store(row_.im + i, im);
      }
      store_row(out + 2 * l * s.n, s.n, row_.re, row_.im);
    }
  }

  // dL/dH = dL/dPhi conj(c), summed over the snapshots that share H. Here q and a are turned into
  // c q and -c a, so that both terms are products with a conjugated second factor.
  void write_h(T* out) {
    for (int64_t i = 0; i < s.snapshots * s.n_pad; i += W) {
      const auto c_re = S::load(s.codes.re + i), c_im = S::load(s.codes.im + i);
      const auto q_re = S::load(grad_a.re + i), q_im = S::load(grad_a.im + i);
      const auto a_re = S::load(s.a.re + i), a_im = S::load(s.a.im + i);
      S::store(grad_a.re + i, c_re * q_re - c_im * q_im);
      S::store(grad_a.im + i, c_re * q_im + c_im * q_re);
      S::store(v_.re + i, c_im * a_im - c_re * a_re);
      S::store(v_.im + i, -(c_re * a_im + c_im * a_re));
    }
    if (!s.p.h_per_snapshot) {
      gemm_conj<T>(s.m, s.n_pad, s.snapshots, view(s.z), view(grad_a), row_);
      gemm_conj<T>(s.m, s.n_pad, s.snapshots, view(w_), view(v_), row_, true);
      for (int64_t i = 0; s.p.relative && i < s.n_pad; ++i) {
        element_energy_[i] = T(0);
        for (int64_t l = 0; l < s.snapshots; ++l)
          element_energy_[i] += loading_term_[l] * code_energy(l, i);
      }
      write_channel(out);
      return;
    }
    for (int64_t l = 0; l < s.snapshots; ++l) {
      s.load_channel(l);
      gemm_conj<T>(s.m, s.n_pad, 1, view(s.z.at(0, l)), view(grad_a.at(l, 0)), row_);
      gemm_conj<T>(s.m, s.n_pad, 1, view(w_.at(0, l)), view(v_.at(l, 0)), row_, true);
      for (int64_t i = 0; s.p.relative && i < s.n_pad; ++i)
        element_energy_[i] = loading_term_[l] * code_energy(l, i);
      write_channel(out + 2 * l * s.m * s.n);
    }
  }

  // row_ (+ H times the weights in element_energy_, where relative) to a contiguous [M, N].
  void write_channel(T* out) {
    for (int64_t i = 0; i < s.m; ++i) {
      T* const re = row_.re + i * s.n_pad;
      T* const im = row_.im + i * s.n_pad;
      for (int64_t k = 0; s.p.relative && k < s.n_pad; ++k) {
        re[k] += s.h.re[i * s.n_pad + k] * element_energy_[k];
        im[k] += s.h.im[i * s.n_pad + k] * element_energy_[k];
      }
      store_row(out + 2 * i * s.n, s.n, re, im);
    }
  }

  T code_energy(int64_t l, int64_t i) const {
    const auto c = s.codes.at(l, i);
    return *c.re * *c.re + *c.im * *c.im;
  }

  // element_energy(n) = sum_m |H(m, n)|^2
  void channel_energy() {
    for (int64_t k = 0; k < s.n_pad; k += W) {
      auto energy = typename S::V{};
      for (int64_t i = 0; i < s.m; ++i) {
        const auto re = S::load(s.h.re + i * s.n_pad + k), im = S::load(s.h.im + i * s.n_pad + k);
        energy += re * re + im * im;
      }
      S::store(element_energy_ + k, energy);
    }
  }

  TikhonovScene<T>& s;
  const Planar<T> u_, v_;  // [L, n_pad]
  const Planar<T> w_;      // [M, l_pad]
  const Planar<T> row_;    // [M, n_pad]
  T* const element_energy_;
  T* const loading_term_;
};

}  // namespace riskernels::RISKERNELS_ISA
