// SPDX-License-Identifier: Apache-2.0
// subspace_leakage on the device: which kernels, which grid, how much shared memory. Chosen from
// the shape and the device alone.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "leakage_gradient.cuh"
#include "leakage_projection.cuh"

namespace riskernels::cuda {

// Larger K x K matrices lie in a workspace.
constexpr int64_t kSharedAlgebra = 48 * 1024;
// Bytes of R of a forward block, at least, where a scene is split: the kernels before and after
// cost about as much as reading them.
constexpr int64_t kLeakageStrip = 256 * 1024;
constexpr int kLeakageRows = 8;  // of a backward block, at least
// Bytes of R that the blocks at work at one time start on their way before their K x K algebra: a
// fraction of the second-level cache.
constexpr int64_t kLeakagePrefetch = int64_t{16} << 20;

// Rows of a block's `columns` that it prefetches.
template <typename T>
int prefetched_rows(const Target& target, const LeakageProblem<T>& p, int64_t parts,
                    int64_t columns) {
  if (p.cov_stride[2] != 1) return 0;
  int64_t blocks = p.scenes * parts;
  if (blocks > kLeakageBlocks * target.multiprocessors)
    blocks = kLeakageBlocks * target.multiprocessors;
  const int64_t rows = kLeakagePrefetch / (blocks * columns * int64_t{sizeof(Complex<T>)});
  return static_cast<int>(rows < p.elements ? rows : p.elements);
}

struct LeakagePlan {
  LeakageWalk walk;
  int64_t parts;
  unsigned threads;
};

inline unsigned fewer_threads(unsigned threads) {
  return static_cast<unsigned>(round_up(threads / 2, kWarp));
}

// At most a quarter of the threads side by side, so that no thread adds up a long column alone;
// fewer threads where the rows do not fill them.
inline void lay_out_threads(LeakagePlan& plan, int64_t columns, int64_t rows, int width) {
  const int64_t vectors = (columns + width - 1) / width, items = round_up(vectors, 8) * rows;
  while (plan.threads > kWarp && items <= fewer_threads(plan.threads))
    plan.threads = fewer_threads(plan.threads);
  const int64_t most = plan.threads / 4, panels = (vectors + most - 1) / most;
  plan.walk.slots = static_cast<int>(round_up((vectors + panels - 1) / panels, 8));
}

template <typename T>
LeakagePlan leakage_forward_plan(const Target& target, const LeakageProblem<T>& p, int width) {
  const int64_t n = p.elements, bytes = n * n * int64_t{sizeof(Complex<T>)};
  int64_t parts = 2 * target.multiprocessors / p.scenes;
  if (parts > bytes / kLeakageStrip) parts = bytes / kLeakageStrip;
  if (parts < 1) parts = 1;
  int64_t share = round_up((n + parts - 1) / parts, 8 * width);
  if (share > n) share = n;
  parts = (n + share - 1) / share;
  LeakagePlan plan{{0, static_cast<int>(share), prefetched_rows(target, p, parts, share)},
                   parts,
                   kLeakageThreads<T>};
  lay_out_threads(plan, share, n, width);
  return plan;
}

template <typename T>
LeakagePlan leakage_backward_plan(const Target& target, const LeakageProblem<T>& p, int width) {
  const int64_t n = p.elements;
  const int64_t least = (n + kBasisRows - 1) / kBasisRows;
  const int64_t most = (n + kLeakageRows - 1) / kLeakageRows;
  int64_t parts = 2 * target.multiprocessors / p.scenes;
  parts = parts < least ? least : parts > most ? most : parts;
  const int64_t share = (n + parts - 1) / parts;
  parts = (n + share - 1) / share;
  LeakagePlan plan{{0, static_cast<int>(share), prefetched_rows(target, p, parts, n)},
                   parts,
                   kLeakageThreads<T>};
  lay_out_threads(plan, n, share, width);
  return plan;
}

// Calls f(Width, Columns) with the columns of Q that a thread keeps: five, the sources a scene may
// have, or eight where that takes fewer passes.
template <typename T, typename F>
void with_leakage_sizes(const LeakageProblem<T>& p, const F& f) {
  const bool pairs = takes_pairs(p.scenes, p.elements, p.cov, p.cov_stride);
  const bool five = (p.columns + 4) / 5 == (p.columns + 7) / 8;
  using One = std::integral_constant<int, 1>;
  using Pair = std::integral_constant<int, sizeof(T) == 4 ? 2 : 1>;
  using Five = std::integral_constant<int, 5>;
  using Eight = std::integral_constant<int, 8>;
  if (pairs)
    five ? f(Pair{}, Five{}) : f(Pair{}, Eight{});
  else
    five ? f(One{}, Five{}) : f(One{}, Eight{});
}

template <typename T>
void subspace_leakage_forward(const Target& target, const LeakageProblem<T>& p,
                              const LeakageState<T>& state) {
  if (p.scenes == 0) return;
  const int64_t size = basis_algebra_size(p.columns);
  const int64_t bytes = size * int64_t{sizeof(Complex<double>)};
  auto* const algebra = bytes <= kSharedAlgebra
                            ? nullptr
                            : static_cast<Complex<double>*>(target.workspace(p.scenes * bytes));
  const int64_t shared_size = algebra == nullptr ? size : 0;
  const auto scenes = static_cast<unsigned>(p.scenes);
  with_leakage_sizes(p, [&](auto width, auto columns) {
    constexpr int kWidth = decltype(width)::value, kColumns = decltype(columns)::value;
    LeakagePlan plan = leakage_forward_plan(target, p, kWidth);
    const auto layout = [&] {
      return leakage_layout<T, kWidth, kColumns>(p.elements, plan.parts == 1 ? shared_size : 0,
                                                 plan.threads);
    };
    while (layout().bytes > target.shared_limit && plan.threads > kWarp) {
      plan.threads = fewer_threads(plan.threads);
      const int most = static_cast<int>(plan.threads) / 4;
      if (plan.walk.slots > most) plan.walk.slots = most;
    }
    double* partial = nullptr;
    if (plan.parts > 1) {
      partial =
          static_cast<double*>(target.workspace(p.scenes * plan.parts * int64_t{sizeof(double)}));
      launch(target, leakage_basis_kernel<T>, dim3(scenes), kLeakageThreads<T>,
             algebra == nullptr ? bytes : 0, p, algebra, state.basis);
    }
    launch(target, leakage_kernel<T, kWidth, kColumns>,
           dim3(scenes, static_cast<unsigned>(plan.parts)), plan.threads, layout().bytes, p,
           plan.walk, layout(), algebra, state, partial);
    if (partial != nullptr)
      launch(target, leakage_finish_kernel<T>, dim3(scenes), kLeakageFinishThreads,
             int64_t{3 * kWarp * sizeof(double)}, p, state, partial, static_cast<int>(plan.parts));
  });
}

template <typename T>
void subspace_leakage_backward(const Target& target, const LeakageProblem<T>& p,
                               const LeakageState<T>& state, const T* grad, int64_t grad_stride,
                               T* grad_cov) {
  if (p.scenes == 0) return;
  with_leakage_sizes(p, [&](auto width, auto columns) {
    constexpr int kWidth = decltype(width)::value, kColumns = decltype(columns)::value;
    const LeakagePlan plan = leakage_backward_plan(target, p, kWidth);
    const auto memory = leakage_gradient_layout<T, kWidth, kColumns>(plan.walk, p.columns);
    launch(target, leakage_gradient_kernel<T, kWidth, kColumns>,
           dim3(static_cast<unsigned>(p.scenes), static_cast<unsigned>(plan.parts)), plan.threads,
           memory.bytes, p, plan.walk, memory, state, grad, grad_stride, grad_cov);
  });
}

}  // namespace riskernels::cuda
