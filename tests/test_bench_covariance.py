# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the covariance operators: definitions, the loss before and after, and memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import riskernels
from bench import memory, registry, run, table
from bench.operators import _covariance as covariance
from bench.operators import _losses as losses
from bench.operators import covariance_loss, factored_blend, factored_terms
from bench.peers import _covariance as eager
from bench.peers import seed_loop, torch_covariance
from bench.registry import Case
from riskernels.testing import assert_close

SETTINGS = run.Settings(rounds=3, seconds_per_entry=0.0, measure_memory=False)
CEILINGS = {
    "float32_flops": 1e11,
    "float64_flops": 5e10,
    "float32_flops_source": "a test",
    "float64_flops_source": "a test",
    "bandwidth": [{"bytes": 2**20, "read": 1e10, "copy": 2e10, "write": 1e10}],
}


def inputs_of(case: Case, seed: int = 1) -> dict[str, torch.Tensor]:
    operator = registry.operators()[case.operator]
    values = operator.inputs(case, torch.Generator().manual_seed(seed))

    def double(x: torch.Tensor) -> torch.Tensor:
        if x.is_complex():
            return x.to(torch.complex128)
        return x.double() if x.is_floating_point() else x

    return {name: double(value) for name, value in values.items()}


def step(**sizes: int) -> Case:
    case = covariance_loss.OPERATOR.cases[0]
    return replace(case, sizes={**case.sizes, **sizes})


def terms(variant: str = "terms", **sizes: int) -> Case:
    case = next(c for c in factored_terms.OPERATOR.cases if c.variant == variant)
    return replace(case, sizes={**case.sizes, **sizes})


def test_definitions_agree_with_n_by_n_projectors_and_eigenvalues():
    values = inputs_of(terms(B=3, N=20, r=7, k=3))
    matrix = covariance.dense(values["factor"], values["rho"])
    steering, counts = values["steering"], values["num_sources"]
    leakage = covariance.exact_leakage(matrix, steering, counts)
    spectrum = covariance.exact_spectrum(values["factor"], values["rho"])
    for b, count in enumerate(counts.tolist()):
        a = steering[b, :, :count]
        ridge = covariance.RIDGE * torch.eye(count, dtype=a.dtype)
        outside = torch.eye(20) - a @ torch.linalg.inv(a.mH @ a + ridge) @ a.mH
        leaked = (outside @ matrix[b] @ outside).abs().square().sum()
        assert_close(leakage[b], leaked / matrix[b].abs().square().sum(), 1e-12)
        assert_close(spectrum[b], torch.linalg.eigvalsh(matrix[b]).flip(0)[:7], 1e-12)


def test_the_factored_blend_is_the_dense_one():
    case = factored_blend.OPERATOR.cases[0]
    values = inputs_of(replace(case, sizes={"B": 3, "N": 10, "K": 2, "L": 4}))
    factor, snapshots = values["factor"], values["snapshots"]
    dense = covariance.exact_blend(factor @ factor.mH, snapshots.mT @ snapshots.conj())
    assert_close(covariance.dense(*factored_blend.exact_factor(factor, snapshots)), dense, 1e-13)
    assert_close(covariance.dense(*eager.blend_factors(factor, snapshots)), dense, 1e-13)


def test_every_form_of_the_loss_is_the_same_function():
    """In complex128, where nothing is lost; the ridge of the leakage is the seed's only liberty."""
    case = step(B=4, N=36, L=6, M=4)
    values = inputs_of(case)
    # Of unit modulus in complex128 too, so that sharing one factorisation is exact.
    values["codes"] = values["codes"] / values["codes"].abs()
    exact = covariance_loss.OPERATOR.oracle(case, values)
    arguments = covariance_loss.ARGUMENTS
    functions = {
        "kernel": (covariance_loss.factored, 1e-10),
        "eager": (eager.loss, 1e-10),
        "dense": (torch_covariance.loss_dense, 1e-10),
        "seed": (seed_loop.losses, 1e-6),
    }
    for name, (function, tolerance) in functions.items():
        found = covariance_loss.torch_call(function, case, values, arguments)()
        for got, want in zip(found, exact, strict=True):
            assert_close(got, want, tolerance, name)


