# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite: its gate, its registry, its JSON and tables, and the memory it reports."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import riskernels
from bench import compare, machine, registry, run, table
from bench.__main__ import main
from bench.operators import _tikhonov
from bench.peers import torch_compile
from bench.registry import Case, Peer
from riskernels import library
from riskernels.testing import assert_close

TINY = {"B": 3, "L": 4, "M": 5, "N": 12, "K": 2, "r": 6, "k": 2, "G": 9}


def tiny(case: Case) -> Case:
    return replace(case, sizes={name: TINY[name] for name in case.sizes})


VARIANTS = {
    f"{case.operator}/{case.variant}": tiny(case)
    for operator in registry.operators().values()
    for case in operator.cases
}
SETTINGS = run.Settings(rounds=3, seconds_per_entry=0.0, measure_memory=False)
CEILINGS = {
    "float32_flops": 1e11,
    "float32_flops_source": "a test",
    "float64_flops": 5e10,
    "float64_flops_source": "a test",
    "bandwidth": [{"bytes": 2**20, "read": 1e10, "copy": 2e10, "write": 1e10}],
}


def wrong(operator: str) -> Peer:
    """A peer that answers fast, and wrong in one entry of one scene."""

    def prepare(case, inputs):
        outputs = registry.operators()[operator].oracle(case, inputs)
        broken = tuple(x.clone() for x in outputs)
        broken[0].view(-1)[-1] *= 1.5
        return lambda: broken

    return Peer("wrong", "a wrong peer", lambda case: True, prepare)


def entries(result: dict) -> dict[str, dict]:
    return {entry["name"]: entry for entry in result["entries"]}


# A backward on covariances checks its forward too.
CHECKED = [
    name
    for name, case in VARIANTS.items()
    if case.gradients or case.operator.startswith(("tikhonov", "hermitian", "steering"))
]


@pytest.mark.parametrize("identifier", CHECKED)
def test_kernel_and_every_peer_agree_with_complex128(identifier, monkeypatch):
    # Generating C++ takes seconds a case; the graph is captured and differentiated all the same.
    monkeypatch.setattr(torch_compile, "BACKEND", "aot_eager")
    case = VARIANTS[identifier]
    operator = registry.operators()[case.operator]
    result = run.run_case(case, operator, registry.peers(), SETTINGS, timed=False)
    for name, entry in entries(result).items():
        assert entry["status"] in ("correct", "skipped"), (name, entry)
        if entry["status"] == "correct":
            assert set(entry["errors"]) == set(operator.output_names(case))
    assert result["entries"][0]["error"] < 2e-6
    if "jax_jit" in entries(result):
        assert operator.name not in ("covariance_loss", "factored_terms")
    else:
        assert {"riskernels_dense", "torch_eager_factored"} < set(entries(result))


def test_both_forms_of_the_oracle_are_the_same_in_complex128():
    case = tiny(VARIANTS["tikhonov_snapshots/gradient"])
    operator = registry.operators()[case.operator]
    values = operator.inputs(case, torch.Generator().manual_seed(2))
    double = [values[name].to(torch.complex128) for name in _tikhonov.ARGUMENTS]
    one, other = (_tikhonov.oracle_snapshots(*double, largest=largest) for largest in (12, 11))
    assert not torch.equal(one, other)
    assert_close(one, other, 1e-11)


def test_every_public_operator_has_cases_and_the_peers_expected():
    public = {name for name in riskernels.__all__ if callable(getattr(riskernels, name))}
    public -= {"use_backend"}
    assert set(registry.operators()) == public | {"covariance_loss", "factored_terms"}
    compiled = {c.operator for c in VARIANTS.values() if torch_compile.serves(c)}
    assert compiled == {name for name in public if not name.startswith("factored")}


@pytest.mark.parametrize(
    "operator", ["hermitian_nmse", "tikhonov_covariance", "factored_blend", "covariance_loss"]
)
def test_a_wrong_peer_gets_no_speed(operator):
    case = next(case for case in VARIANTS.values() if case.operator == operator)
    result = run.run_case(case, registry.operators()[operator], (wrong(operator),), SETTINGS)
    run.add_floor(result, registry.operators()[operator].cost(case), CEILINGS)
    kernel, refused = result["entries"]
    assert kernel["status"] == "measured" and kernel["median"] > 0
    assert refused["status"] == "refused" and "median" not in refused
    assert "refused: relative error above" in run.describe(result)


