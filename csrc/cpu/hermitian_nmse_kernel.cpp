// SPDX-License-Identifier: Apache-2.0
// Memory-bound: one read of both matrices forward, one read and one write per gradient backward.
#include <cstdint>

#include "kernels.hpp"
#include "nmse_blocks.hpp"
#include "nmse_rows.hpp"
#include "scratch.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

// Scratch of one scene: two gathered rows and the expanded mask.
template <typename T>
struct Buffers {
  T *estimate, *target;
  typename Simd<T>::Int* mask;
  explicit Buffers(int64_t n) {
    const auto row = static_cast<std::size_t>(round_up(2 * n * sizeof(T), 64));
    char* block = static_cast<char*>(thread_scratch(3 * row));
    estimate = reinterpret_cast<T*>(block);
    target = reinterpret_cast<T*>(block + row);
    mask = reinterpret_cast<typename Simd<T>::Int*>(block + 2 * row);
  }

  // All ones where an element is kept, zeros where it is not, one word per real number. Masking by
  // bits keeps non-finite values of masked elements out.
  void expand_mask(const NmseProblem<T>& p, int64_t b) const {
    if (p.mask == nullptr) return;
    const bool* const kept = p.mask + b * p.mask_stride[0];
    for (int64_t j = 0; j < p.elements; ++j)
      mask[2 * j] = mask[2 * j + 1] =
          kept[j * p.mask_stride[1]] ? typename Simd<T>::Int(-1) : typename Simd<T>::Int(0);
  }
};

struct SceneSums {
  double diagonal_error = 0, off_error = 0, diagonal_power = 0, off_power = 0;

  void add(const SceneSums& other) {
    diagonal_error += other.diagonal_error;
    off_error += other.off_error;
    diagonal_power += other.diagonal_power;
    off_power += other.off_power;
  }
};

// Adds rows [first, last) of one scene to `sums`.
template <typename T, bool Masked>
void add_rows(const RowReader<T>& estimate, const RowReader<T>& target, int64_t n, int64_t first,
              int64_t last, typename Simd<T>::Int* mask, SceneSums& sums) {
  Energies<T> off, diagonal;
  const bool contiguous = estimate.contiguous() && target.contiguous() && n >= Simd<T>::W;
  if (!Masked && contiguous) {
    off.add_rows(estimate.row(0), target.row(0), n, first, last, diagonal);
    first = last;
  }
  for (int64_t i = first; i < last; ++i) {
    if (Masked && mask[2 * i] == 0) continue;
    const T* const e = estimate.row(i);
    const T* const t = target.row(i);
    if constexpr (Masked) {
      mask[2 * i] = mask[2 * i + 1] = 0;
      off.template add<true>(e, t, 2 * n, mask);
      mask[2 * i] = mask[2 * i + 1] = -1;
    } else {
      off.template add<false>(e, t, 2 * i, mask);
      off.template add<false>(e + 2 * (i + 1), t + 2 * (i + 1), 2 * (n - i - 1), mask);
    }
    for (int64_t k = 2 * i; k < 2 * i + 2; ++k) diagonal.add_number(e[k], t[k]);
  }
  diagonal.flush();
  sums.diagonal_error += diagonal.error;
  sums.diagonal_power += diagonal.power;
  off.flush();
  sums.off_error += off.error;
  sums.off_power += off.power;
}

// A block of rows [first, last) of one scene.
template <typename T>
struct BlockRows {
  int64_t first, last;
  RowReader<T> estimate, target;
};

template <typename T>
BlockRows<T> block_rows(const NmseProblem<T>& p, int64_t b, int64_t block,
                        const Buffers<T>& buffers) {
  const int64_t n = p.elements, rows = nmse_block_rows(n), first = block * rows;
  return {first,
          first + rows < n ? first + rows : n,
          {p.estimate + 2 * b * p.estimate_stride[0], p.estimate_stride, n, buffers.estimate},
          {p.target + 2 * b * p.target_stride[0], p.target_stride, n, buffers.target}};
}

