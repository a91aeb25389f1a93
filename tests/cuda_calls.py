# SPDX-License-Identifier: Apache-2.0
"""Calls of the host entry points of csrc/cuda, which :mod:`cuda_resources` compiles."""

from __future__ import annotations

TIKHONOV = """
void {op}(const Target& target, const TikhonovProblem<T>& problem,
          const IncomingGradient<T>& grad, const TikhonovGradients<T>& gradients, T* out) {{
  riskernels::cuda::{op}(target, problem, out);
  riskernels::cuda::{op}_backward(target, problem, grad, gradients);
}}
"""
NMSE = """
void hermitian_nmse(const Target& target, const NmseProblem<T>& problem, const T* grad, T* nmse,
                    T* sums, T* to_estimate, T* to_target) {
  hermitian_nmse_forward(target, problem, nmse, sums);
  const T* const saved = sums;
  hermitian_nmse_backward(target, problem, grad, int64_t{1}, saved, to_estimate, to_target);
}
"""
SPECTRUM = """
void factored_spectrum(const Target& target, const FactoredSpectrumProblem<T>& problem,
                       const T* grad, const int64_t* stride, T* values, T* vectors, T* to_factor,
                       T* to_rho) {
  factored_spectrum_forward(target, problem, values, vectors);
  const T* const saved = vectors;
  factored_spectrum_backward(target, problem, grad, stride, saved, to_factor, to_rho);
}
"""
BLEND = """
void blend_covariance(const Target& target, const BlendProblem<T>& problem,
                      const IncomingGradient<T>& grad, T* out, T* to_pred) {
  blend_covariance(target, problem, out);
  blend_covariance_backward(target, problem, grad, to_pred);
}
"""
LEAKAGE = """
void subspace_leakage(const Target& target, const LeakageProblem<T>& problem,
                      const LeakageState<T>& state, const T* grad, T* to_cov) {
  subspace_leakage_forward(target, problem, state);
  subspace_leakage_backward(target, problem, state, grad, int64_t{1}, to_cov);
}
"""
FACTORED_BLEND = """
void factored_blend(const Target& target, const FactoredBlendProblem<T>& problem,
                    const IncomingGradient<T>& grad, T* out, T* rho, T* to_factor) {
  riskernels::cuda::factored_blend(target, problem, out, rho);
  factored_blend_backward(target, problem, grad, to_factor);
}
"""
FACTORED_NMSE = """
void factored_nmse(const Target& target, const FactoredNmseProblem<T>& problem, const T* grad,
                   T* nmse, double* sums, double* gram, T* to_factor, T* to_rho, T* to_target) {
  factored_nmse_forward(target, problem, nmse, sums, gram);
  const double *const saved = sums, *const products = gram;
  factored_nmse_backward(target, problem, grad, int64_t{1}, saved, products, to_factor, to_rho,
                         to_target);
}
"""
FACTORED_LEAKAGE = """
void factored_leakage(const Target& target, const FactoredLeakageProblem<T>& problem,
                      const T* grad, T* leakage, double* gram, T* to_factor, T* to_rho) {
  factored_leakage_forward(target, problem, leakage, gram);
  const T* const saved = leakage;
  const double* const products = gram;
  factored_leakage_backward(target, problem, grad, int64_t{1}, saved, products, to_factor, to_rho);
}
"""
STEERING = """
void steering_power(const Target& target, const SteeringProblem<T>& problem,
                    const PowerGradient<T>& grad, T* power, T* to_factor) {
  steering_power_forward(target, problem, power);
  steering_power_backward(target, problem, grad, to_factor);
}
"""
CALLS = {
    "tikhonov": {
        op: TIKHONOV.format(op=op) for op in ("tikhonov_covariance", "tikhonov_snapshots")
    },
    "hermitian_nmse": {"hermitian_nmse": NMSE},
    "factored": {
        "factored_blend": FACTORED_BLEND,
        "factored_nmse": FACTORED_NMSE,
        "factored_leakage": FACTORED_LEAKAGE,
        "factored_spectrum": SPECTRUM,
    },
    "blend_covariance": {"blend_covariance": BLEND},
    "subspace_leakage": {"subspace_leakage": LEAKAGE},
    "steering_power": {"steering_power": STEERING},
}
"""By file: calls of the host entry points, as the launchers and the block executor make them."""