@pytest.mark.parametrize("fault", ["error", "nan", "shape"])
def test_a_wrong_kernel_stops_the_case_and_fails_the_run(fault):
    case = VARIANTS["hermitian_nmse/forward"]
    operator = registry.operators()["hermitian_nmse"]

    def kernel(case, inputs):
        good = operator.kernel(case, inputs)()[0]
        bad = {"error": good * (1 + 1e-5), "nan": good * float("nan"), "shape": good[:1]}[fault]
        return lambda: (bad,)

    result = run.run_case(case, replace(operator, kernel=kernel), registry.peers(), SETTINGS)
    assert [entry["status"] for entry in result["entries"]] == ["refused"]
    run.add_floor(result, operator.cost(case), CEILINGS)
    assert "floor" not in result and "median" not in result["entries"][0]
    assert compare.refused_kernels({"cases": [result]}) == [case.identifier]


def test_a_missing_peer_is_skipped_by_name_and_a_failing_one_reported():
    def fail(case, inputs):
        raise RuntimeError("no compiler found")

    absent = Peer("absent", "An absent peer", lambda _: True, fail, requires=("no_such_module",))
    failing = Peer("failing", "A failing peer", lambda _: True, fail)
    case = VARIANTS["tikhonov_covariance/forward"]
    operator = registry.operators()["tikhonov_covariance"]
    result = run.run_case(case, operator, (absent, failing), SETTINGS)
    run.add_floor(result, operator.cost(case), CEILINGS)
    found = entries(result)
    assert found["absent"]["status"] == "skipped"
    assert found["absent"]["reason"] == "no_such_module not installed"
    assert found["failing"]["status"] == "failed"
    text = run.describe(result)
    assert "skipped: no_such_module not installed" in text and "no compiler found" in text


def test_json_holds_what_the_table_prints(tmp_path, monkeypatch):
    monkeypatch.setattr(run.machine_ceilings, "measure", lambda earlier=None: CEILINGS)
    cases = [VARIANTS["tikhonov_covariance/forward"], VARIANTS["hermitian_nmse/gradient"]]
    chosen = ("naive_loop", "torch_push_through", "torch_eager")
    rivals = [peer for peer in registry.peers() if peer.name in chosen]
    report = run.run(cases, SETTINGS, rivals, log=lambda _: None)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(report))
    read = json.loads(path.read_text())
    text = table.markdown(read)
    assert text == table.markdown(report)
    assert "**`tikhonov_covariance`**" in text and "PyTorch push-through" in text
    loop = entries(read["cases"][0])["naive_loop"]
    assert (loop["measured_scenes"], loop["scaled_by"]) == (2, 1.5) and "†" in text
    for case in read["cases"]:
        assert case["floor"]["seconds"] > 0
        for entry in case["entries"]:
            assert entry["q20"] <= entry["median"] <= entry["q80"]
            assert f"{entry['ratio_to_kernel']:.1f}x" in text or entry["kind"] == "kernel"
    with pytest.raises(ValueError, match="schema 0"):
        table.markdown({**read, "schema": 0})


def test_the_floor_is_the_larger_of_flops_and_bytes():
    cost = registry.Cost(2e9, 1e6, 1e6, footprint=2e6, formula="")
    floor = run.machine_ceilings.floor(cost, CEILINGS)
    assert floor["binds"] == "FLOPs" and floor["seconds"] == pytest.approx(0.02)
    floor = run.machine_ceilings.floor(replace(cost, flops=1.0, bytes_written=0.0), CEILINGS)
    assert floor["binds"] == "bytes" and floor["bandwidth_kind"] == "read"
    assert floor["seconds"] == pytest.approx(1e-4)


def test_a_later_measurement_never_lowers_a_ceiling(monkeypatch):
    ceilings = run.machine_ceilings
    monkeypatch.setattr(ceilings, "SIZES", (2**20,))
    monkeypatch.setattr(ceilings, "GEMM_SECONDS", 0.0)
    first = ceilings.measure()
    assert all(rate > 1e8 for rates in first["rates"].values() for rate in rates.values())
    registers = f"{library.simd_level()} multiply-adds"
    assert all(registers in rates for rates in first["rates"].values())
    highest = "sgemm 1536 of torch"
    earlier = {
        "rates": {kind: {name: 1.0 for name in rates} for kind, rates in first["rates"].items()},
        "bandwidth": [{"bytes": 2**20, "read": 1e15, "copy": 1.0, "write": 1.0}],
    }
    earlier["rates"]["float32"][highest] = 1e15
    merged = ceilings.measure(earlier)
    assert merged["float32_flops"] == 1e15 and merged["float32_flops_source"] == highest
    assert merged["bandwidth"][0]["read"] == 1e15 and merged["bandwidth"][0]["copy"] > 1e8
    assert merged["float64_flops"] > 1e8


