// SPDX-License-Identifier: Apache-2.0
// z_l = S_l^{-1} r_l of scenes that the fused kernels do not take, into global memory. A block has
// some snapshots of a scene; H streams through in chunks of columns, so N is not bounded. M <= 32
// is eliminated in registers, larger M is factored by the block, on chip up to M = 128 and beyond
// that in a workspace.
#pragma once

#include "block_factor.cuh"
#include "estimates.cuh"
#include "launch.cuh"

namespace riskernels::cuda {

// One block's memory: in shared memory, or at `block_bytes` steps in a workspace.
template <typename T>
struct StagedLayout {
  int chunk, pitch;  // columns of H at a time
  int h_offset, weights_offset, s_offset, inverse_offset, x_offset;
  int64_t bytes;
  char* workspace;

  StagedLayout(int m, int columns, bool in_registers, Carver carver = Carver())
      : chunk(columns), pitch(columns), workspace(nullptr) {
    // Tiles of antennas may read past the last: those rows exist, in any state.
    h_offset = carver.take<Complex<T>>(round_up(m, 4) * pitch);
    weights_offset = carver.take<T>(pitch);
    const int64_t packed = static_cast<int64_t>(m) * (m + 1) / 2;
    s_offset = carver.take<Complex<T>>(in_registers ? static_cast<int64_t>(m) * (m + 1) : packed);
    inverse_offset = carver.take<T>(in_registers ? 0 : m);
    x_offset = carver.take<Complex<T>>(in_registers ? 0 : static_cast<int64_t>(kWarps) * m);
    bytes = carver.used();
  }
};

template <typename T>
StagedLayout<T> staged_layout(const Target& target, const TikhonovProblem<T>& p) {
  const int m = static_cast<int>(p.antennas);
  const bool in_registers = m <= 32;
  int chunk = static_cast<int>(round_up(p.elements < 128 ? p.elements : 128, 16));
  while (chunk > 16 && StagedLayout<T>(m, chunk, in_registers).bytes > target.shared_limit)
    chunk = static_cast<int>(round_up(chunk / 2, 16));
  return StagedLayout<T>(m, chunk, in_registers);
}

// MP = 0: factored by the block. The right-hand sides r_l are rows of `rhs`.
template <typename T, int MP>
class StagedScene {
 public:
  RISKERNELS_DEVICE StagedScene(const TikhonovProblem<T>& problem, const StagedLayout<T>& layout,
                                char* memory, int64_t scene)
      : p(problem),
        m_(static_cast<int>(p.antennas)),
        snapshots_(static_cast<int>(p.snapshots)),
        chunk_(layout.chunk),
        h_{reinterpret_cast<Complex<T>*>(memory + layout.h_offset), layout.pitch},
        weights_(reinterpret_cast<T*>(memory + layout.weights_offset)),
        s_(reinterpret_cast<Complex<T>*>(memory + layout.s_offset)),
        inverse_(reinterpret_cast<T*>(memory + layout.inverse_offset)),
        x_(reinterpret_cast<Complex<T>*>(memory + layout.x_offset)),
        channel_{complex_at(p.h, scene * p.h_stride[0]), p.h_stride[1], p.h_stride[2],
                 p.h_stride[3], m_},
        codes_{complex_at(p.codes, scene * p.codes_stride[0]), p.codes_stride[1],
               p.codes_stride[2]} {}

  RISKERNELS_DEVICE void solve(int begin, int end, const Strided<T>& rhs,
                               const GlobalRows<T>& out) const {
    if (!p.h_per_snapshot && weights_agree()) {
      make_system(0, true);
      solve_range(begin, end, rhs, out);
      return;
    }
    for (int l = begin; l < end; ++l) {
      make_system(l, false);
      solve_range(l, l + 1, rhs, out);
    }
  }

 private:
  // As in FusedScene. A barrier.
  RISKERNELS_DEVICE bool weights_agree() const {
    const Place at;
    int disagree = 0;
    for (int64_t n = at.thread; n < p.elements; n += kThreads) {
      const T first = norm(codes_(0, n)), bound = first * (T(16) * Limits<T>::kEpsilon);
      for (int l = 1; l < snapshots_; ++l) {
        const T difference = norm(codes_(l, n)) - first;
        if (!(difference <= bound && -difference <= bound)) disagree = 1;
      }
    }
    return __syncthreads_or(disagree) == 0;
  }

  RISKERNELS_DEVICE T weight(int l, int64_t n, bool mean) const {
    if (!mean) return norm(codes_(l, n));
    T sum = norm(codes_(0, n));
    for (int k = 1; k < snapshots_; ++k) sum += norm(codes_(k, n));
    return sum * reciprocal(static_cast<T>(snapshots_));
  }

  // The matrix of snapshot l, or of all with the mean weights; factored where MP = 0.
  RISKERNELS_DEVICE void make_system(int l, bool mean) const {
    const Place at;
    __syncthreads();  // the system before this one has been used
    for (int64_t first = 0; first < p.elements; first += chunk_) {
      const int64_t rest = p.elements - first;
      const int count = static_cast<int>(rest < chunk_ ? rest : chunk_);
      for (int i = at.warp(); i < m_; i += kWarps)
        for (int n = at.lane(); n < count; n += kWarp) h_.row(i)[n] = channel_(l, i, first + n);
      for (int n = at.thread; n < count; n += kThreads) weights_[n] = weight(l, first + n, mean);
      __syncthreads();
      if (first == 0)
        add_gram<false>(count);
      else
        add_gram<true>(count);
      __syncthreads();
    }
    if constexpr (MP == 0)
      factor_block(Place(), m_, p.alpha, p.relative, p.elements, PackedMatrix<T>{s_}, inverse_);
  }

