// SPDX-License-Identifier: Apache-2.0
// Checks and unpacks the inputs that the Tikhonov operators share.
#pragma once

#include "../common/tikhonov_problem.hpp"
#include "outputs.hpp"
#include "tensor_checks.hpp"

namespace riskernels {

void check_tikhonov(const char* op, const Tensor& y, const Tensor& h, const Tensor& codes,
                    double alpha);

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
                  bool with_h, bool with_codes);

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