def test_selection_and_its_errors(capsys):
    cases = registry.select(["tikhonov_covariance"], ["forward/"], ["B=2,N=20", "B=1"])
    assert [case.identifier.split("/")[2] for case in cases] == [
        "B2-L16-M16-N20",
        "B1-L16-M16-N144",
    ]
    both = registry.select(["hermitian_nmse"], ["forward/B64", "gradient/B512"])
    assert [case.variant for case in both] == ["forward", "gradient"]
    with pytest.raises(ValueError, match="no case contains 'one' or 'other'"):
        registry.select(patterns=["one", "other"])
    with pytest.raises(ValueError, match="unknown operator 'covariance'"):
        registry.select(["covariance"])
    with pytest.raises(ValueError, match="not 'Q'"):
        registry.select(shapes=["Q=3"])
    with pytest.raises(ValueError, match="positive integer, got '0'"):
        registry.select(shapes=["B=0"])
    with pytest.raises(SystemExit) as stop:
        main(["--threads", "100000"])
    assert stop.value.code == 2 and "CPUs" in capsys.readouterr().err


def test_the_memory_measurement_sees_temporaries():
    # In a process of its own, as every measurement: a benchmark that ran in this one keeps memory.
    code = """
import torch
from bench import memory

def call():
    temporary = torch.ones(64 * 2**20, dtype=torch.uint8)
    return (temporary[: 4 * 2**20].clone(),)

print(memory.peak_beyond_outputs(lambda: torch.ones(8), call))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=machine.ROOT, check=True
    )
    assert 58 * 2**20 < int(done.stdout) < 68 * 2**20


def test_runs_on_several_numbers_of_threads_stand_side_by_side(tmp_path):
    path = min(Path(__file__).parent.parent.glob("bench/results/cpu_*_1thread.json"))
    one = json.loads(path.read_text())
    chosen = [case for case in one["cases"] if "/B1-" in case["identifier"]]
    two = copy.deepcopy({**one, "threads": 2, "cases": chosen})
    for case in two["cases"]:
        entries(case)["riskernels"]["median"] /= 1.6
    text = table.threads_table([one, two])
    assert text.count("(1.60x)") == text.count("| `") == len(chosen) > 0
    assert "1 pinned thread," in text and "2 pinned threads," in text
    assert "riskernels, 1 thread | riskernels, 2 threads | fastest peer, 1 thread" in text
    for name, report in (("one", one), ("two", two)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    marked = "<!-- table of one.json two.json --op tikhonov_covariance: begin -->\n{}\n<!-- end -->"
    drawn = table.threads_table([one, two], ["tikhonov_covariance"])
    assert table.redraw(marked.format("stale"), tmp_path) == marked.format(drawn)
    # A pair of comments with nothing between them takes nothing that follows them.
    empty = marked.replace("\n{}\n", "\n")
    assert table.redraw(f"{empty}\n{empty}", tmp_path) == "\n".join(2 * [marked.format(drawn)])
    with pytest.raises(ValueError, match="different numbers"):
        table.threads_table([one, one])
    with pytest.raises(ValueError, match="no case in common"):
        table.threads_table([one, two], ["hermitian_nmse"])


def test_many_cases_of_an_operator_are_several_tables():
    path = min(Path(__file__).parent.parent.glob("bench/results/cpu_*_1thread.json"))
    report = json.loads(path.read_text())
    cases = [case for case in report["cases"] if case["operator"] == "hermitian_nmse"]
    report["cases"] = [*cases, *cases]
    text = table.markdown(report)
    assert len(cases) == 5 and text.count("**`hermitian_nmse`**") == 1
    heads = [line for line in text.splitlines() if line.startswith("|  |")]
    assert [head.count("<br>") for head in heads] == [6, 4]


@pytest.mark.parametrize("document", ["README.md", "docs/benchmarks.md"])
def test_the_tables_of_the_documents_are_the_committed_runs(document):
    path = Path(__file__).parent.parent / document
    text = path.read_text()
    assert len(table.MARKED.findall(text)) == text.count("<!-- table of ")
    assert table.redraw(text, path.parent) == text
