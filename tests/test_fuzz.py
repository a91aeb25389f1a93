# SPDX-License-Identifier: Apache-2.0
"""The cases that fuzzing starts from, and that it finds what it is there to find.

``make fuzz`` does the fuzzing; here nothing is searched for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from fuzz import fuzz_operators, target, templates
from fuzz.fuzz_operators import test as run_operator
from riskernels import library

CASES = [
    pytest.param(path, id=f"{path.parent.name}-{path.name}")
    for path in sorted(target.CORPUS.rglob("*"))
    if path.is_file()
]


@pytest.mark.parametrize("path", CASES)
def test_every_committed_case_passes(path: Path) -> None:
    importlib.import_module(f"fuzz.fuzz_{path.parent.name}").test(path.read_bytes())


def test_every_operator_is_fuzzed() -> None:
    assert {template.op for template in templates.templates()} == set(library.operators())
    seeds = [path for path in (target.CORPUS / "operators").iterdir()]
    assert len(seeds) >= len(templates.templates())


def test_the_plain_call_of_every_template_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fake, the library and the reference: otherwise only their checks are fuzzed."""
    answer = fuzz_operators._refusal
    answers: list[str | None] = []

    def recorded(*args: Any) -> tuple[Any, str | None]:
        result, words = answer(*args)
        answers.append(words)
        return result, words

    monkeypatch.setattr(fuzz_operators, "_refusal", recorded)
    for index, template in enumerate(templates.templates()):
        answers.clear()
        run_operator(bytes([index]))
        assert answers == [None] * 3, (template.op, answers)


def _first(op: str) -> bytes:
    """The case that is a plain call of ``op``."""
    names = [template.op for template in templates.templates()]
    return bytes([names.index(op)])


@pytest.mark.parametrize("op", ["hermitian_nmse_forward", "tikhonov_snapshots"])
def test_a_wrong_result_is_a_finding(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one in ten thousand, in the last scene alone."""
    correct = library._references[op]

    def wrong(*args: object, **kwargs: object) -> object:
        results = correct(*args, **kwargs)
        first = results[0] if isinstance(results, tuple) else results
        factor = torch.ones(first.shape[0], dtype=first.dtype)
        factor[-1] = 1 + 1e-4
        off = first * factor.reshape(-1, *[1] * (first.dim() - 1))
        return (off, *results[1:]) if isinstance(results, tuple) else off

    run_operator(_first(op))
    monkeypatch.setitem(library._references, op, wrong)
    with pytest.raises(target.FindingError, match=f"{op}, result 0"):
        run_operator(_first(op))


def test_other_words_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    op = "hermitian_nmse_forward"

    def refuse(*args: object, **kwargs: object) -> object:
        raise RuntimeError("riskernels::hermitian_nmse: something else")

    monkeypatch.setitem(library._references, op, refuse)
    with pytest.raises(target.FindingError, match="the library says None, the reference"):
        run_operator(_first(op))
    monkeypatch.setitem(library._references, op, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_operator(_first(op))
