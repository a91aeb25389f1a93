// SPDX-License-Identifier: Apache-2.0
// Memory-bound: one read of both matrices forward, one read and one write per gradient backward.
// Real and imaginary parts are squared alike, so rows stay interleaved; the diagonal entry is
// blanked in the one vector that holds it and added to its own sum.
#include "kernels.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace riskernels::RISKERNELS_ISA {
namespace {

template <typename T>
struct RowSums {
  T error, target;
};

// Row views of one scene: rows with unit stride are read in place, others gathered.
template <typename T>
class RowReader {
 public:
  RowReader(const T* base, const int64_t* stride, int64_t n, T* buffer)
      : base_(base), row_(stride[1]), column_(stride[2]), n_(n), buffer_(buffer) {}

  const T* row(int64_t i) const {
    const T* from = base_ + 2 * i * row_;
    if (column_ == 1) return from;
    for (int64_t j = 0; j < n_; ++j) {
      buffer_[2 * j] = from[2 * j * column_];
      buffer_[2 * j + 1] = from[2 * j * column_ + 1];
    }
    return buffer_;
  }

 private:
  const T* base_;
  int64_t row_, column_, n_;
  T* buffer_;
};

// All ones where an element is kept, zeros where it is not, one word per real number. Masking by
// bits keeps non-finite values of masked elements out.
template <typename T>
void expand_mask(const bool* mask, int64_t stride, int64_t n, typename Simd<T>::Int* words) {
  for (int64_t j = 0; j < n; ++j)
    words[2 * j] = words[2 * j + 1] = mask[j * stride] ? typename Simd<T>::Int(-1) : 0;
}

template <typename T>
struct Lanes {
  using S = Simd<T>;
  // Ones except at the real and imaginary part of element `diagonal`, for the vector at `start`.
  static RISKERNELS_INLINE typename S::I without(int64_t diagonal, int64_t start) {
    typename S::I keep = ~typename S::I{};
    for (int w = 0; w < S::W; ++w)
      if (start + w == 2 * diagonal || start + w == 2 * diagonal + 1) keep[w] = 0;
    return keep;
  }
  static RISKERNELS_INLINE typename S::V blank(typename S::V v, typename S::I keep) {
    return reinterpret_cast<typename S::V>(reinterpret_cast<typename S::I>(v) & keep);
  }
  static RISKERNELS_INLINE typename S::I words(const typename S::Int* p) {
    typename S::I v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
};

// Off-diagonal sums of one row of 2n real numbers.
template <typename T, bool Masked>
RISKERNELS_INLINE RowSums<T> row_sums(const T* estimate, const T* target, int64_t n, int64_t i,
                                      const typename Simd<T>::Int* mask) {
  using S = Simd<T>;
  using L = Lanes<T>;
  constexpr int kUnroll = 4;
  const int64_t length = 2 * n, vectors = length / S::W, special = 2 * i / S::W;
  typename S::V error[kUnroll] = {}, power[kUnroll] = {};
  const auto add = [&](int u, int64_t v, typename S::I keep, bool blank) {
    auto t = S::load(target + v * S::W);
    auto e = S::load(estimate + v * S::W) - t;
    if (blank) {
      e = L::blank(e, keep);
      t = L::blank(t, keep);
    }
    error[u] += e * e;
    power[u] += t * t;
  };
  const auto run = [&](int64_t from, int64_t to) {
    int64_t v = from;
    if constexpr (Masked) {
      for (; v < to; ++v) add(0, v, L::words(mask + v * S::W), true);
    } else {
      for (; v + kUnroll <= to; v += kUnroll) {
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) add(u, v + u, typename S::I{}, false);
      }
      for (; v < to; ++v) add(0, v, typename S::I{}, false);
    }
  };
  run(0, special < vectors ? special : vectors);
  if (special < vectors) {
    auto keep = L::without(i, special * S::W);
    if constexpr (Masked) keep &= L::words(mask + special * S::W);
    add(1, special, keep, true);
    run(special + 1, vectors);
  }
  T error_tail = 0, power_tail = 0;
  for (int64_t k = vectors * S::W; k < length; ++k) {
    if (k / 2 == i || (Masked && mask[k] == 0)) continue;
    const T e = estimate[k] - target[k];
    error_tail += e * e;
    power_tail += target[k] * target[k];
  }
  return {S::sum((error[0] + error[1]) + (error[2] + error[3])) + error_tail,
          S::sum((power[0] + power[1]) + (power[2] + power[3])) + power_tail};
}

// Gradient rows; `scale` and `ratio` are the off-diagonal factors, the diagonal is set after.
template <typename T, bool Masked, bool Estimate, bool Target>
RISKERNELS_INLINE void row_gradient(const T* estimate, const T* target, int64_t n, T scale, T ratio,
                                    const typename Simd<T>::Int* mask, T* grad_estimate,
                                    T* grad_target) {
  using S = Simd<T>;
  using L = Lanes<T>;
  const int64_t length = 2 * n;
  int64_t k = 0;
  const auto scales = S::splat(scale), ratios = S::splat(ratio);
  for (; k + S::W <= length; k += S::W) {
    auto t = S::load(target + k);
    auto e = S::load(estimate + k) - t;
    if constexpr (Masked) {
      e = L::blank(e, L::words(mask + k));
      t = L::blank(t, L::words(mask + k));
    }
    auto g = scales * e, r = ratios * t;
    if constexpr (Masked) {
      // Again: an infinite scale (nothing off the diagonal is kept, eps = 0) times 0 is NaN.
      g = L::blank(g, L::words(mask + k));
      r = L::blank(r, L::words(mask + k));
    }
    if constexpr (Estimate) S::store(grad_estimate + k, g);
    if constexpr (Target) S::store(grad_target + k, -(g + r));
  }
  for (; k < length; ++k) {
    const bool keep = !Masked || mask[k] != 0;
    const T g = keep ? scale * (estimate[k] - target[k]) : T(0);
    if constexpr (Estimate) grad_estimate[k] = g;
    if constexpr (Target) grad_target[k] = -(g + (keep ? ratio * target[k] : T(0)));
  }
}

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
};

