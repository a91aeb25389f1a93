// SPDX-License-Identifier: Apache-2.0
// The blend of the predicted and the sample covariance: its inputs as plain pointers and strides
// (in complex elements), dense and factored, and the coefficients that both forms share.
#pragma once

#include <cstdint>

#include "everywhere.hpp"

namespace riskernels {

struct BlendOptions {
  double beta;
  double target_trace;  // > 0; N where the caller gave none
  double loading, shrinkage;
};

template <typename T>
struct BlendProblem {
  int64_t scenes, elements;  // B, N
  const T* pred;             // [B, N, N]
  int64_t pred_stride[3];
  const T* samp;  // [B, N, N]
  int64_t samp_stride[3];
  BlendOptions options;
};

template <typename T>
struct FactoredBlendProblem {
  int64_t scenes, elements, columns, snapshots;  // B, N, K, L
  const T* factor;                               // [B, N, K]
  int64_t factor_stride[3];
  const T* samples;  // [B, L, N], the snapshots a_l
  int64_t samples_stride[3];
  BlendOptions options;
};

// R_blend = pred * R_pred + samp * R_samp + diagonal * I, R_pred and R_samp Hermitized.
struct BlendCoefficients {
  double pred, samp, diagonal;
};

// Trace normalisation, blend, loading, shrinkage and the final normalisation are affine in the two
// matrices, and every trace along the way follows from the two given. A trace that is zero or
// negative leaves its matrix out; one that is NaN makes its coefficient NaN.
RISKERNELS_EVERYWHERE BlendCoefficients blend_coefficients(double trace_pred, double trace_samp,
                                                           int64_t elements,
                                                           const BlendOptions& o) {
  const double n = static_cast<double>(elements);
  const bool has_pred = !(trace_pred <= 0), has_samp = !(trace_samp <= 0);
  const double share = (has_pred ? 1 - o.beta : 0.0) + (has_samp ? o.beta : 0.0);
  // Of a trace of n * share before loading; loading multiplies it by 1 + loading.
  const double scale = share > 0 ? o.target_trace / (n * share * (1 + o.loading)) : 0.0;
  const double keep = (1 - o.shrinkage) * scale;
  BlendCoefficients c;
  c.pred = has_pred ? keep * (1 - o.beta) * (n / trace_pred) : 0.0;
  c.samp = has_samp ? keep * o.beta * (n / trace_samp) : 0.0;
  c.diagonal = keep * o.loading * share + o.shrinkage * scale * (1 + o.loading) * share;
  return c;
}

}  // namespace riskernels