  template <bool Add>
  RISKERNELS_DEVICE void add_gram(int count) const {
    if constexpr (MP == 0)
      gram_of_systems<Add>(Place(), m_, count, 1, h_, weights_, PackedMatrix<T>{s_});
    else
      gram_of_systems<Add>(Place(), m_, count, 1, h_, weights_, SquareMatrices<T>{s_, m_, m_ + 1});
  }

  RISKERNELS_DEVICE void solve_range(int begin, int end, const Strided<T>& rhs,
                                     const GlobalRows<T>& out) const {
    const Place at;
    if constexpr (MP == 0) {
      Complex<T>* const x = x_ + at.warp() * m_;
      for (int l = begin + at.warp(); l < end; l += kWarps) {
        for (int i = at.lane(); i < m_; i += kWarp) x[i] = rhs(l, i);
        solve_by_warp(at, m_, PackedMatrix<T>{s_}, inverse_, x);
        for (int i = at.lane(); i < m_; i += kWarp) out.put(l, i, x[i]);
      }
    } else {
      constexpr int R = kRightSides, kSlots = kThreads / MP;
      const int jobs = (end - begin + R - 1) / R, i = at.lane() % MP;
      for (int job0 = at.warp() * (kWarp / MP); job0 < jobs; job0 += kSlots) {
        const int job = job0 + at.lane() / MP, l = begin + job * R;
        Complex<T> value[R];
        RISKERNELS_UNROLL
        for (int r = 0; r < R; ++r)
          value[r] = i < m_ && l + r < end ? rhs(l + r, i) : Complex<T>{T(0), T(0)};
        eliminate<T, MP, R>(i, s_, m_ + 1, m_, p.alpha, p.relative, p.elements, value);
        RISKERNELS_UNROLL
        for (int r = 0; r < R; ++r)
          if (i < m_ && l + r < end) out.put(l + r, i, value[r]);
      }
    }
  }

  const TikhonovProblem<T>& p;
  const int m_, snapshots_, chunk_;
  const Rows<T> h_;
  T* const weights_;
  Complex<T>* const s_;
  T* const inverse_;
  Complex<T>* const x_;
  const GlobalChannel<T> channel_;
  const Strided<T> codes_;
};

// rhs: y of the problem where null, else [B, L, M]; out [B, L, M], which may be rhs.
template <typename T, int MP>
__global__ void __launch_bounds__(kThreads, kStagedBlocks<T>)
    staged_solve(const __grid_constant__ TikhonovProblem<T> p,
                 const __grid_constant__ StagedLayout<T> layout, const Complex<T>* rhs,
                 Complex<T>* out) {
  const int64_t block = blockIdx.x + static_cast<int64_t>(blockIdx.y) * gridDim.x;
  char* const memory =
      layout.workspace != nullptr ? layout.workspace + block * layout.bytes : shared_bytes();
#if !defined(__CUDACC__)
  // On the block executor: makes an access between two arrays an error.
  if (layout.workspace == nullptr && threadIdx.x == 0)
    StagedLayout<T>(static_cast<int>(p.antennas), layout.chunk, MP != 0, Carver(shared_bytes()));
  __syncthreads();
#endif
  const int64_t size = p.snapshots * p.antennas;
  const int snapshots = static_cast<int>(p.snapshots), parts = static_cast<int>(gridDim.y);
  const int per_part = (snapshots + parts - 1) / parts;
  const int begin = static_cast<int>(blockIdx.y) * per_part;
  const int end = minimum(begin + per_part, snapshots);
  for (int64_t b = blockIdx.x; b < p.scenes; b += gridDim.x) {
    const Strided<T> from = rhs != nullptr ? Strided<T>{rhs + b * size, p.antennas, 1}
                                           : Strided<T>{complex_at(p.y, b * p.y_stride[0]),
                                                        p.y_stride[1], p.y_stride[2]};
    const StagedScene<T, MP> scene(p, layout, memory, b);
    scene.solve(begin, end, from, GlobalRows<T>{out + b * size, p.antennas});
    __syncthreads();
  }
}

template <typename T>
void launch_staged_solve(const Target& target, const TikhonovProblem<T>& p, const Complex<T>* rhs,
                         Complex<T>* out) {
  StagedLayout<T> layout = staged_layout(target, p);
  const int64_t twice = 2 * static_cast<int64_t>(target.multiprocessors);
  const int64_t useful = (p.snapshots + 3) / 4;
  int64_t parts = twice / p.scenes;
  parts = parts < 1 ? 1 : parts < useful ? parts : useful;
  int64_t scenes = p.scenes, shared = layout.bytes;
  if (shared > target.shared_limit) {
    // So many blocks keep the device busy; more would only take memory.
    scenes = scenes < twice ? scenes : twice;
    layout.workspace = static_cast<char*>(target.workspace(scenes * parts * layout.bytes));
    shared = 0;
  }
  const auto start = [&](auto kernel) {
    launch(target, kernel, dim3(scenes, parts), kThreads, shared, p, layout, rhs, out);
  };
  if (p.antennas <= 8)
    start(staged_solve<T, 8>);
  else if (p.antennas <= 16)
    start(staged_solve<T, 16>);
  else if (p.antennas <= 32)
    start(staged_solve<T, 32>);
  else
    start(staged_solve<T, 0>);
}

}  // namespace riskernels::cuda