def test_both_hinges_take_part_in_the_default_case():
    values = inputs_of(step())
    factor, counts = values["factor"], values["num_sources"]
    snapshots = riskernels.tikhonov_snapshots(values["y"], values["h"], values["codes"], 1e-3)
    blend, rho = riskernels.factored_blend(factor, snapshots, losses.BETA)
    gap = losses.eigengap(riskernels.factored_spectrum(blend, rho), counts)
    assert 0 < int((gap > 0).sum()) < len(gap)
    collapsed = torch.tensor([[9.95, 0.05], [6.0, 4.0], [10.0, 0.0]])
    counts = torch.tensor([2, 2, 1])
    # 0.05 of 10 is a quarter of the share asked for: half of 1 - 1/4.
    assert losses.margin(collapsed, counts).tolist() == pytest.approx([0.375, 0, 0], abs=1e-5)
    values = torch.tensor([[4.0, 3.0], [4.0, 1.0]])
    assert losses.eigengap(values, torch.tensor([1, 1])).tolist() == [0.25, 0.0]


def test_a_term_left_out_is_refused(monkeypatch):
    def none(cov, *rest):
        return cov.real.sum((1, 2)) * 0

    monkeypatch.setattr(riskernels, "subspace_leakage", none)
    case = step(B=3, N=16, L=4, M=4)
    rivals = [peer for peer in registry.peers() if peer.name == "riskernels_dense"]
    result = run.run_case(case, covariance_loss.OPERATOR, rivals, SETTINGS, timed=False)
    assert [entry["status"] for entry in result["entries"]] == ["correct", "refused"]


@pytest.mark.parametrize("scene,status", [(1, "refused"), (3, "correct"), (5, "refused")])
def test_a_case_may_verify_fewer_scenes(scene, status):
    case = replace(terms(B=6, N=12, r=4, k=2), verified_scenes=4)

    def kernel(case, inputs):
        outputs = factored_terms.OPERATOR.kernel(case, inputs)()
        outputs[0][scene] *= 2
        return lambda: outputs

    operator = replace(factored_terms.OPERATOR, kernel=kernel)
    settings = replace(SETTINGS, verified_scenes=5)
    result = run.run_case(case, operator, (), settings, timed=False)
    assert result["verified_scenes"] == 4
    # Verified are 0, 1, 4 and 5.
    assert result["entries"][0]["status"] == status


def test_float64_work_has_a_rate_of_its_own():
    cost = registry.Cost(1e9, 0.0, 0.0, footprint=1.0, formula="", double_flops=2e9)
    floor = run.machine_ceilings.floor(cost, CEILINGS)
    assert floor["seconds"] == pytest.approx(0.01 + 0.04) and floor["double_flops"] == 2e9
    for case in registry.select(["factored_nmse", "factored_spectrum", "covariance_loss"]):
        cost = registry.operators()[case.operator].cost(case)
        assert cost.double_flops > 0 and "float64 FLOPs" in cost.formula


def test_compositions_say_what_serves_them():
    case = terms(B=2, N=8, r=3, k=2)
    result = run.run_case(case, factored_terms.OPERATOR, (), SETTINGS, timed=False)
    uses = factored_terms.OPERATOR.uses
    served = {run.library.implementation(f"{name}_forward", "cpu") for name in uses}
    assert result["entries"][0]["backend"] == "+".join(sorted(served))


