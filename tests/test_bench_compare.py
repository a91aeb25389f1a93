# SPDX-License-Identifier: Apache-2.0
"""Comparing two runs as ratios to peers, and the guard that measures one of them anew."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import compare, guard, machine, registry, run
from bench.__main__ import main

BASELINES = sorted(machine.ROOT.glob("bench/results/cpu_*_1thread.json"))
SETTINGS = run.Settings(rounds=5, seconds_per_entry=0.05, measure_memory=False)
FORWARD = "tikhonov_covariance/forward/B64-L16-M16-N144"


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads(BASELINES[0].read_text())


@pytest.fixture
def changed(committed) -> dict:
    return copy.deepcopy(committed)


def case_of(report: dict, identifier: str = FORWARD) -> dict:
    return next(case for case in report["cases"] if case["identifier"] == identifier)


def entry_of(report: dict, name: str, identifier: str = FORWARD) -> dict:
    return next(e for e in case_of(report, identifier)["entries"] if e["name"] == name)


def written(folder: Path, *reports: dict) -> list[str]:
    paths = [folder / f"{name}.json" for name in "AB"[: len(reports)]]
    for path, report in zip(paths, reports, strict=True):
        path.write_text(json.dumps(report))
    return [str(path) for path in paths]


def test_a_run_on_a_faster_machine_compares_as_equal(committed, changed, tmp_path, capsys):
    for case in changed["cases"]:
        for entry in case["entries"]:
            if entry["status"] == "measured":
                entry["median"] *= 0.37
    found = compare.compare(committed, changed)
    assert len(found.cases) == len(committed["cases"]) and not found.left_out
    assert all(case.change == pytest.approx(1) for case in found.cases)
    before, after = next(c for c in found.cases if c.identifier == FORWARD).ratios["jax_jit"]
    times = (entry_of(committed, name)["median"] for name in ("riskernels", "jax_jit"))
    kernel, peer = times
    assert before == pytest.approx(kernel / peer) == pytest.approx(after)
    assert not any(peer.startswith("riskernels") for case in found.cases for peer in case.ratios)
    assert main(["--compare", *written(tmp_path, committed, changed)]) == 0
    assert "0 worse by more than 1.6" in capsys.readouterr().out


@pytest.mark.parametrize("factor,bound,status", [(3.0, 2.0, 1), (1.5, 1.6, 0), (1.5, 1.4, 1)])
def test_a_slower_kernel_is_named_and_fails(
    committed, changed, tmp_path, capsys, factor, bound, status
):
    entry_of(changed, "riskernels")["median"] *= factor
    paths = written(tmp_path, committed, changed)
    assert main(["--compare", *paths, "--bound", str(bound)]) == status
    lines = capsys.readouterr().out.splitlines()
    verdicts = {
        lines[index]: next(x for x in lines[index:] if "fastest peer" in x)
        for index in range(len(lines))
        if "/" in lines[index] and not lines[index].startswith(" ")
    }
    assert len(verdicts) >= len(committed["cases"])
    for identifier, verdict in verdicts.items():
        if identifier == FORWARD:
            assert f"{factor:.2f}" in verdict and ("worse" in verdict) == bool(status)
        elif identifier in {case["identifier"] for case in committed["cases"]}:
            assert verdict.endswith("1.00  ok")
    # The others alone are fine.
    others = ["--compare", *paths, "--op", "hermitian_nmse", "--bound", str(bound)]
    assert main(others) == 0


def test_the_fastest_common_peer_counts_and_nothing_is_dropped_unsaid(committed, changed):
    same = next(c for c in compare.compare(committed, changed).cases if c.identifier == FORWARD)
    fastest = max(same.ratios, key=lambda name: same.ratios[name][0])
    best = entry_of(changed, fastest)
    best["median"] /= 4
    found = next(c for c in compare.compare(committed, changed).cases if c.identifier == FORWARD)
    assert found.change == pytest.approx(4)
    # Without that peer in B the next one is the measure, and the reader is told.
    best.update(status="skipped", reason="not installed")
    changed["cases"] = [c for c in changed["cases"] if c["operator"] != "hermitian_nmse"]
    case_of(changed, "tikhonov_covariance/gradient/B64-L16-M16-N144")["entries"] = [
        {"name": "riskernels", "kind": "kernel", "status": "refused"}
    ]
    comparison = compare.compare(committed, changed)
    by_name = {case.identifier: case for case in comparison.cases}
    assert by_name[FORWARD].change == pytest.approx(1)
    assert f"{fastest}: only in A, 1 case" in comparison.left_out
    assert "hermitian_nmse/forward/B64-N144: only in A" in comparison.left_out
    refused = "tikhonov_covariance/gradient/B64-L16-M16-N144"
    assert f"{refused}: the kernel was not measured in B" in comparison.left_out
    text = compare.describe(comparison, committed, changed, 2.0)
    assert all(reason in text for reason in comparison.left_out)
    assert compare.refused_kernels(changed) == [refused]


def test_a_time_that_is_no_number_is_worse(committed, changed):
    entry_of(changed, "riskernels")["median"] = float("nan")
    assert compare.compare(committed, changed).worse(2.0) == [FORWARD]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"threads": 2}, "threads: 1 in A, 2 in B"),
        ({"device": "cuda"}, "device: cpu in A, cuda in B"),
        ({"schema": 0}, "B has schema 0"),
        ({"cases": []}, "no case with a common peer"),
    ],
)
def test_what_cannot_be_compared_is_an_error(committed, tmp_path, capsys, change, message):
    paths = written(tmp_path, committed, {**committed, **change})
    with pytest.raises(SystemExit) as stop:
        main(["--compare", *paths])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--compare", "no_such_file.json"], "no_such_file.json"),
        (["--compare", "pyproject.toml"], "pyproject.toml"),
        (["--compare", "a", "b", "c"], "one or two files"),
        (["--compare", "a", "b", "--list"], "--compare and --list exclude each other"),
        (["--compare", "a", "--bound", "0.5"], "above 1"),
    ],
)
def test_wrong_options_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(machine.ROOT)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def small(operator: str = "hermitian_nmse", **sizes: int) -> registry.Case:
    return replace(registry.operators()[operator].cases[0], sizes={"B": 16, "N": 48} | sizes)


def rivals(*names: str) -> list[registry.Peer]:
    return [peer for peer in registry.peers() if peer.name in names]


@pytest.fixture(autouse=True)
def threads_kept():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="module")
def measured() -> dict:
    torch.set_num_threads(1)
    results = guard._measure([small()], SETTINGS, rivals("torch_eager"), lambda text: None)
    return {
        "schema": 1,
        "device": "cpu",
        "threads": 1,
        "machine": {"cpu": "a CPU"},
        "versions": {"simd_level": "avx2", "torch": "2.13"},
        "commit": None,
        "cases": list(results.values()),
    }


def test_a_kernel_made_slower_is_found_by_measuring_and_not_excused(measured, monkeypatch):
    slow = registry.operators()["hermitian_nmse"]

    def kernel(case, inputs):
        call = registry.operators()["hermitian_nmse"].kernel(case, inputs)

        def repeated():
            for _ in range(100):
                outputs = call()
            return outputs

        return repeated

    known = {"hermitian_nmse": replace(slow, kernel=kernel)}
    monkeypatch.setattr(guard, "operators", lambda: known)
    log: list[str] = []
    now, found = guard.measure_again(
        measured, [small()], SETTINGS, rivals("torch_eager", "torch_eager_abs"), 3.0, log.append
    )
    assert found.worse(3.0) == [small().identifier]
    assert log.count(f"measuring {small().identifier}") == 2
    # Only what the base has is measured.
    names = {entry["name"] for case in now["cases"] for entry in case["entries"]}
    assert names == {"riskernels", "torch_eager"}


def test_one_bad_moment_is_excused(measured, monkeypatch):
    asked = []

    def run_case(case, operator, rivals, settings, on):
        asked.append(settings)
        result = copy.deepcopy(measured["cases"][0])
        if len(asked) == 1:
            result["entries"][0]["median"] *= 5
        return result

    monkeypatch.setattr(guard, "run_case", run_case)
    _, found = guard.measure_again(measured, [small()], SETTINGS, rivals("torch_eager"), 2.0)
    assert found.cases[0].change == 1 and not found.worse(2.0)
    assert asked[1].rounds == guard.PATIENCE * asked[0].rounds
    assert asked[1].seconds_per_entry == guard.PATIENCE * asked[0].seconds_per_entry


@pytest.mark.parametrize("claim,status", [(50.0, 1), (0.02, 0)])
def test_the_command_measures_and_its_status_says_so(
    measured, tmp_path, monkeypatch, capsys, claim, status
):
    """The base claims a kernel so many times faster than it is."""
    pinned = []
    monkeypatch.setattr("bench.__main__.pin", lambda threads, on: pinned.append(threads))
    claimed = copy.deepcopy(measured)
    claimed["cases"][0]["entries"][0]["median"] /= claim
    (path,) = written(tmp_path, claimed)
    command = ["--compare", path, "--shapes", "B=16,N=48", "--case", "hermitian_nmse/forward/"]
    assert main([*command, "--repeats", "3", "--bound", "3"]) == status
    text = capsys.readouterr().out
    assert pinned == [1] and ("measured again, for longer" in text) == bool(status)
    assert f"1 case compared, {status} worse by more than 3" in text


def test_the_guard_of_the_makefile_is_in_the_committed_run(committed):
    """Each of its patterns is one case, of the suite as of the file, with one of its peers."""
    text = (machine.ROOT / "Makefile").read_text().replace("\\\n", " ")
    guarded, peers = (
        re.search(rf"^{name} := (.*)$", text, re.MULTILINE)[1].split()
        for name in ("GUARDED", "GUARD_PEERS")
    )
    assert len(guarded) >= 6
    for pattern in guarded:
        (case,) = registry.select(patterns=[pattern])
        kept = compare.restrict(committed, patterns=[pattern], peers=peers)
        (found,) = kept["cases"]
        assert found["identifier"] == case.identifier
        assert compare.peers_of(found)
    needed = {name for peer in registry.peers() if peer.name in peers for name in peer.requires}
    assert not needed, "peers that CI does not install"
