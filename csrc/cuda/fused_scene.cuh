// SPDX-License-Identifier: Apache-2.0
// One scene in the shared memory of one block: the Tikhonov estimates of all its snapshots, and
// from their gradient the gradients of the inputs. For scenes of few antennas that fit.
//
// Snapshots go in groups. Where one matrix S serves all of them (H shared and |c_ln|^2 independent
// of l, found out by the block itself), the group is the scene; elsewhere it is as many snapshots
// as there is room for matrices.
#pragma once

#include <type_traits>

#include "elimination.cuh"
#include "gradients.cuh"

namespace riskernels::cuda {

// Snapshots that share H and are factored together: what one load of solutions takes.
constexpr int kGroup = 4;

// Where a scene's arrays lie in shared memory, and their sizes; made by the host and read from the
// kernel's parameters, so that it takes no registers.
template <typename T>
struct FusedLayout {
  int m, n, snapshots, group, pitch, l_pitch, s_pitch;
  int a_offset, h_offset, s_offset, z_offset, weights_offset, grad_offset, w_offset, terms_offset;
  int64_t bytes;

  // `group` snapshots have matrices and, where H is not shared, channels at the same time; kGroup
  // of them where it is.
  FusedLayout(const TikhonovProblem<T>& p, int group_size, bool backward, int panel_elements,
              Carver carver = Carver())
      : m(static_cast<int>(p.antennas)),
        n(static_cast<int>(p.elements)),
        snapshots(static_cast<int>(p.snapshots)),
        group(group_size),
        pitch(static_cast<int>(round_up(p.elements, 16))),
        l_pitch(static_cast<int>(round_up(p.snapshots, 4)) + 2),
        s_pitch(m + 1) {
    const int64_t rows = round_up(snapshots, 4) * pitch;
    const int64_t solutions = static_cast<int64_t>(m) * l_pitch;
    // Tiles of antennas and of snapshots may read past the last: those rows exist, in any state.
    const int64_t channels = p.h_per_snapshot ? group - 1 : 0;
    const int64_t channel = (channels * m + round_up(m, 16)) * pitch;
    a_offset = carver.take<Complex<T>>(rows);
    h_offset = carver.take<Complex<T>>(channel < panel_elements ? panel_elements : channel);
    s_offset = carver.take<Complex<T>>(static_cast<int64_t>(group) * m * s_pitch);
    z_offset = carver.take<Complex<T>>(solutions);
    weights_offset = carver.take<T>(static_cast<int64_t>(kGroup) * pitch);
    grad_offset = w_offset = terms_offset = 0;
    if (backward) {
      grad_offset = carver.take<Complex<T>>(rows);
      w_offset = carver.take<Complex<T>>(solutions);
      terms_offset = carver.take<T>(l_pitch);
    }
    bytes = carver.used();
  }

  // Codes, which the estimates overwrite [L, pitch].
  RISKERNELS_DEVICE Rows<T> a() const { return {shared_array<Complex<T>>(a_offset), pitch}; }
  // Channels of a group [channels * M, pitch], in the backward also the panel.
  RISKERNELS_DEVICE Rows<T> h() const { return {shared_array<Complex<T>>(h_offset), pitch}; }
  RISKERNELS_DEVICE SquareMatrices<T> s() const {
    return {shared_array<Complex<T>>(s_offset), m, s_pitch};
  }
  RISKERNELS_DEVICE T* weights() const { return shared_array<T>(weights_offset); }
  RISKERNELS_DEVICE SharedSolutions<T> z() const {
    return {shared_array<Complex<T>>(z_offset), l_pitch};
  }
  // The rest only in the backward.
  RISKERNELS_DEVICE Rows<T> grad() const { return {shared_array<Complex<T>>(grad_offset), pitch}; }
  RISKERNELS_DEVICE SharedSolutions<T> w() const {
    return {shared_array<Complex<T>>(w_offset), l_pitch};
  }
  RISKERNELS_DEVICE T* terms() const { return shared_array<T>(terms_offset); }
};

template <typename T, int MP>
class FusedScene {
 public:
  RISKERNELS_DEVICE FusedScene(const TikhonovProblem<T>& problem, const FusedLayout<T>& memory,
                               int scene)
      : p(problem), x(memory), scene_(scene) {}

