# SPDX-License-Identifier: Apache-2.0
"""JAX of the operators on covariances and their factors: the algebra of ``_covariance``, fused.

Every function takes the arguments of its operator in their order; the gradient goes to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.operators import _covariance as covariance
from bench.operators import (
    blend_covariance,
    factored_blend,
    factored_leakage,
    factored_nmse,
    factored_spectrum,
    subspace_leakage,
)
from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF
from bench.peers._covariance import BLEND
from bench.registry import Case
from ris_pytorch_pipeline.eager import blend_coefficients


def _power(x: Any) -> Any:
    return x.real**2 + x.imag**2


def _energy(x: Any) -> Any:
    return _power(x).sum((1, 2))


def _trace(x: Any) -> Any:
    import jax

    return jax.numpy.trace(x.real, axis1=1, axis2=2)


def _blend(pred: Any, samp: Any) -> Any:
    import jax

    n = pred.shape[-1]
    c_pred, c_samp, diagonal = blend_coefficients(_trace(pred), _trace(samp), n, BLEND)
    half = pred * (0.5 * c_pred)[:, None, None] + samp * (0.5 * c_samp)[:, None, None]
    return half + half.conj().mT + diagonal * jax.numpy.eye(n)


def _basis(steering: Any, num_sources: Any) -> Any:
    import jax

    k = steering.shape[2]
    counted = jax.numpy.arange(k) < num_sources[:, None]
    columns = steering * counted[:, None]
    gram = columns.conj().mT @ columns + jax.numpy.eye(k) * ~counted[:, None]
    loaded = (gram + factor * covariance.RIDGE * jax.numpy.eye(k) for factor in (2, 1))
    root, lower = (jax.lax.linalg.cholesky(x, symmetrize_input=False) for x in loaded)
    return columns @ jax.scipy.linalg.cho_solve((lower, True), root)


def _leakage(cov: Any, steering: Any, num_sources: Any) -> Any:
    columns = _basis(steering, num_sources)
    inside = columns.conj().mT @ cov
    total = _energy(cov)
    return (total - 2 * _energy(inside) + _energy(inside @ columns)) / total


def _blend_factors(factor: Any, snapshots: Any) -> Any:
    import jax

    sample, length = snapshots.mT, snapshots.shape[1]
    traces = _energy(factor), _energy(sample) / length
    c_pred, c_samp, diagonal = blend_coefficients(*traces, factor.shape[1], BLEND)
    roots = (jax.numpy.sqrt(c)[:, None, None] for c in (c_pred, c_samp / length))
    parts = [x * root for x, root in zip((factor, sample), roots, strict=True)]
    return jax.numpy.concatenate(parts, axis=2), jax.numpy.full_like(c_samp, diagonal)


def _nmse(factor: Any, rho: Any, target: Any) -> Any:
    import jax

    r = factor.shape[2]
    columns = jax.numpy.concatenate([factor, target], axis=2)
    gram = columns.conj().mT @ columns
    rows_target = _power(target).sum(2)
    difference = _power(factor).sum(2) - rows_target
    target_diag = (rows_target**2).sum(1)
    target_off = _energy(gram[:, r:, r:]) - target_diag
    error_off = _energy(gram[:, :r, :r]) - 2 * _energy(gram[:, :r, r:]) + _energy(gram[:, r:, r:])
    error_off = error_off - (difference**2).sum(1)
    error_diag = ((difference + rho[:, None]) ** 2).sum(1)
    diagonal, off = error_diag / (target_diag + EPS), error_off / (target_off + EPS)
    return (LAM_DIAG * diagonal + LAM_OFF * off) / (LAM_DIAG + LAM_OFF)


def _leakage_of_factor(factor: Any, rho: Any, steering: Any, num_sources: Any) -> Any:
    columns = _basis(steering, num_sources)
    inside, gram = columns.conj().mT @ factor, factor.conj().mT @ factor
    overlap = columns.conj().mT @ columns
    total = _energy(gram) + 2 * rho * _trace(gram) + rho**2 * factor.shape[1]
    crossed = (inside.conj() * (inside @ gram)).real.sum((1, 2)) + 2 * rho * _energy(inside)
    crossed = crossed + rho**2 * _trace(overlap)
    both = _energy(inside @ inside.conj().mT + rho[:, None, None] * overlap)
    return (total - 2 * crossed + both) / total


def _spectrum(factor: Any, rho: Any) -> Any:
    import jax

    gram = factor.conj().mT @ factor
    return jax.numpy.linalg.eigvalsh(gram)[:, ::-1] + rho[:, None]


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    blend_covariance.NAME: (_blend, blend_covariance.ARGUMENTS),
    subspace_leakage.NAME: (_leakage, subspace_leakage.ARGUMENTS),
    factored_blend.NAME: (_blend_factors, factored_blend.ARGUMENTS),
    factored_nmse.NAME: (_nmse, factored_nmse.ARGUMENTS),
    factored_leakage.NAME: (_leakage_of_factor, factored_leakage.ARGUMENTS),
    factored_spectrum.NAME: (_spectrum, factored_spectrum.ARGUMENTS),
}


def serves(case: Case) -> bool:
    return case.operator in FUNCTIONS


def call(case: Case) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The function of a case, with its gradient where there is one, and its arguments' names."""
    function, names = FUNCTIONS[case.operator]
    if not case.gradients:
        return function, names

    def forward_and_backward(*arguments: Any) -> Any:
        import jax

        *values, upstream = arguments

        def first(x: Any) -> Any:
            outputs = function(x, *values[1:])
            return outputs if isinstance(outputs, tuple) else (outputs,)

        outputs, pull = jax.vjp(first, values[0])
        # rho of the blend does not depend on its factor: nothing arrives there.
        arriving = (upstream.conj(), *(jax.numpy.zeros_like(x) for x in outputs[1:]))
        (gradient,) = pull(arriving)
        return (*outputs, gradient.conj())

    return forward_and_backward, (*names, "upstream")
