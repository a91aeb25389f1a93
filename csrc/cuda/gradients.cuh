// SPDX-License-Identifier: Apache-2.0
// From g_l = dL/da_l, z_l and w_l = S_l^{-1} Phi_l g_l to the gradients of the inputs, element by
// element of the surface: with q_l = g_l - Phi_l^H w_l, dL/dPhi_l = z_l q_l^H - w_l a_l^H (see the
// reference). `terms` holds 2 (alpha / N) dL/dalpha_l, null unless the loading is relative.
#pragma once

#include "estimates.cuh"

namespace riskernels::cuda {

// terms[l] = -2 (alpha / N) Re(w_l^H z_l), a snapshot to a thread.
template <typename T, typename Solutions>
RISKERNELS_DEVICE void loading_terms(const Place& at, int m, int64_t n, double alpha, int l_begin,
                                     int l_end, const Solutions& z, const Solutions& w, T* terms) {
  const T scale = static_cast<T>(2.0 / static_cast<double>(n) * alpha);
  for (int l = l_begin + at.thread; l < l_end; l += kThreads) {
    T inner = T(0);
    for (int i = 0; i < m; ++i) {
      const Complex<T> x = w(l, i), y = z(l, i);
      inner += x.re * y.re + x.im * y.im;
    }
    terms[l] = -scale * inner;
  }
}

// g_l becomes conj(c_l q_l) and a_l becomes conj(c_l a_l), and dL/dc_l = conj(q_l) x_l - conj(a_l)
// v_l + term_l c_l sum_m |H_l(m, .)|^2 is written, with x = H^H z and v = H^H w before the codes.
// `out` is null where it is not needed.
template <int R, typename T, typename Channel, typename Codes, typename Estimates,
          typename Gradients, typename Solutions>
RISKERNELS_DEVICE void finish_codes(const Place& at, int m, int64_t n_begin, int64_t n_end,
                                    int64_t n_pitch, int l_begin, int l_end, const Channel& h,
                                    const Codes& codes, const Estimates& a, const Gradients& g,
                                    const Solutions& z, const Solutions& w, const T* terms,
                                    Complex<T>* out) {
  for_warp_blocks<R>(at, n_begin, n_end, l_begin, l_end, [&](int l, int count, int64_t n) {
    Complex<T> v[R], x[R];
    RISKERNELS_UNROLL
    for (int r = 0; r < R; ++r) v[r] = x[r] = Complex<T>{T(0), T(0)};
    T energy = T(0);
    auto column = h.column(l, static_cast<int>(n));
    auto second = w.template from<R>(l, count);
    auto first = z.template from<R>(l, count);
    RISKERNELS_UNROLL_BY(2)
    for (int i = 0; i < m; ++i) {
      const Complex<T> entry = column.take();
      Complex<T> wi[R], zi[R];
      second.take(wi);
      first.take(zi);
      energy += norm(entry);
      RISKERNELS_UNROLL
      for (int r = 0; r < R; ++r) {
        add_product(v[r], conj(entry), wi[r]);
        add_product(x[r], conj(entry), zi[r]);
      }
    }
    RISKERNELS_UNROLL
    for (int r = 0; r < R; ++r) {
      if (r < count) {
        const Complex<T> c = codes(l + r, n), estimate = a(l + r, n);
        const Complex<T> q = g(l + r, n) - conj(c) * v[r];
        // All that the channel's gradient takes of them.
        g.put(l + r, n, conj(c * q));
        a.put(l + r, n, conj(c * estimate));
        if (out != nullptr) {
          Complex<T> grad = conj(q) * x[r] - conj(estimate) * v[r];
          if (terms != nullptr) grad = grad + c * (terms[l + r] * energy);
          out[(l + r) * n_pitch + n] = grad;
        }
      }
    }
  });
}

// dL/dH(m, n) = sum_l z_l(m) q_l - w_l(m) a_l + term_l |c_l|^2 H(m, n) with q and a as finish_codes
// leaves them, for an H that the snapshots share; a block of 4 antennas x 32 elements to a warp.
template <typename T, typename Channel, typename Codes, typename Estimates, typename Gradients,
          typename Solutions>
RISKERNELS_DEVICE void finish_channel(const Place& at, int m, int64_t n_begin, int64_t n_end,
                                      int64_t n_pitch, int snapshots, const Channel& h,
                                      const Codes& codes, const Estimates& a, const Gradients& q,
                                      const Solutions& z, const Solutions& w, const T* terms,
                                      Complex<T>* out) {
  constexpr int R = 4;
  for_warp_blocks<R>(at, n_begin, n_end, 0, m, [&](int i, int count, int64_t n) {
    Complex<T> sum[R] = {};
    T energy = T(0);
    const auto factors = [&](int l, Complex<T>& x, Complex<T>& y) {
      x = q(l, n);
      y = a(l, n);
      if (terms != nullptr) energy += terms[l] * norm(codes(l, n));
    };
    int l = 0;
    RISKERNELS_UNROLL_BY(1)
    for (; l + 1 < snapshots; l += 2) {
      Complex<T> x[2], y[2];
      factors(l, x[0], y[0]);
      factors(l + 1, x[1], y[1]);
      RISKERNELS_UNROLL
      for (int r = 0; r < R; ++r) {
        const int row = i + minimum(r, count - 1);
        const ComplexPair<T> zs = z.two(l, row), ws = w.two(l, row);
        add_product(sum[r], zs.first, x[0]);
        subtract_product(sum[r], ws.first, y[0]);
        add_product(sum[r], zs.second, x[1]);
        subtract_product(sum[r], ws.second, y[1]);
      }
    }
    if (l < snapshots) {
      Complex<T> x, y;
      factors(l, x, y);
      RISKERNELS_UNROLL
      for (int r = 0; r < R; ++r) {
        const int row = i + minimum(r, count - 1);
        add_product(sum[r], z(l, row), x);
        subtract_product(sum[r], w(l, row), y);
      }
    }
    RISKERNELS_UNROLL
    for (int r = 0; r < R; ++r) {
      if (r < count) {
        if (terms != nullptr) sum[r] = sum[r] + h(0, i + r, static_cast<int>(n)) * energy;
        out[(i + r) * n_pitch + n] = sum[r];
      }
    }
  });
}

// The same for one channel per snapshot: no sum over l.
template <typename T, typename Channel, typename Codes, typename Estimates, typename Gradients,
          typename Solutions>
RISKERNELS_DEVICE void finish_channels(const Place& at, int m, int64_t n_begin, int64_t n_end,
                                       int64_t n_pitch, int l_begin, int l_end, const Channel& h,
                                       const Codes& codes, const Estimates& a, const Gradients& q,
                                       const Solutions& z, const Solutions& w, const T* terms,
                                       Complex<T>* out) {
  for_warp_blocks<1>(at, n_begin, n_end, l_begin, l_end, [&](int l, int, int64_t n) {
    const Complex<T> x = q(l, n), y = a(l, n);
    const T weight = terms != nullptr ? terms[l] * norm(codes(l, n)) : T(0);
    for (int i = 0; i < m; ++i) {
      Complex<T> grad = z(l, i) * x;
      subtract_product(grad, w(l, i), y);
      if (terms != nullptr) grad = grad + h(l, i, static_cast<int>(n)) * weight;
      out[(static_cast<int64_t>(l) * m + i) * n_pitch + n] = grad;
    }
  });
}

}  // namespace riskernels::cuda
