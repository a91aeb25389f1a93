# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark that a GPU uses, as far as they run without one."""

from __future__ import annotations

import importlib.util
import itertools
import json
from dataclasses import replace

import pytest
import torch

from bench import devices, machine, plot, registry, run, scaling, table
from bench.__main__ import main
from bench.registry import Case, Peer
from bench.timing import wall_clock

SETTINGS = run.Settings(rounds=3, seconds_per_entry=0.0, measure_memory=False)
CEILINGS = {
    "float32_flops": 1e11,
    "float32_flops_source": "a test",
    "bandwidth": [{"bytes": 2**20, "read": 1e10, "copy": 2e10, "write": 1e10}],
}
GPU = {
    "name": "NVIDIA H200 NVL",
    "compute_capability": "9.0",
    "driver": "580.0",
    "torch_cuda": "13.0",
}


def tiny(operator: str, variant: str = "forward", b: int = 5) -> Case:
    cases = registry.operators()[operator].cases
    case = next((c for c in cases if c.variant == variant), cases[0])
    sizes = {"B": b, "L": 4, "M": 5, "N": 12, "K": 2, "r": 6, "k": 2, "G": 9}
    return replace(case, sizes={name: sizes[name] for name in case.sizes})


class WithGraph(devices.Cpu):
    """A CPU with three copies of the inputs and a second way to run what can be captured."""

    def copies(self, operator, case):
        return 3

    def inputs(self, operator, case, seed):
        first = super().inputs(operator, case, seed)[0]
        return [first, *({k: v.clone() for k, v in first.items()} for _ in range(2))]

    def prepare(self, prepare, case, sets):
        return devices.Rotation([prepare(case, inputs) for inputs in sets])

    def timed(self, call, peer=None):
        if peer is not None and peer.finish is not None:
            return [devices.Timed("", call, devices.finished_clock(peer.finish))]
        if peer is not None and not peer.capturable:
            return [
                devices.Timed("", call, wall_clock),
                devices.Timed("CUDA graph", None, wall_clock, "cannot be captured: it waits"),
            ]
        return [
            devices.Timed("", call, wall_clock),
            devices.Timed("CUDA graph", call, wall_clock),
        ]


def rivals(*names: str) -> list[Peer]:
    return [peer for peer in registry.peers() if peer.name in names]


@pytest.fixture
def with_graph() -> dict:
    case, name = tiny("tikhonov_covariance"), "tikhonov_covariance"
    operator = registry.operators()[name]
    chosen = rivals("torch_push_through", "jax_jit", "naive_loop")
    result = run.run_case(case, operator, chosen, SETTINGS, on=WithGraph())
    run.add_floor(result, operator.cost(case), CEILINGS)
    return result


def test_graphs_are_measured_beside_the_eager_calls(with_graph):
    entries = {entry["name"]: entry for entry in with_graph["entries"]}
    assert list(entries)[:2] == ["riskernels", "riskernels CUDA graph"]
    assert with_graph["input_copies"] == 3
    graph = entries["riskernels CUDA graph"]
    assert (graph["mode"], graph["kind"]) == ("CUDA graph", "kernel, CUDA graph")
    assert graph["ratio_to_kernel"] == 1.0 and graph["share_of_floor"] > 0
    peer = entries["torch_push_through CUDA graph"]
    assert peer["ratio_to_kernel"] == pytest.approx(peer["median"] / graph["median"])
    assert entries["naive_loop"]["status"] == "measured"
    assert entries["naive_loop CUDA graph"]["reason"] == "cannot be captured: it waits"
    # JAX queues on streams of its own and cannot enter a graph of PyTorch.
    installed = importlib.util.find_spec("jax") is not None
    assert entries["jax_jit"]["status"] == ("measured" if installed else "skipped")
    assert "jax_jit CUDA graph" not in entries


def test_the_table_of_a_gpu_run(with_graph):
    report = {
        "schema": 1,
        "machine": {"gpu": GPU, "cpu": "a CPU"},
        "versions": {"torch": "2.13", "simd_level": "avx2"},
        "ceilings": CEILINGS,
        "threads": 2,
        "commit": "0" * 40,
        "modified": False,
        "created": "2030-01-01",
        "cases": [{**with_graph, "memory": {"bytes_beyond_output": 2**20, "bytes_output": 1}}],
    }
    text = table.markdown(report)
    assert "share of the floor, CUDA graph" in text and "| riskernels, CUDA graph | **" in text
    assert "| memory beyond output | 1.00 MiB |" in text
    assert "NVIDIA H200 NVL (sm_90, driver 580.0, CUDA 13.0)" in text
    assert "cannot be captured: it waits" in text
    assert machine.slug(report) == "gpu_h200_nvl"
    report["machine"] = {"cpu": "a CPU"}
    assert machine.slug(report) == "cpu_avx2_2threads"