template <typename T, bool Masked>
void scene_sums(const NmseProblem<T>& p, int64_t b, const Buffers<T>& buffers, T* sums) {
  const RowReader<T> estimate(p.estimate + 2 * b * p.estimate_stride[0], p.estimate_stride,
                              p.elements, buffers.estimate);
  const RowReader<T> target(p.target + 2 * b * p.target_stride[0], p.target_stride, p.elements,
                            buffers.target);
  // Rows are summed in the working precision and added up in double.
  double diagonal_error = 0, off_error = 0, diagonal_power = 0, off_power = 0;
  for (int64_t i = 0; i < p.elements; ++i) {
    if (Masked && buffers.mask[2 * i] == 0) continue;
    const T* e = estimate.row(i);
    const T* t = target.row(i);
    const auto off = row_sums<T, Masked>(e, t, p.elements, i, buffers.mask);
    off_error += off.error;
    off_power += off.target;
    const T re = e[2 * i] - t[2 * i], im = e[2 * i + 1] - t[2 * i + 1];
    diagonal_error += re * re + im * im;
    diagonal_power += t[2 * i] * t[2 * i] + t[2 * i + 1] * t[2 * i + 1];
  }
  sums[0] = static_cast<T>(diagonal_error);
  sums[1] = static_cast<T>(off_error);
  sums[2] = static_cast<T>(diagonal_power);
  sums[3] = static_cast<T>(off_power);
}