// The sums of one block of rows of one scene.
template <typename T>
SceneSums block_sums(const NmseProblem<T>& p, int64_t b, int64_t block, const Buffers<T>& buffers) {
  const int64_t n = p.elements;
  const auto [first, last, estimate, target] = block_rows(p, b, block, buffers);
  SceneSums sums;
  if (p.mask == nullptr)
    add_rows<T, false>(estimate, target, n, first, last, buffers.mask, sums);
  else
    add_rows<T, true>(estimate, target, n, first, last, buffers.mask, sums);
  return sums;
}

// Never inlined, so that there is one rounding of it.
template <typename T>
__attribute__((noinline)) void finish(const NmseProblem<T>& p, const SceneSums& all, T* nmse,
                                      T* s) {
  s[0] = static_cast<T>(all.diagonal_error);
  s[1] = static_cast<T>(all.off_error);
  s[2] = static_cast<T>(all.diagonal_power);
  s[3] = static_cast<T>(all.off_power);
  const double parts = p.lam_diag * s[0] / (s[2] + p.eps) + p.lam_off * s[1] / (s[3] + p.eps);
  *nmse = static_cast<T>(parts / (p.lam_diag + p.lam_off));
}

// Whether rows are whole vectors that go past the caches: with half a line a vector, ordinary
// stores measured faster.
template <typename T>
bool streams(const T* gradient, int64_t n) {
  return RISKERNELS_VECTOR_BYTES == 64 && 2 * n % Simd<T>::W == 0 &&
         reinterpret_cast<std::uintptr_t>(gradient) % 64 == 0;
}

template <typename T, bool Masked, bool Estimate, bool Target>
void block_gradient(const NmseProblem<T>& p, int64_t b, int64_t block, const Buffers<T>& buffers,
                    T grad, const T* sums, bool stream, T* grad_estimate, T* grad_target) {
  const int64_t n = p.elements;
  const auto [first, last, estimate, target] = block_rows(p, b, block, buffers);
  const double total = p.lam_diag + p.lam_off;
  const double at_diagonal = 2 * grad * p.lam_diag / (total * (sums[2] + p.eps));
  const double at_off = 2 * grad * p.lam_off / (total * (sums[3] + p.eps));
  const NmseSlopes<T> on{static_cast<T>(at_diagonal),
                         static_cast<T>(at_diagonal * sums[0] / (sums[2] + p.eps))};
  const NmseSlopes<T> off{static_cast<T>(at_off),
                          static_cast<T>(at_off * sums[1] / (sums[3] + p.eps))};
  if (!Masked && stream && estimate.contiguous() && target.contiguous()) {
    streamed_gradient<T, Estimate, Target>(estimate.row(0), target.row(0), n, first, last, off, on,
                                           grad_estimate, grad_target);
    return;
  }
  for (int64_t i = first; i < last; ++i) {
    T* const ge = Estimate ? grad_estimate + 2 * i * n : nullptr;
    T* const gt = Target ? grad_target + 2 * i * n : nullptr;
    if (Masked && buffers.mask[2 * i] == 0) {
      for (int64_t k = 0; k < 2 * n; ++k) {
        if constexpr (Estimate) ge[k] = T(0);
        if constexpr (Target) gt[k] = T(0);
      }
      continue;
    }
    const T* e = estimate.row(i);
    const T* t = target.row(i);
    if constexpr (Masked)
      masked_gradient<T, Estimate, Target>(e, t, 2 * n, off, buffers.mask, ge, gt);
    else
      run_gradient<T, Estimate, Target>(e, t, 2 * n, off, ge, gt);
    const auto to = [i](T* row) { return row == nullptr ? nullptr : row + 2 * i; };
    run_gradient<T, Estimate, Target>(e + 2 * i, t + 2 * i, 2, on, to(ge), to(gt));
  }
}

}  // namespace

template <typename T>
void hermitian_nmse_forward(const NmseProblem<T>& p, T* nmse, T* sums, int64_t begin, int64_t end) {
  const Buffers<T> buffers(p.elements);
  const int64_t blocks = nmse_blocks(p.elements);
  for (int64_t b = begin; b < end; ++b) {
    buffers.expand_mask(p, b);
    SceneSums all;
    for (int64_t block = 0; block < blocks; ++block) all.add(block_sums(p, b, block, buffers));
    finish(p, all, nmse + b, sums + 4 * b);
  }
}

