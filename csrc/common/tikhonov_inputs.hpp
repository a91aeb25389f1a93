// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs that the Tikhonov operators share, on every device.
#pragma once

#include <limits>

#include "outputs.hpp"
#include "tensor_checks.hpp"
#include "tikhonov_problem.hpp"

namespace riskernels {

inline void check_tikhonov(const char* op, DeviceType launcher, const Tensor& y, const Tensor& h,
                           const Tensor& codes, double alpha) {
  check_complex(op, "y", y);
  check_complex(op, "h", h, y);
  check_complex(op, "codes", codes, y);
  check_device(op, "y", y, launcher);
  if (y.dim() != 3) fail(op, "y has shape ", shape_text(y), ", expected [B, L, M]");
  if (h.dim() != 3 && h.dim() != 4)
    fail(op, "h has shape ", shape_text(h), ", expected [B, M, N] or [B, L, M, N]");
  if (codes.dim() != 3) fail(op, "codes has shape ", shape_text(codes), ", expected [B, L, N]");
  const int64_t b = y.size(0), l = y.size(1), m = y.size(2), n = codes.size(2);
  const bool h_fits = h.dim() == 3 ? has_shape(h, {b, m, n}) : has_shape(h, {b, l, m, n});
  if (codes.size(0) != b || codes.size(1) != l || !h_fits)
    fail(op, "sizes disagree: y ", shape_text(y), ", h ", shape_text(h), ", codes ",
         shape_text(codes), ", expected y [B, L, M], h [B, M, N] or [B, L, M, N], codes [B, L, N]");
  if (l < 1 || m < 1 || n < 1)
    fail(op, "L, M and N must be at least 1, got L=", l, ", M=", m, ", N=", n);
  const bool single = y.scalar_type() == ScalarType::ComplexFloat;
  using Float = std::numeric_limits<float>;
  using Double = std::numeric_limits<double>;
  const bool positive = alpha >= (single ? Float::min() : Double::min()) &&
                        alpha <= (single ? Float::max() : Double::max());
  if (!positive)
    fail(op, "alpha is ", alpha, ", expected a finite number > 0 (in units of |Phi|^2)");
}

template <typename T>
TikhonovProblem<T> tikhonov_problem(const Tensor& y, const Tensor& h, const Tensor& codes,
                                    double alpha, bool relative, bool center) {
  TikhonovProblem<T> p{};
  p.scenes = y.size(0);
  p.snapshots = y.size(1);
  p.antennas = y.size(2);
  p.elements = codes.size(2);
  p.y = real_pointer<T>(y);
  p.h = real_pointer<T>(h);
  p.codes = real_pointer<T>(codes);
  for (int i = 0; i < 3; ++i) {
    p.y_stride[i] = y.stride(i);
    p.codes_stride[i] = codes.stride(i);
  }
  p.h_per_snapshot = h.dim() == 4;
  p.h_stride[0] = h.stride(0);
  p.h_stride[1] = p.h_per_snapshot ? h.stride(1) : 0;
  p.h_stride[2] = h.stride(h.dim() - 2);
  p.h_stride[3] = h.stride(h.dim() - 1);
  p.alpha = alpha;
  p.relative = relative;
  p.center = center;
  return p;
}

// Outputs of a backward; a gradient that is not needed is an empty tensor.
struct GradientTensors {
  Tensor y, h, codes;
  bool need_y, need_h, need_codes;

  GradientTensors(const Tensor& y_in, const Tensor& h_in, const Tensor& codes_in, bool with_y,
                  bool with_h, bool with_codes)
      : y(new_gradient(y_in, with_y)),
        h(new_gradient(h_in, with_h)),
        codes(new_gradient(codes_in, with_codes)),
        need_y(with_y),
        need_h(with_h),
        need_codes(with_codes) {}

  template <typename T>
  TikhonovGradients<T> pointers() const {
    return {need_y ? mutable_real_pointer<T>(y) : nullptr,
            need_h ? mutable_real_pointer<T>(h) : nullptr,
            need_codes ? mutable_real_pointer<T>(codes) : nullptr};
  }
};

template <typename T>
IncomingGradient<T> incoming(const Tensor& grad) {
  return {real_pointer<T>(grad), {grad.stride(0), grad.stride(1), grad.stride(2)}};
}

}  // namespace riskernels