def test_memory_of_the_kernels_and_of_the_dense_rival():
    """Two mebibytes a thread beside the output, where N x N matrices take all that they hold."""
    threads = min(2, torch.get_num_threads())
    kernels = [
        case
        for operator in ("tikhonov_covariance", "hermitian_nmse")
        for case in registry.operators()[operator].cases
        if case.variant in ("forward", "gradient")
        and (case.sizes["B"], case.sizes["N"]) == (64, 144)
    ]
    composed = [terms(B=8, N=256), terms(factored_terms.SPECTRUM, B=8, N=256)]
    rivals = [peer for peer in registry.peers() if peer.name == "riskernels_dense"]
    found = memory.measure([*kernels, *composed], threads, rivals)
    assert len(kernels) == 4
    for case in kernels:
        result = found[case.identifier]
        assert result["bytes_beyond_output_per_thread"] <= memory.LIMIT_PER_THREAD, result
    matrices = 8 * 256 * 256 * 8
    for case, scenes in zip(composed, (8, 2), strict=True):
        kernel = found[case.identifier]
        dense = kernel["peers"]["riskernels_dense"]
        assert dense["measured_scenes"] == scenes
        # R, T and at least one gradient to R.
        assert 3 * matrices <= dense["bytes_beyond_output"] <= 16 * matrices
        assert kernel["bytes_beyond_output"] < dense["bytes_beyond_output"] / 4


@pytest.fixture(scope="module")
def report() -> dict:
    rivals = [peer for peer in registry.peers() if peer.name == "riskernels_dense"]
    results = []
    for case in (terms(B=2, N=8, r=3, k=2), step(B=3, N=16, L=4, M=4)):
        operator = registry.operators()[case.operator]
        results.append(run.run_case(case, operator, rivals, SETTINGS))
        run.add_floor(results[-1], operator.cost(case), CEILINGS)
    for size, result in ((2**21, results[0]), (100, results[1])):
        rival = {
            "bytes_beyond_output": 50 * 2**20,
            "bytes_beyond_output_per_thread": 1,
            "measured_scenes": 2 if size == 100 else result["sizes"]["B"],
        }
        result["memory"] = {
            "threads": 2,
            "bytes_beyond_output": size,
            "bytes_beyond_output_per_thread": size / 2,
            "peers": {"riskernels_dense": rival},
        }
    return {
        "schema": 1,
        "machine": {"cpu": "a CPU", "flags_level": "x86-64-v3"},
        "versions": {"torch": "2.13", "simd_level": "avx2"},
        "ceilings": CEILINGS,
        "threads": 2,
        "commit": "0" * 40,
        "modified": False,
        "created": "2030-01-01",
        "cases": results,
    }


def test_the_table_compares_memory_and_picks_operators(report):
    text = table.markdown(report, ["factored_terms"])
    assert "**`factored_terms`**" in text and "covariance_loss" not in text
    assert "| memory beyond output | 2.00 MiB |" in text
    assert "| memory beyond output, riskernels, dense | 50.00 MiB (25.0x) |" in text
    assert "50.0 GFLOP/s in float64 (a test)" in text
    both = table.markdown(report)
    assert "| memory beyond output, riskernels, dense | 50.00 MiB† |" in both
    assert "peak memory beyond the output" in run.describe(report["cases"][0])
    whole, scaled = (run.describe(case) for case in report["cases"])
    assert "riskernels_dense: 50.00 MiB\n" in whole + "\n"
    assert "riskernels_dense: 50.00 MiB (from 2 scenes)" in scaled
    with pytest.raises(ValueError, match="no case of hermitian_nmse"):
        table.markdown(report, ["hermitian_nmse"])


def test_marked_tables_are_redrawn_in_place(report, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(report))
    marks = ("<!-- table of run.json --op covariance_loss: begin -->", "<!-- end -->")
    document = tmp_path / "README.md"
    document.write_text(f"before\n{marks[0]}\nstale\n{marks[1]}\nafter\n")
    assert table.main(["--update", str(document)]) == 0
    text = document.read_text()
    drawn = table.markdown(report, ["covariance_loss"])
    assert text == f"before\n{marks[0]}\n{drawn}\n{marks[1]}\nafter\n"
    assert table.redraw(text, tmp_path) == text
    document.write_text("no table\n")
    with pytest.raises(SystemExit) as stop:
        table.main(["--update", str(document)])
    assert stop.value.code == 2 and "no table between" in capsys.readouterr().err