template <typename T, bool Masked, bool Estimate, bool Target>
void scene_gradient(const NmseProblem<T>& p, int64_t b, const Buffers<T>& buffers, T grad,
                    const T* sums, T* grad_estimate, T* grad_target) {
  const int64_t n = p.elements;
  const RowReader<T> estimate(p.estimate + 2 * b * p.estimate_stride[0], p.estimate_stride, n,
                              buffers.estimate);
  const RowReader<T> target(p.target + 2 * b * p.target_stride[0], p.target_stride, n,
                            buffers.target);
  const double total = p.lam_diag + p.lam_off;
  const double at_diagonal = 2 * grad * p.lam_diag / (total * (sums[2] + p.eps));
  const double at_off = 2 * grad * p.lam_off / (total * (sums[3] + p.eps));
  const T scale_d = static_cast<T>(at_diagonal), scale_o = static_cast<T>(at_off);
  const T ratio_d = static_cast<T>(at_diagonal * sums[0] / (sums[2] + p.eps));
  const T ratio_o = static_cast<T>(at_off * sums[1] / (sums[3] + p.eps));
  for (int64_t i = 0; i < n; ++i) {
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
    row_gradient<T, Masked, Estimate, Target>(e, t, n, scale_o, ratio_o, buffers.mask, ge, gt);
    for (int64_t k = 2 * i; k < 2 * i + 2; ++k) {
      const T g = scale_d * (e[k] - t[k]);
      if constexpr (Estimate) ge[k] = g;
      if constexpr (Target) gt[k] = -(g + ratio_d * t[k]);
    }
  }
}

}  // namespace

template <typename T>
void hermitian_nmse_forward(const NmseProblem<T>& p, T* nmse, T* sums, int64_t begin, int64_t end) {
  const Buffers<T> buffers(p.elements);
  for (int64_t b = begin; b < end; ++b) {
    T* const s = sums + 4 * b;
    if (p.mask == nullptr) {
      scene_sums<T, false>(p, b, buffers, s);
    } else {
      expand_mask<T>(p.mask + b * p.mask_stride[0], p.mask_stride[1], p.elements, buffers.mask);
      scene_sums<T, true>(p, b, buffers, s);
    }
    const double parts = p.lam_diag * s[0] / (s[2] + p.eps) + p.lam_off * s[1] / (s[3] + p.eps);
    nmse[b] = static_cast<T>(parts / (p.lam_diag + p.lam_off));
  }
}

template <typename T>
void hermitian_nmse_backward(const NmseProblem<T>& p, const T* grad, int64_t grad_stride,
                             const T* sums, T* grad_estimate, T* grad_target, int64_t begin,
                             int64_t end) {
  const Buffers<T> buffers(p.elements);
  const int64_t size = 2 * p.elements * p.elements;
  for (int64_t b = begin; b < end; ++b) {
    if (p.mask != nullptr)
      expand_mask<T>(p.mask + b * p.mask_stride[0], p.mask_stride[1], p.elements, buffers.mask);
    const auto run = [&](auto kernel) {
      kernel(p, b, buffers, grad[b * grad_stride], sums + 4 * b,
             grad_estimate == nullptr ? nullptr : grad_estimate + b * size,
             grad_target == nullptr ? nullptr : grad_target + b * size);
    };
    if (grad_target == nullptr)
      run(p.mask == nullptr ? scene_gradient<T, false, true, false>
                            : scene_gradient<T, true, true, false>);
    else if (grad_estimate == nullptr)
      run(p.mask == nullptr ? scene_gradient<T, false, false, true>
                            : scene_gradient<T, true, false, true>);
    else
      run(p.mask == nullptr ? scene_gradient<T, false, true, true>
                            : scene_gradient<T, true, true, true>);
  }
}

template void hermitian_nmse_forward<float>(const NmseProblem<float>&, float*, float*, int64_t,
                                            int64_t);
template void hermitian_nmse_forward<double>(const NmseProblem<double>&, double*, double*, int64_t,
                                             int64_t);
template void hermitian_nmse_backward<float>(const NmseProblem<float>&, const float*, int64_t,
                                             const float*, float*, float*, int64_t, int64_t);
template void hermitian_nmse_backward<double>(const NmseProblem<double>&, const double*, int64_t,
                                              const double*, double*, double*, int64_t, int64_t);

}  // namespace riskernels::RISKERNELS_ISA