template <typename T>
void hermitian_nmse_blocks(const NmseProblem<T>& p, double* out, int64_t begin, int64_t end) {
  const Buffers<T> buffers(p.elements);
  const int64_t blocks = nmse_blocks(p.elements);
  for (int64_t at = begin; at < end; ++at) {
    if (at == begin || at % blocks == 0) buffers.expand_mask(p, at / blocks);
    const SceneSums sums = block_sums(p, at / blocks, at % blocks, buffers);
    out[4 * at] = sums.diagonal_error;
    out[4 * at + 1] = sums.off_error;
    out[4 * at + 2] = sums.diagonal_power;
    out[4 * at + 3] = sums.off_power;
  }
}

template <typename T>
void hermitian_nmse_finish(const NmseProblem<T>& p, const double* block_sums, T* nmse, T* sums,
                           int64_t begin, int64_t end) {
  const int64_t blocks = nmse_blocks(p.elements);
  for (int64_t b = begin; b < end; ++b) {
    SceneSums all;
    for (int64_t block = 0; block < blocks; ++block) {
      const double* const s = block_sums + 4 * (b * blocks + block);
      all.add({s[0], s[1], s[2], s[3]});
    }
    finish(p, all, nmse + b, sums + 4 * b);
  }
}

// Of blocks [begin, end) of all scenes, numbered scene by scene.
template <typename T>
void hermitian_nmse_backward(const NmseProblem<T>& p, const T* grad, int64_t grad_stride,
                             const T* sums, bool stream, T* grad_estimate, T* grad_target,
                             int64_t begin, int64_t end) {
  const Buffers<T> buffers(p.elements);
  const int64_t size = 2 * p.elements * p.elements, blocks = nmse_blocks(p.elements);
  const bool past_caches =
      stream && streams(grad_estimate, p.elements) && streams(grad_target, p.elements);
  const auto run = [&](auto kernel) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t b = at / blocks;
      if (at == begin || at % blocks == 0) buffers.expand_mask(p, b);
      kernel(p, b, at % blocks, buffers, grad[b * grad_stride], sums + 4 * b, past_caches,
             grad_estimate == nullptr ? nullptr : grad_estimate + b * size,
             grad_target == nullptr ? nullptr : grad_target + b * size);
    }
  };
  const bool masked = p.mask != nullptr;
  if (grad_target == nullptr)
    run(masked ? block_gradient<T, true, true, false> : block_gradient<T, false, true, false>);
  else if (grad_estimate == nullptr)
    run(masked ? block_gradient<T, true, false, true> : block_gradient<T, false, false, true>);
  else
    run(masked ? block_gradient<T, true, true, true> : block_gradient<T, false, true, true>);
  if (past_caches) Simd<T>::stream_fence();
}

template void hermitian_nmse_forward<float>(const NmseProblem<float>&, float*, float*, int64_t,
                                            int64_t);
template void hermitian_nmse_forward<double>(const NmseProblem<double>&, double*, double*, int64_t,
                                             int64_t);
template void hermitian_nmse_blocks<float>(const NmseProblem<float>&, double*, int64_t, int64_t);
template void hermitian_nmse_blocks<double>(const NmseProblem<double>&, double*, int64_t, int64_t);
template void hermitian_nmse_finish<float>(const NmseProblem<float>&, const double*, float*, float*,
                                           int64_t, int64_t);
template void hermitian_nmse_finish<double>(const NmseProblem<double>&, const double*, double*,
                                            double*, int64_t, int64_t);
template void hermitian_nmse_backward<float>(const NmseProblem<float>&, const float*, int64_t,
                                             const float*, bool, float*, float*, int64_t, int64_t);
template void hermitian_nmse_backward<double>(const NmseProblem<double>&, const double*, int64_t,
                                              const double*, bool, double*, double*, int64_t,
                                              int64_t);

}  // namespace riskernels::RISKERNELS_ISA
