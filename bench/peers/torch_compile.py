# SPDX-License-Identifier: Apache-2.0
"""torch.compile of the best PyTorch forms: shared factorisation, push-through, NMSE, dense terms.

Inductor generates no code for complex arithmetic and calls the eager kernels there. The NMSE is
written on real views, which it fuses; for the difference of complex matrices taken before the
view, Inductor of torch 2.13 returns a gradient whose diagonal is wrong. The default mode is its
best here: ``max-autotune-no-cudagraphs`` tunes products of real matrices, and there are none.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from bench.operators._calls import torch_call
from bench.operators._tikhonov import ARGUMENTS, per_snapshot
from bench.peers import _covariance as covariance_peers
from bench.peers import (
    torch_eager,
    torch_push_through,
    torch_shared_factorisation,
    torch_steering,
)
from bench.peers._tikhonov import covariance
from bench.peers._tikhonov import serves as serves_tikhonov
from bench.registry import Case, Inputs, Peer

BACKEND = "inductor"


_compiled: dict[tuple[str, str], Any] = {}


def _compile(case: Case, function: Any) -> Any:
    """The compiled function of the case: one for all copies of its inputs."""
    key = (case.identifier, BACKEND)
    if key not in _compiled:
        torch._dynamo.reset()
        _compiled.clear()
        _compiled[key] = torch.compile(function, fullgraph=True, dynamic=False, backend=BACKEND)
    return _compiled[key]


def _quiet(run):
    """The first call compiles, and warns about complex operators that fall back to eager."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return run


def prepare_tikhonov(case: Case, inputs: Inputs):
    if torch_shared_factorisation.serves_shared(case):
        function, names = torch_shared_factorisation.call(case)
        compiled, values = _compile(case, function), [inputs[name] for name in names]

        def run():
            with torch.no_grad():
                return compiled(*values)

        return _quiet(run)
    module = torch_push_through
    snapshots = module.snapshots if per_snapshot(case) else module.snapshots_blocked
    function = _compile(case, covariance(snapshots, case))
    return _quiet(torch_call(function, case, inputs, ARGUMENTS))


def prepare_nmse(case: Case, inputs: Inputs):
    compiled = _compile(case, torch_eager.nmse_norms)
    return _quiet(torch_call(compiled, case, inputs, torch_eager.ARGUMENTS))


def prepare_steering(case: Case, inputs: Inputs):
    """One chunk compiled, the loop over chunks outside: unrolled, it would not end compiling."""
    compiled = _compile(case, torch_steering.chunk_power)
    return _quiet(torch_steering.prepare(case, inputs, compiled))


def prepare_covariance(case: Case, inputs: Inputs):
    function, arguments = covariance_peers.call(case)
    return _quiet(torch_call(_compile(case, function), case, inputs, arguments))


COVARIANCES = ("blend_covariance", "subspace_leakage")
"""Of the algebra on factors, which is matrix products of complex numbers, Inductor's code was no
faster than eager calls at any shape and took up to a minute to compile."""


def serves(case: Case) -> bool:
    simple = serves_tikhonov(case) or case.operator == "hermitian_nmse"
    return simple or case.operator in COVARIANCES or torch_steering.serves(case)


def prepare(case: Case, inputs: Inputs):
    if serves_tikhonov(case):
        return prepare_tikhonov(case, inputs)
    if torch_steering.serves(case):
        return prepare_steering(case, inputs)
    if case.operator in COVARIANCES:
        return prepare_covariance(case, inputs)
    return prepare_nmse(case, inputs)


PEERS = (
    Peer(
        "torch_compile",
        "torch.compile",
        serves,
        prepare,
    ),
)