  // Brings in y, the codes and a shared H, and finds out whether one S serves all snapshots. Ends
  // with a barrier.
  RISKERNELS_DEVICE void load() {
    const Place at;
    const Strided<T> y{complex_at(p.y, scene_ * p.y_stride[0]), p.y_stride[1], p.y_stride[2]};
    const Strided<T> c = codes();
    for (int l = at.warp(); l < x.snapshots; l += kWarps)
      copy_row_async(at.lane(), x.a().row(l), c.at(l, 0), c.column, x.n, x.pitch);
    if (!p.h_per_snapshot) load_channels(0, 1);
    for (int e = at.thread; e < x.snapshots * x.m; e += kThreads)
      x.z().put(e / x.m, e % x.m, y(e / x.m, e % x.m));
    copies_done();
    __syncthreads();
    shared_ = !p.h_per_snapshot && weights_agree();
  }

  // sink(l, n, a_l(n)) for all snapshots; z stays. The codes lie in x.a() until their snapshot's
  // estimates are sunk, so a sink may overwrite them there. Ends with a barrier.
  template <typename Sink>
  RISKERNELS_DEVICE void estimate(const Sink& sink) {
    for (int first = 0; first < x.snapshots; first += step()) {
      const int end = minimum(first + step(), x.snapshots);
      make_systems(first, end);
      solve(first, end, x.z());
      project_back(first, end, sink);
    }
  }

