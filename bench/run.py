# SPDX-License-Identifier: Apache-2.0
"""Runs cases: correctness of the kernel and of every peer first, then their speed together."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench import SCHEMA, machine
from bench import ceilings as machine_ceilings
from bench.devices import Cpu, Device, Timed, device
from bench.registry import (
    Case,
    Cost,
    Inputs,
    Operator,
    Peer,
    first_scenes,
    operators,
    peers,
)
from bench.timing import interleave
from bench.verify import Expected, expect
from riskernels import library

Log = Callable[[str], None]
CEILINGS_EVERY_S = 60.0


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    threads: int = 1
    rounds: int = 25
    seconds_per_entry: float = 0.4
    seed: int = 0
    measure_memory: bool = True
    device: str = "cpu"
    verified_scenes: int | None = None
    """Scenes compared with complex128, half of them from the end of the batch; all if None."""
    keeps_freed_memory: bool = False
    """Whether :func:`bench.machine.keep_freed_memory` holds; a record, not a switch."""


def _prepare_peer(
    peer: Peer, case: Case, sets: Sequence[Inputs], expected: Expected, on: Device
) -> tuple[dict[str, Any], Callable[[], Any] | None]:
    entry: dict[str, Any] = {"name": peer.name, "title": peer.title, "kind": "peer"}
    if peer.note:
        entry["note"] = peer.note
    missing = peer.missing()
    if missing:
        entry.update(status="skipped", reason=f"{', '.join(missing)} not installed")
        return entry, None
    entry["versions"] = machine.package_versions(peer.requires or ("torch",))
    b = case.sizes["B"]
    scenes = min(b, peer.scenes or b)
    entry["measured_scenes"], entry["scaled_by"] = scenes, b / scenes
    try:
        call = on.prepare(peer.prepare, case, [first_scenes(inputs, scenes) for inputs in sets])
        outputs = peer.to_torch(call())
    except Exception as error:  # a rival's failure is a result to report, not ours to raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        entry.update(status="failed", reason=reason)
        return entry, None
    passed = expected.gate(entry, outputs, peer.tolerance, scenes)
    return entry, call if passed else None


def _time(
    prepared: Sequence[tuple[dict[str, Any], Sequence[Timed]]], settings: Settings
) -> list[dict[str, Any]]:
    """Time every call, and return the entries with those of the graphs behind their own."""
    calls, samplers, entries = {}, {}, []
    for eager, variants in prepared:
        for timed in variants:
            entry = eager
            if timed.suffix:
                entry = {
                    **eager,
                    "name": f"{eager['name']} {timed.suffix}",
                    "title": f"{eager['title']}, {timed.suffix}",
                    "kind": f"{eager['kind']}, {timed.suffix}",
                    "mode": timed.suffix,
                }
            entries.append(entry)
            if timed.call is None:
                entry.update(status="skipped", reason=timed.reason)
                continue
            calls[entry["name"]], samplers[entry["name"]] = timed.call, timed.sampler
        if not variants:
            entries.append(eager)
    timings = interleave(calls, settings.rounds, settings.seconds_per_entry, samplers)
    for entry in entries:
        if entry["name"] in timings:
            timing = timings[entry["name"]].scaled(entry["scaled_by"])
            suffix = f" {entry['mode']}" if "mode" in entry else ""
            kernel = timings.get(f"riskernels{suffix}", timings["riskernels"])
            entry.update(
                asdict(timing),
                status="measured",
                ratio_to_kernel=timing.median / kernel.median,
            )
    return entries


def run_case(
    case: Case,
    operator: Operator,
    rivals: Sequence[Peer],
    settings: Settings,
    timed: bool = True,
    on: Device | None = None,
) -> dict[str, Any]:
    """One case, its correctness alone unless timed. A wrong kernel stops the case."""
    on = Cpu() if on is None else on
    sets = on.inputs(operator, case, settings.seed)
    expected = expect(case, operator, sets[0], settings.verified_scenes)
    backend = _backend(operator, on.kind)
    kernel: dict[str, Any] = {
        "name": "riskernels",
        "title": "riskernels" if backend == on.kind else f"riskernels on the {backend}",
        "kind": "kernel",
        "backend": backend,
        "measured_scenes": case.sizes["B"],
        "scaled_by": 1.0,
    }
    result: dict[str, Any] = {
        "identifier": case.identifier,
        "operator": case.operator,
        "variant": case.variant,
        "title": case.title,
        "sizes": dict(case.sizes),
        "gradients": list(case.gradients),
        "input_copies": len(sets),
        "verified_scenes": len(expected.scenes),
        "entries": [kernel],
    }
    call = on.prepare(operator.kernel, case, sets)
    if not expected.gate(kernel, call(), case.tolerance, case.sizes["B"]):
        return result
    if (extra := on.extra_memory(call)) is not None:
        result["memory"] = extra
    prepared = [(kernel, on.timed(call) if timed else [])]
    for peer in rivals:
        if peer.serves(case):
            entry, peer_call = _prepare_peer(peer, case, sets, expected, on)
            measurable = timed and peer_call is not None
            extra = on.extra_memory(peer_call) if peer_call and peer.measure_memory else None
            if extra is not None:
                scaled = {key: round(size * entry["scaled_by"]) for key, size in extra.items()}
                result["memory"].setdefault("peers", {})[peer.name] = scaled
            prepared.append((entry, on.timed(peer_call, peer) if measurable else []))
    del expected
    if timed:
        result["entries"] = _time(prepared, settings)
        return result
    result["entries"] = [entry for entry, _ in prepared]
    for entry in result["entries"]:
        entry.setdefault("status", "correct")
    return result


def add_floor(result: dict[str, Any], cost: Cost, ceilings: dict[str, Any]) -> None:
    """State the floor of a timed case, and what share of each speed it is."""
    measured = [entry for entry in result["entries"] if entry["status"] == "measured"]
    if not measured:
        return
    result["floor"] = machine_ceilings.floor(cost, ceilings)
    for entry in measured:
        entry["share_of_floor"] = result["floor"]["seconds"] / entry["median"]


def _backend(operator: Operator, kind: str) -> str:
    """What serves the operator; of a composition all of it, joined by a plus."""
    own = library.operators()
    # A composite has no kernel under its own name.
    names = [op if op in own else f"{op}_forward" for op in operator.uses or (operator.name,)]
    return "+".join(sorted({library.implementation(name, kind) for name in names}))


def describe(case: dict[str, Any]) -> str:
    """A case as lines of text."""
    sizes = " ".join(f"{name}={size}" for name, size in case["sizes"].items())
    lines = [f"{case['operator']}: {case['title']}, {sizes}"]
    if "floor" in case:
        floor = case["floor"]
        lines.append(
            f"  floor {floor['seconds'] * 1e3:.4g} ms ({floor['binds']} bind; {floor['formula']})"
        )
    for entry in case["entries"]:
        head = f"  {entry['title']:34s}"
        if entry["status"] == "measured":
            scaled = entry["scaled_by"]
            lines.append(
                f"{head}{entry['median'] * 1e3:10.4g} ms  [{entry['q20'] * 1e3:.4g}, "
                f"{entry['q80'] * 1e3:.4g}]  x{entry['ratio_to_kernel']:.2f}  "
                f"{100 * entry['share_of_floor']:.0f} % of floor  error {entry['error']:.1e}"
                + (f"  (from {entry['measured_scenes']} scenes)" if scaled != 1 else "")
            )
        elif entry["status"] == "correct":
            lines.append(f"{head}correct, error {entry['error']:.1e}")
        else:
            errors = ", ".join(f"{k} {v:.1e}" for k, v in entry.get("errors", {}).items())
            lines.append(f"{head}{entry['status']}: {entry['reason']} {errors}".rstrip())
    if "memory" in case:
        extra = case["memory"]
        beyond = extra.get("bytes_beyond_output_per_thread", extra["bytes_beyond_output"])
        per = " per thread" if "threads" in extra else ""
        lines.append(f"  peak memory beyond the output: {max(beyond, 0) / 2**20:.2f} MiB{per}")
        for name, peer in extra.get("peers", {}).items():
            few = peer["measured_scenes"] < case["sizes"]["B"]
            scaled = f" (from {peer['measured_scenes']} scenes)" if few else ""
            beyond = max(peer["bytes_beyond_output"], 0) / 2**20
            lines.append(f"    {name}: {beyond:.2f} MiB{scaled}")
    return "\n".join(lines)


def run(
    cases: Sequence[Case],
    settings: Settings,
    rivals: Sequence[Peer] | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Measure the cases and return what the JSON file holds."""
    torch.set_num_threads(settings.threads)
    # Now, not after minutes in which other files may have been edited.
    measured_commit = machine.commit()
    on = device(settings.device)
    known = operators()
    rivals = peers() if rivals is None else rivals
    ceilings, ceilings_at = on.ceilings(), time.perf_counter()
    measured = (
        on.memory(cases, settings.threads, rivals) if settings.measure_memory and cases else {}
    )
    results = []
    for case in cases:
        log(f"measuring {case.identifier}")
        result = run_case(case, known[case.operator], rivals, settings, on=on)
        if case.identifier in measured:
            result["memory"] = measured[case.identifier]
        results.append(result)
        on.release()
        if case is cases[-1] or time.perf_counter() - ceilings_at > CEILINGS_EVERY_S:
            ceilings, ceilings_at = on.ceilings(ceilings), time.perf_counter()
    for case, result in zip(cases, results, strict=True):
        add_floor(result, known[case.operator].cost(case), ceilings)
        log(describe(result))
    largest = ceilings["bandwidth"][-1]
    log(
        f"ceilings: {ceilings['float32_flops'] / 1e9:.1f} GFLOP/s, read {largest['read'] / 1e9:.1f}"
        f", copy {largest['copy'] / 1e9:.1f}, write {largest['write'] / 1e9:.1f} GB/s at "
        f"{largest['bytes'] // 2**20} MiB"
    )
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": settings.device,
        "machine": machine.machine(settings.device),
        "versions": machine.versions(),
        **measured_commit,
        "settings": asdict(settings),
        "threads": settings.threads,
        "ceilings": ceilings,
        "cases": results,
    }
