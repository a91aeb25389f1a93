// SPDX-License-Identifier: Apache-2.0
#include "tikhonov_inputs.hpp"

#include <limits>

namespace riskernels {
namespace {

Tensor contiguous_like(const Tensor& tensor, bool needed) {
  const std::vector<int64_t> sizes = needed ? shape(tensor) : std::vector<int64_t>{0};
  return new_output(tensor, sizes);
}

}  // namespace

void check_tikhonov(const char* op, const Tensor& y, const Tensor& h, const Tensor& codes,
                    double alpha) {
  check_complex(op, "y", y);
  check_complex(op, "h", h, y);
  check_complex(op, "codes", codes, y);
  if (y.dim() != 3) fail(op, "y has shape ", shape_text(y), ", expected [B, L, M]");
  if (h.dim() != 3 && h.dim() != 4)
    fail(op, "h has shape ", shape_text(h), ", expected [B, M, N] or [B, L, M, N]");
  if (codes.dim() != 3) fail(op, "codes has shape ", shape_text(codes), ", expected [B, L, N]");
  const int64_t b = y.size(0), l = y.size(1), m = y.size(2), n = codes.size(2);
  const auto expected =
      h.dim() == 3 ? std::vector<int64_t>{b, m, n} : std::vector<int64_t>{b, l, m, n};
  if (codes.size(0) != b || codes.size(1) != l || shape(h) != expected)
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

GradientTensors::GradientTensors(const Tensor& y_in, const Tensor& h_in, const Tensor& codes_in,
                                 bool with_y, bool with_h, bool with_codes)
    : y(contiguous_like(y_in, with_y)),
      h(contiguous_like(h_in, with_h)),
      codes(contiguous_like(codes_in, with_codes)),
      need_y(with_y),
      need_h(with_h),
      need_codes(with_codes) {}

}  // namespace riskernels
