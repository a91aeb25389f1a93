# SPDX-License-Identifier: Apache-2.0
"""JAX jit: one factorisation where it holds, blocked push-through elsewhere, and all the rest.

Threads: XLA sizes its pool from the affinity of the process, which is set before JAX is imported.
On a GPU the arrays are PyTorch's own memory, and calls are queued as PyTorch's are: ``finish``
waits for the last one. Arguments are not donated: the caller still needs them. JAX's gradient of a
real function is the conjugate of PyTorch's, hence the conjugations.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.operators._tikhonov import ALPHA, one_factorisation
from bench.operators.hermitian_nmse import EPS, LAM_DIAG, LAM_OFF
from bench.peers import _jax_covariance, _jax_steering
from bench.peers._tikhonov import serves as serves_tikhonov
from bench.registry import Case, Inputs, Outputs, Peer


def _to_torch(outputs: Any) -> Outputs:
    import numpy

    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(torch.from_numpy(numpy.array(array)) for array in arrays)


def _array(tensor: torch.Tensor) -> Any:
    import jax

    if not tensor.is_cuda:
        return jax.numpy.asarray(tensor.numpy())
    if jax.default_backend() != "gpu":
        raise RuntimeError("this JAX was installed without CUDA")
    return jax.dlpack.from_dlpack(tensor.contiguous())


_compiled: dict[str, Any] = {}


def _jit(case: Case, function: Any) -> Any:
    """The compiled function of the case: one for all copies of its inputs."""
    import jax

    if case.identifier not in _compiled:
        _compiled.clear()
        _compiled[case.identifier] = jax.jit(function)
    return _compiled[case.identifier]


def _runner(case: Case, function: Any, inputs: Inputs, names: tuple[str, ...]):
    import jax

    values = [_array(inputs[name]) for name in names]
    compiled = _jit(case, function)
    if inputs[names[0]].is_cuda:
        return lambda: compiled(*values)

    def run() -> Any:
        return jax.block_until_ready(compiled(*values))

    return run


def _finish(outputs: Any) -> None:
    import jax

    jax.block_until_ready(outputs)


def _loaded_factor(gram: Any) -> Any:
    import jax

    loaded = gram + ALPHA * jax.numpy.eye(gram.shape[-1], dtype=gram.dtype)
    return jax.lax.linalg.cholesky(loaded, symmetrize_input=False)


def _power(x: Any) -> Any:
    return x.real**2 + x.imag**2


def _shared_factor(h: Any, codes: Any) -> Any:
    return _loaded_factor((h * _power(codes[:, :1])) @ h.conj().mT)


def _solve_rows(factor: Any, rhs: Any) -> Any:
    import jax

    return jax.scipy.linalg.cho_solve((factor, True), rhs.mT).mT


def snapshots_shared(y: Any, h: Any, codes: Any) -> Any:
    return (_solve_rows(_shared_factor(h, codes), y) @ h.conj()) * codes.conj()


def snapshots_push_through(y: Any, h: Any, codes: Any) -> Any:
    import jax

    b, length, m = y.shape
    if h.ndim == 4:
        phi = h * codes[:, :, None]
        factor = _loaded_factor(phi @ phi.conj().mT)
    else:
        weighted = (h[:, None] * _power(codes)[:, :, None]).reshape(b, length * m, -1)
        factor = _loaded_factor((weighted @ h.conj().mT).reshape(b, length, m, m))
    z = jax.scipy.linalg.cho_solve((factor, True), y[..., None])[..., 0]
    if h.ndim == 4:
        return jax.numpy.einsum("blmn,blm->bln", phi.conj(), z)
    return (z @ h.conj()) * codes.conj()


def _covariance(snapshots: Any) -> Any:
    def function(y: Any, h: Any, codes: Any) -> Any:
        a = snapshots(y * y.shape[1] ** -0.5, h, codes)
        return a.mT @ a.conj()

    return function


def covariance_and_gradients_shared(y: Any, h: Any, codes: Any, upstream: Any) -> Any:
    """The formulas of torch_shared_factorisation, all in one compiled function."""
    scale = y.shape[1] ** -0.5
    factor = _shared_factor(h, codes)
    z = _solve_rows(factor, y * scale)
    back_z = z @ h.conj()
    a = back_z * codes.conj()
    result = a.mT @ a.conj()
    grad_a = a @ (upstream.mT + upstream.conj())
    w = _solve_rows(factor, (grad_a * codes) @ h.mT)
    back_w = w @ h.conj()
    q = grad_a - back_w * codes.conj()
    grad_h = z.mT @ (q * codes).conj() - w.mT @ (a * codes).conj()
    return result, w * scale, grad_h, q.conj() * back_z - a.conj() * back_w


def _with_gradients(forward: Any) -> Any:
    def function(y: Any, h: Any, codes: Any, upstream: Any) -> Any:
        import jax

        result, pull = jax.vjp(forward, y, h, codes)
        return (result, *(gradient.conj() for gradient in pull(upstream.conj())))

    return function


def prepare_tikhonov(case: Case, inputs: Inputs):
    shared = one_factorisation(case)
    covariance = case.operator == "tikhonov_covariance"
    if case.gradients and shared and covariance:
        names = ("y", "h", "codes", "upstream")
        return _runner(case, covariance_and_gradients_shared, inputs, names)
    # Differentiated as it stands, the one factor would give a wrong gradient to the codes.
    snapshots = snapshots_shared if shared and not case.gradients else snapshots_push_through
    function = _covariance(snapshots) if covariance else snapshots
    if case.gradients:
        return _runner(case, _with_gradients(function), inputs, ("y", "h", "codes", "upstream"))
    return _runner(case, function, inputs, ("y", "h", "codes"))


def nmse(estimate: Any, target: Any) -> Any:
    import jax

    def energies(matrix: Any) -> tuple[Any, Any]:
        diagonal = _power(jax.numpy.diagonal(matrix, axis1=1, axis2=2)).sum(-1)
        return diagonal, _power(matrix).sum((1, 2)) - diagonal

    error_diag, error_off = energies(estimate - target)
    target_diag, target_off = energies(target)
    parts = LAM_DIAG * error_diag / (target_diag + EPS) + LAM_OFF * error_off / (target_off + EPS)
    return parts / (LAM_DIAG + LAM_OFF)


def prepare_nmse(case: Case, inputs: Inputs):
    import jax

    if not case.gradients:
        return _runner(case, nmse, inputs, ("estimate", "target"))
    indices = {"estimate": 0, "target": 1}
    wanted = tuple(indices[name] for name in case.gradients)

    def function(estimate: Any, target: Any, upstream: Any) -> Any:
        result, pull = jax.vjp(nmse, estimate, target)
        gradients = pull(upstream)
        return (result, *(gradients[i].conj() for i in wanted))

    return _runner(case, function, inputs, ("estimate", "target", "upstream"))


def prepare(case: Case, inputs: Inputs):
    if _jax_steering.serves(case):
        function, names = _jax_steering.call(case, inputs["factor"].device, _array)
        return _runner(case, function, inputs, names)
    if _jax_covariance.serves(case):
        function, names = _jax_covariance.call(case)
        return _runner(case, function, inputs, names)
    return (prepare_tikhonov if serves_tikhonov(case) else prepare_nmse)(case, inputs)


def serves(case: Case) -> bool:
    known = serves_tikhonov(case) or _jax_covariance.serves(case) or _jax_steering.serves(case)
    return known or case.operator == "hermitian_nmse"


PEERS = (
    Peer(
        "jax_jit",
        "JAX jit",
        serves,
        prepare,
        requires=("jax",),
        to_torch=_to_torch,
        finish=_finish,
    ),
)
