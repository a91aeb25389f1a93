# SPDX-License-Identifier: Apache-2.0
"""Backends under test, poisoned memory, and the record of what a run exercised."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from random_seed import run_seed, seed_generators, seed_of

from riskernels import library

_exercised: set[str] = set()
_checks: set[str] = set()

# Tests run in parallel processes; a pool of threads in each would only make them wait.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Backend:
    """A backend and a device that it serves."""

    name: str
    device: str


def _backends() -> list[Backend]:
    status = library.backend_status()
    found = [Backend("reference", "cpu")]
    if status["cpu"].available:
        found.append(Backend("cpu", "cpu"))
    if torch.cuda.is_available():
        found.append(Backend("reference", "cuda"))
        found += [Backend(n, "cuda") for n in ("cuda", "triton") if status[n].available]
    return found


@pytest.fixture(params=_backends(), ids=lambda b: f"{b.name}-{b.device}")
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every available backend in turn, selected while the test runs."""
    _exercised.add(request.param.name)
    with library.use_backend(request.param.name):
        yield request.param


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own; see random_seed.py."""
    return seed_of(request.node.nodeid)


@pytest.fixture(autouse=True)
def _seeded_generators(request: pytest.FixtureRequest) -> None:
    seed_generators(seed_of(request.node.nodeid))


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory holds NaN, so an output that is not written shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


def pytest_report_header() -> str:
    return f"random inputs: RISKERNELS_TEST_SEED={run_seed()}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "check(name): part of a check that a run can be asked for")
    config.addinivalue_line("markers", "lasts(seconds): about, where nothing is compiled yet")
    # By default xdist gives each process a long run of neighbours, the longest tests all to one.
    if getattr(config.option, "maxschedchunk", 0) is None:
        config.option.maxschedchunk = 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Seed the property tests, and put the longest tests first: processes that take one test after
    another then end together."""
    for item in items:
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj):
            hypothesis.seed(seed_of(f"{item.path.name}::{item.originalname}"))(item.function)
    items.sort(key=lambda item: -max((m.args[0] for m in item.iter_markers("lasts")), default=0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Record the checks of which a test has passed."""
    yield
    _checks.update(name for marker in item.iter_markers("check") for name in marker.args)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Collect what a parallel worker exercised."""
    _exercised.update(getattr(node, "workeroutput", {}).get("backends", ()))
    _checks.update(getattr(node, "workeroutput", {}).get("checks", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind, names in (("backends", _exercised), ("checks of GPU code", _checks)):
        if names:
            terminalreporter.write_line(f"{kind} exercised: {', '.join(sorted(names))}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that did not exercise what it was asked for.

    RISKERNELS_EXPECT_BACKENDS=a,b asks for exactly these backends, RISKERNELS_EXPECT_CHECKS=a,b for
    at least these checks.
    """
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["backends"] = sorted(_exercised)
        session.config.workeroutput["checks"] = sorted(_checks)
        return
    expected = os.environ.get("RISKERNELS_EXPECT_BACKENDS")
    if expected and _exercised != set(expected.split(",")):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nbackends exercised: {sorted(_exercised)}, expected: {expected}")
    wanted = os.environ.get("RISKERNELS_EXPECT_CHECKS")
    missing = set(wanted.split(",")) - _checks if wanted else set()
    if missing:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nchecks not exercised: {sorted(missing)}")