@pytest.mark.parametrize("scene,status", [(0, "refused"), (2, "correct"), (4, "refused")])
def test_scenes_that_are_verified(scene, status):
    """Three of five: the first two and the last."""
    case = tiny("hermitian_nmse")
    operator = registry.operators()["hermitian_nmse"]

    def kernel(case, inputs):
        values = operator.kernel(case, inputs)()[0].clone()
        values[scene] *= 2
        return lambda: (values,)

    settings = replace(SETTINGS, verified_scenes=3)
    broken = replace(operator, kernel=kernel)
    result = run.run_case(case, broken, (), settings, timed=False)
    assert result["entries"][0]["status"] == status
    assert result["verified_scenes"] == 3


def test_a_short_result_is_refused_where_not_all_scenes_are_verified():
    case = tiny("hermitian_nmse")
    operator = registry.operators()["hermitian_nmse"]
    short = replace(operator, kernel=lambda c, i: lambda: (operator.kernel(c, i)()[0][:4],))
    result = run.run_case(case, short, (), replace(SETTINGS, verified_scenes=3), timed=False)
    assert result["entries"][0]["status"] == "refused"


def test_a_rotation_calls_in_turn_and_keeps_the_outputs():
    count = itertools.count()
    rotation = devices.Rotation([lambda k=k: (k, next(count)) for k in "abc"])
    assert [rotation()[0] for _ in range(4)] == ["a", "b", "c", "a"]
    assert rotation.outputs == [("a", 3), ("b", 1), ("c", 2)]


def test_copies_of_the_inputs_exceed_the_cache():
    mebibyte = 2**20
    assert devices.input_copies(500 * mebibyte, 50 * mebibyte) == 1
    assert devices.input_copies(10 * mebibyte, 50 * mebibyte) == 15
    assert devices.input_copies(1.0, 50 * mebibyte) == devices.MAXIMUM_COPIES


class OnHost(devices.Cuda):
    """What a GPU does with its inputs, on the CPU."""

    kind = "cpu"

    def __init__(self) -> None:
        self._l2_bytes = 65536


@pytest.mark.parametrize("name", registry.operators())
def test_copies_of_the_inputs_are_equal_and_apart(name):
    operator, case = registry.operators()[name], tiny(name, "gradient")
    sets = OnHost().inputs(operator, case, seed=3)
    assert len(sets) == OnHost().copies(operator, case) > 1
    for key, value in sets[0].items():
        assert all(torch.equal(value, other[key]) for other in sets[1:])
        assert len({inputs[key].data_ptr() for inputs in sets}) == len(sets)
    call = OnHost().prepare(operator.kernel, case, sets)
    assert len(call.calls) == len(sets) and len(call()) == len(operator.output_names(case))


def test_what_cannot_be_captured_is_said(monkeypatch):
    def fail(rotation):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(devices, "capture", fail)
    rotation = devices.Rotation([lambda: None])
    eager, graph = OnHost().timed(rotation)
    assert (eager.call, graph.call) == (rotation, None)
    assert graph.reason == "cannot be captured: operation not permitted when stream is capturing"
    (loop,) = rivals("naive_loop")
    assert [timed.suffix for timed in OnHost().timed(rotation, loop)] == [""]


def test_a_replay_is_timed_by_the_call(monkeypatch):
    replays = []
    monkeypatch.setattr(devices, "event_clock", lambda call, n: replays.append(n) or 8.0)
    sample = devices.replay_clock(calls=4)
    assert sample(lambda: None, 21) == 2.0 and sample(lambda: None, 1) == 2.0
    assert replays == [5, 1]


