# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels take: registers, shared memory, spills, occupancy.

From the driver where the CUDA library is loaded and a GPU answers; elsewhere from the table that
nvcc's reports were written to, ``tests/cuda_resources.json`` of the source tree.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import torch

from riskernels import library

TABLE = Path(__file__).parents[1] / "tests" / "cuda_resources.json"


def measured() -> dict[str, Any]:
    """Kernels of the example calls of the CUDA library, as the driver of this GPU states them.

    Raises:
        RuntimeError: there is no CUDA library or no GPU, or the driver refused; with the reason.
    """
    status = library.backend_status()["cuda"]
    if not status.available or status.path is None:
        raise RuntimeError(f"CUDA library: {status.reason}")
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")
    torch.cuda.init()
    function = ctypes.CDLL(status.path).riskernels_cuda_resources
    function.restype = ctypes.c_char_p
    text: bytes = function()
    facts: dict[str, Any] = json.loads(text)
    if "error" in facts:
        raise RuntimeError(facts["error"])
    return facts


def compiled() -> dict[str, Any]:
    """The committed table of nvcc's reports.

    Raises:
        RuntimeError: this installation does not come with it.
    """
    if not TABLE.is_file():
        raise RuntimeError(f"{TABLE.parent.name}/{TABLE.name} is part of the source tree alone")
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def collect() -> dict[str, Any]:
    """The measured facts, or why there are none and the compiled ones in their place."""
    try:
        return {"source": "measured", **measured()}
    except RuntimeError as reason:
        facts: dict[str, Any] = {"source": "compiled", "reason": str(reason)}
    try:
        return {**facts, **compiled()}
    except RuntimeError as reason:
        return {**facts, "source": "none", "table": str(reason)}


def _measured_lines(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"CUDA kernels on {facts['device']} (sm_{facts['compute_capability'].replace('.', '')}), "
        "as the driver states them",
        f"  {'regs':>4} {'spill':>6} {'static':>7} {'dynamic':>8} {'threads':>7} {'blocks':>8} "
        f"{'per SM':>6} {'occupancy':>9}   kernel (bytes)",
    ]
    for call in facts["calls"]:
        sizes = {name: call[name] for name in "BLMN"} | {
            "r": call["columns"],
            "k": call["sources"],
            "G": call["points"],
        }
        shape = " ".join(f"{name}={size}" for name, size in sizes.items() if size)
        per_snapshot = ", one H per snapshot" if call["h_per_snapshot"] else ""
        lines.append(f"{call['operator']} {call['pass']}, {call['dtype']}, {shape}{per_snapshot}")
        lines += [
            f"  {k['registers']:>4} {k['local_bytes']:>6} {k['static_shared_bytes']:>7} "
            f"{k['dynamic_shared_bytes']:>8} {k['threads']:>7} {k['blocks']:>8} "
            f"{k['blocks_per_multiprocessor']:>6} {k['occupancy']:>9.0%}   {k['kernel']}"
            for k in call["kernels"]
        ]
    return lines


def _compiled_lines(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"CUDA kernels as nvcc {facts['nvcc']} compiled them, not measured ({facts['reason']})",
        f"  {'arch':<7} {'regs':>4} {'spill':>6} {'stack':>6} {'static':>7}   kernel (bytes)",
    ]
    for name, by_architecture in facts["kernels"].items():
        lines += [
            f"  {architecture:<7} {k['registers']:>4} {k['spill_bytes']:>6} "
            f"{k['stack_bytes']:>6} {k['static_shared_bytes']:>7}   {name}"
            for architecture, k in by_architecture.items()
        ]
    return lines


def lines(facts: dict[str, Any]) -> list[str]:
    """What :func:`collect` found, as text."""
    if facts["source"] == "measured":
        return _measured_lines(facts)
    if facts["source"] == "compiled":
        return _compiled_lines(facts)
    return [f"CUDA kernels: not measured ({facts['reason']}), and {facts['table']}"]