  // Both passes of the backward over the snapshots: a and z, then, after grad_estimates() has left
  // dL/da in x.grad(), the inputs' gradients; `out` points at this scene. One loop, since the
  // unrolled elimination in it is most of the kernel.
  template <typename GradEstimates>
  RISKERNELS_DEVICE void differentiate(const GradEstimates& grad_estimates,
                                       const TikhonovGradients<T>& out) {
    RISKERNELS_UNROLL_BY(1)
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) {
        grad_estimates();
        if (!p.h_per_snapshot) {
          load_channels(0, 1);
          copies_done();
          __syncthreads();
        }
      }
      RISKERNELS_UNROLL_BY(1)
      for (int first = 0; first < x.snapshots; first += step()) {
        const int end = minimum(first + step(), x.snapshots);
        if (pass == 0 || !shared_) make_systems(first, end);
        if (pass == 1) project_gradients(first, end);
        solve(first, end, pass == 0 ? x.z() : x.w());
        if (pass == 0)
          project_back(first, end,
                       [&](int l, int64_t n, Complex<T> value) { x.a().row(l)[n] = value; });
        else if (p.h_per_snapshot)
          finish<1>(first, end, out);
      }
    }
    if (!p.h_per_snapshot) finish<4>(0, x.snapshots, out);
  }

  // Subtracts from every column of rows its mean over the snapshots. Ends with a barrier.
  RISKERNELS_DEVICE void subtract_mean(Rows<T> rows) const {
    const Place at;
    const T scale = reciprocal(static_cast<T>(x.snapshots));
    for (int n = at.thread; n < x.pitch; n += kThreads) {
      Complex<T> mean = rows.row(0)[n];
      for (int l = 1; l < x.snapshots; ++l) mean = mean + rows.row(l)[n];
      mean = mean * scale;
      for (int l = 0; l < x.snapshots; ++l) rows.row(l)[n] = rows.row(l)[n] - mean;
    }
    __syncthreads();
  }

 private:
  RISKERNELS_DEVICE int step() const { return shared_ ? x.snapshots : x.group; }
  RISKERNELS_DEVICE const T* terms() const { return p.relative ? x.terms() : nullptr; }
  RISKERNELS_DEVICE SharedChannel<T> channel(int first) const {
    return {x.h(), p.h_per_snapshot ? x.m : 0, first};
  }
  // Made from the parameters where it is used, rather than kept.
  RISKERNELS_DEVICE Strided<T> codes() const {
    return {complex_at(p.codes, scene_ * p.codes_stride[0]), p.codes_stride[1], p.codes_stride[2]};
  }

  RISKERNELS_DEVICE void load_channels(int first, int count) const {
    const Place at;
    const Complex<T>* const of_scene = complex_at(p.h, scene_ * p.h_stride[0]);
    for (int row = at.warp(); row < count * x.m; row += kWarps)
      copy_row_async(at.lane(), x.h().row(row),
                     of_scene + (first + row / x.m) * p.h_stride[1] + row % x.m * p.h_stride[2],
                     p.h_stride[3], x.n, x.pitch);
  }

  // Whether |c_ln|^2 is the same for all l up to the rounding of the codes themselves; the weights
  // are then its mean over l. NaN never agrees. A barrier.
  RISKERNELS_DEVICE bool weights_agree() const {
    const Place at;
    const T tolerance = T(16) * Limits<T>::kEpsilon;
    const T scale = reciprocal(static_cast<T>(x.snapshots));
    int disagree = 0;
    for (int n = at.thread; n < x.n; n += kThreads) {
      const T first = norm(x.a().row(0)[n]), bound = first * tolerance;
      T sum = first;
      for (int l = 1; l < x.snapshots; ++l) {
        const T weight = norm(x.a().row(l)[n]), difference = weight - first;
        if (!(difference <= bound && -difference <= bound)) disagree = 1;
        sum += weight;
      }
      x.weights()[n] = sum * scale;
    }
    return __syncthreads_or(disagree) == 0;
  }

  // Matrices, without loading, of the snapshots first..end-1: one where it is shared. Ends with a
  // barrier.
  RISKERNELS_DEVICE void make_systems(int first, int end) const {
    if (!shared_) {
      const Place at;
      const Strided<T> c = codes();
      if (p.h_per_snapshot) load_channels(first, end - first);
      for (int l = first; l < end; ++l)
        for (int n = at.thread; n < x.n; n += kThreads)
          x.weights()[(l - first) * x.pitch + n] = norm(c(l, n));
      copies_done();
      __syncthreads();
    }
    if (shared_ || p.h_per_snapshot)
      gram_of_systems<false>(Place(), x.m, x.n, shared_ ? 1 : end - first, x.h(), x.weights(),
                             x.s());
    else
      gram_of_four(Place(), x.m, x.n, end - first, x.h(), x.weights(), x.s());
    __syncthreads();
  }

  // v_l = S_l^{-1} v_l for the snapshots first..end-1: where S is shared R of them to each slot of
  // a warp, elsewhere one with its matrix to a slot of MP lanes. The warps loop together over their
  // slots, as the elimination's exchanges need. Ends with a barrier.
  RISKERNELS_DEVICE void solve(int first, int end, const SharedSolutions<T>& v) const {
    constexpr int kPerWarp = kWarp / MP, kSlots = kThreads / MP;
    const Place at;
    const int i = at.lane() % MP;
    if (shared_) {
      constexpr int R = MP == 32 ? kRightSides : 4;
      RISKERNELS_UNROLL_BY(1)
      for (int l0 = first + at.warp() * kPerWarp * R; l0 < end; l0 += kSlots * R) {
        const int l = l0 + at.lane() / MP * R;
        const int count = i < x.m ? minimum(R, end - l) : 0;
        Complex<T> value[R];
        RISKERNELS_UNROLL
        for (int r = 0; r < R; ++r) value[r] = r < count ? v(l + r, i) : Complex<T>{T(0), T(0)};
        eliminate_shared<T, MP, R>(at.lane(), x.s().data, x.s_pitch, x.m, p.alpha, p.relative, x.n,
                                   value);
        RISKERNELS_UNROLL
        for (int r = 0; r < R; ++r)
          if (r < count) v.put(l + r, i, value[r]);
      }
    } else {
      RISKERNELS_UNROLL_BY(1)
      for (int l0 = first + at.warp() * kPerWarp; l0 < end; l0 += kSlots) {
        const int l = l0 + at.lane() / MP;
        const bool used = i < x.m && l < end;
        Complex<T> value[1] = {used ? v(l, i) : Complex<T>{T(0), T(0)}};
        eliminate<T, MP, 1>(i, x.s().data + (minimum(l, end - 1) - first) * x.m * x.s_pitch,
                            x.s_pitch, x.m, p.alpha, p.relative, x.n, value);
        if (used) v.put(l, i, value[0]);
      }
    }
    __syncthreads();
  }

  // Ends with a barrier.
  template <typename Sink>
  RISKERNELS_DEVICE void project_back(int first, int end, const Sink& sink) const {
    const SharedRows<T> c{x.a()};
    if (p.h_per_snapshot)
      back_project<1, T>(Place(), x.m, 0, x.pitch, first, end, channel(first), c, x.z(), sink);
    else
      back_project<4, T>(Place(), x.m, 0, x.pitch, first, end, channel(first), c, x.z(), sink);
    __syncthreads();
  }

  // w_l = Phi_l g_l. Ends with a barrier.
  RISKERNELS_DEVICE void project_gradients(int first, int end) const {
    const SharedRows<T> g{x.grad()};
    const auto sink = [&](int l, int i, Complex<T> value) { x.w().put(l, i, value); };
    if (p.h_per_snapshot)
      project<true, T>(Place(), x.m, x.n, first, end, channel(first), codes(), g, sink);
    else
      project<false, T>(Place(), x.m, x.n, first, end, channel(first), codes(), g, sink);
    __syncthreads();
  }

  // The gradients of the snapshots first..end-1, R at a time; x.grad() becomes q. Where H is shared
  // these are all snapshots. Ends with a barrier.
  template <int R>
  RISKERNELS_DEVICE void finish(int first, int end, const TikhonovGradients<T>& out) const {
    const Place at;
    const auto z = x.z(), w = x.w();
    const SharedRows<T> a{x.a()}, g{x.grad()};
    if (p.relative) {
      loading_terms<T>(at, x.m, x.n, p.alpha, first, end, z, w, x.terms());
      __syncthreads();
    }
    if (out.y != nullptr)
      for (int e = first * x.m + at.thread; e < end * x.m; e += kThreads)
        *complex_at(out.y, e) = w(e / x.m, e % x.m);
    if (out.h != nullptr || out.codes != nullptr)
      finish_codes<R, T>(Place(), x.m, 0, x.n, x.n, first, end, channel(first), codes(), a, g, z, w,
                         terms(), out.codes != nullptr ? complex_at(out.codes, 0) : nullptr);
    __syncthreads();
    if (out.h == nullptr) return;
    if constexpr (R == 1)
      finish_channels<T>(Place(), x.m, 0, x.n, x.n, first, end, channel(first), codes(), a, g, z, w,
                         terms(), complex_at(out.h, 0));
    else
      finish_channel<T>(Place(), x.m, 0, x.n, x.n, x.snapshots, channel(first), codes(), a, g, z, w,
                        terms(), complex_at(out.h, 0));
    __syncthreads();
  }

  const TikhonovProblem<T>& p;
  const FusedLayout<T>& x;
  const int scene_;
  bool shared_ = false;
};

// Largest M of the fused kernels. With more antennas a scene of complex128 leaves room for one
// block on a multiprocessor, and the stages are as good.
template <typename T>
constexpr int kFusedAntennas = sizeof(T) == 8 ? 16 : 32;

// Runs f(integral_constant<int, MP>) for the narrowest slot that holds m rows.
template <typename T, typename F>
void with_slot(int64_t m, const F& f) {
  if (m <= 8)
    f(std::integral_constant<int, 8>{});
  else if (m <= 16)
    f(std::integral_constant<int, 16>{});
  else if constexpr (kFusedAntennas<T> > 16)
    f(std::integral_constant<int, 32>{});
}

}  // namespace riskernels::cuda