@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_points_of_the_scaling_curves(on):
    plan = scaling.PLANS[on]
    points = scaling.cases((), plan)
    by_curve: dict = {}
    for axis, case in points:
        by_curve.setdefault((case.operator, case.variant, axis), []).append(case)
        for name, size in case.sizes.items():
            default = {"B": 64, "L": 16, "M": 16, "N": 144, "K": 5, "r": 21, "k": 5}
            fixed = plan.scenes.get(axis, default["B"]) if name == "B" else default[name]
            assert size == fixed or name == axis
    assert {key[2] for key in by_curve if key[0] == "tikhonov_covariance"} == set("BNLM")
    assert {key[2] for key in by_curve if key[0] == "hermitian_nmse"} == set("BN")
    assert {key[2] for key in by_curve if key[0] == "factored_nmse"} == set("BN")
    left_out = ("covariance_loss", "factored_terms", "steering_power")
    assert not [key for key in by_curve if key[0] in left_out]
    for (_, _, axis), cases in by_curve.items():
        assert tuple(case.sizes[axis] for case in cases) == plan.axes[axis]
    assert max(case.tolerance for _, case in points) < 0.1
    for _, case in points:
        assert len(plan.rival(case)) == (on == "cpu"), case.identifier
    # Inputs and outputs of a point, and what a peer keeps beside them, fit into ordinary memory.
    if on == "cpu":
        known = registry.operators()
        assert max(known[c.operator].cost(c).footprint for _, c in points) < 2**30
    assert scaling.condition(16, 144) < 5 < scaling.condition(128, 144) < 1000


@pytest.fixture(scope="module")
def report() -> dict:
    points = [
        ("B", tiny("tikhonov_covariance", variant, b))
        for variant in ("forward", "gradient")
        for b in (4, 1, 2)
    ]
    results = scaling.run((), SETTINGS, CEILINGS, points, log=lambda text: None)
    return {
        "schema": 1,
        "machine": {"cpu": "a CPU"},
        "versions": {"simd_level": "avx2"},
        "threads": 1,
        "created": "2030-01-01T00:00:00",
        "scaling": results,
    }


def test_scaling_curves_are_drawn_with_their_floors(report, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for point in report["scaling"]:
        assert point["axis"] == "B"
        eager, peer = point["entries"]
        assert (eager["status"], peer["status"]) == ("measured", "measured")
        assert peer["name"] == "torch_shared_factorisation"
        graph = {**eager, "name": "riskernels CUDA graph", "mode": "CUDA graph"}
        graph["title"] = "riskernels, CUDA graph"
        point["entries"] = [eager, graph, peer]
    drawn = plot.curves(report)["tikhonov_covariance"]
    assert [p["sizes"]["B"] for p in drawn["B"]] == [1, 1, 2, 2, 4, 4]
    source = tmp_path / "run.json"
    source.write_text(json.dumps(report))
    assert plot.main([str(source), "--out", str(tmp_path / "plots")]) == 0
    path = tmp_path / "plots" / "scaling_tikhonov_covariance.svg"
    assert capsys.readouterr().out.strip() == str(path)
    first = path.read_bytes()
    assert len(first) > 1000
    # Kernel, graph, peer and floor of both variants, in one panel; the other holds nothing.
    figure = plot._draw_operator(report, "tikhonov_covariance", {"B": drawn["B"]})
    panel = figure.axes[0]
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    styles = [line.get_linestyle() for line in panel.get_lines()]
    assert styles == [plot.KERNEL, plot.GRAPH, plot.PEER, "--"] * 2
    assert len(figure.legends[0].get_texts()) == 8
    floors = [p["floor"]["seconds"] for p in drawn["B"] if p["variant"] == "forward"]
    assert panel.get_lines()[3].get_ydata().tolist() == floors
    assert plot.main([str(source), "--out", str(tmp_path / "plots")]) == 0
    assert path.read_bytes() == first
    capsys.readouterr()
    source.write_text(json.dumps({**report, "scaling": []}))
    with pytest.raises(SystemExit):
        plot.main([str(source), "--out", str(tmp_path)])
    assert "python -m bench --scaling" in capsys.readouterr().err


def test_a_point_that_does_not_fit_is_reported(monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB.")

    monkeypatch.setattr(scaling, "run_case", full)
    log: list[str] = []
    points = [("B", tiny("tikhonov_covariance"))]
    (result,) = scaling.run((), SETTINGS, CEILINGS, points, log=log.append)
    assert result["entries"][0]["status"] == "failed" and "floor" not in result
    assert "Tried to allocate 99 GiB" in log[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("bench.__main__.pin", lambda threads, on: None)
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cuda", "--op", "hermitian_nmse"])
    assert stop.value.code == 2
    assert "--device cuda: torch" in capsys.readouterr().err.splitlines()[-1]
