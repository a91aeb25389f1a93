# SPDX-License-Identifier: Apache-2.0
"""Peak memory of an operator, or of a rival, beyond its outputs, as the operating system sees it.

Each case runs in a fresh process: a call at a tiny shape starts the thread pool and pages in the
code, the resident set is read, its high-water mark reset, the case runs once, and what the mark
rose by beyond the outputs is everything else that was live: workspace, intermediates and the
scratch memory of the threads. The C allocator is told to return large blocks to the system, so
that none is reused unseen. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.machine import ROOT, pin

PAGE = resource.getpagesize()
LIMIT_PER_THREAD = 2 * 2**20
RIVAL_SCENES = 16
"""Scenes on which a rival's memory is measured and scaled: it holds the same arrays for each."""


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _reset_high_water() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_beyond_outputs(warm_up: Callable[[], Any], call: Callable[[], Sequence[Any]]) -> int:
    """Bytes by which the resident set rose during ``call`` beyond the tensors it returns."""
    warm_up()
    _reset_high_water()
    before = _status("VmRSS")
    outputs = call()
    peak = _status("VmHWM")
    kept = sum(-(-out.numel() * out.element_size() // PAGE) * PAGE for out in outputs)
    return peak - before - kept


def _measure(identifier: str, shape: str, peer_name: str, threads: int) -> dict[str, Any]:
    import torch

    from bench.registry import first_scenes, operators, peers, select

    torch.set_num_threads(threads)
    operator_name = identifier.split("/")[0]
    variant = "/".join(identifier.split("/")[:2]) + "/"
    case = select([operator_name], [variant], [shape])[0]
    operator = operators()[operator_name]
    generator = torch.Generator().manual_seed(0)
    # Scenes enough that every thread of the pool takes part in the warm-up.
    tiny = replace(
        case, sizes={**{name: min(8, size) for name, size in case.sizes.items()}, "B": 8 * threads}
    )
    prepare, scenes = operator.kernel, case.sizes["B"]
    if peer_name:
        (peer,) = (p for p in peers() if p.name == peer_name and p.serves(case))
        prepare, scenes = peer.prepare, min(scenes, peer.scenes or RIVAL_SCENES, RIVAL_SCENES)
    warm_up = prepare(tiny, operator.inputs(tiny, generator))
    call = prepare(case, first_scenes(operator.inputs(case, generator), scenes))
    extra = round(peak_beyond_outputs(warm_up, call) * case.sizes["B"] / scenes)
    return {
        "case": identifier,
        "peer": peer_name,
        "threads": threads,
        "measured_scenes": scenes,
        "bytes_beyond_output": extra,
        "bytes_beyond_output_per_thread": extra / threads,
    }


def measure(
    cases: Sequence[Any], threads: int, rivals: Sequence[Any] = ()
) -> dict[str, dict[str, Any]]:
    """Peak memory of the kernel by case identifier, each measured in a process of its own.

    Where a rival asks for its own to be measured it stands under ``peers``, by name.

    Raises:
        RuntimeError: the measuring process failed; with its error output.
    """
    specifications = [
        f"{case.identifier}@{case.shape.replace(' ', ',')}@{name}"
        for case in cases
        for name in ("", *(p.name for p in rivals if p.measures_memory_of(case)))
    ]
    command = [sys.executable, "-m", "bench.memory", "--threads", str(threads), *specifications]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory failed:\n{done.stderr}")
    found: dict[str, dict[str, Any]] = {}
    for result in json.loads(done.stdout):
        if not result["peer"]:
            found[result["case"]] = result
        else:
            found[result["case"]].setdefault("peers", {})[result["peer"]] = result
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "cases", nargs="+", help="identifier@B=64,L=16,M=16,N=144@peer; no peer: the kernel"
    )
    options = parser.parse_args(arguments)
    pin(options.threads)
    # Imported here so that every fork has the libraries; no operator runs in this process.
    import bench.registry

    bench.registry.operators()
    work = [(*item.split("@"), options.threads) for item in options.cases]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        results = pool.starmap(_measure, work, chunksize=1)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
