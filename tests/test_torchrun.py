# SPDX-License-Identifier: Apache-2.0
"""``torchrun`` with the command ``ris train``: interrupted, killed, restarted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import pytest
from training_helpers import experiment, read_metrics

from ris_pytorch_pipeline.checkpoint import load_checkpoint
from ris_pytorch_pipeline.configs import save_config

LIMIT = 240.0


class Run:
    """``torchrun`` in the background, its output in files; killed at the end of its block."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
        command += ["--nproc_per_node=2", "-m", "ris_pytorch_pipeline", "train", "--resume=auto"]
        command += [f"--config={folder / 'config.json'}", f"--out={folder / 'run'}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.stdout.open("w") as out_file, self.stderr.open("w") as error_file:
            self.process = subprocess.Popen(
                command, stdout=out_file, stderr=error_file, env=environment
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            for rank in range(2):
                with contextlib.suppress(AssertionError, OSError):
                    os.kill(self.worker(rank), signal.SIGKILL)
            self.process.kill()
            self.process.wait()

    def until_printed(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + LIMIT
        while self.stdout.read_text().count(text) < times:
            assert self.process.poll() is None, self.stderr.read_text()
            assert time.monotonic() < deadline, self.stderr.read_text()
            time.sleep(0.01)

    def worker(self, rank: int) -> int:
        """The process of a rank."""
        agent = self.process.pid
        for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
        raise AssertionError(f"no rank {rank} among the children of {agent}")

    def lines(self, start: str) -> list[str]:
        """Lines of its errors that begin like this."""
        return [line for line in self.stderr.read_text().splitlines() if line.startswith(start)]


@pytest.mark.lasts(30)
def test_torchrun_restarts_after_a_kill_and_stops_at_an_interrupt(tmp_path):
    config = experiment(epochs=10_000, log_every=1, patience=10_000)
    save_config(config, tmp_path / "config.json")
    with Run(tmp_path, "--max_restarts=1") as run:
        run.until_printed("epoch 2/10000  step 6/")
        os.kill(run.worker(1), signal.SIGKILL)
        run.until_printed("[GRAD]", times=2)
        run.until_printed("epoch 4/10000  step 14/")
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(LIMIT) != 0
    lost, interrupted = run.lines("ris: ")
    assert lost.startswith("ris: error: process 0 of 2 stopped, because another one was killed or")
    assert interrupted.startswith("ris: interrupted: saved after step ")
    # One process prints: from the start to the kill, and from a save before it to the interrupt.
    text = run.stdout.read_text()
    parts = [[int(n) for n in re.findall(r"  step (\d+)/", part)] for part in text.split("[GRAD]")]
    nothing, first, second = parts
    assert nothing == [] and first[0] == 1 and second[0] in (5, 9)
    assert all(part == list(range(part[0], part[0] + len(part))) for part in (first, second))
    assert f"after step {second[-1]} of" in interrupted
    counters = load_checkpoint(tmp_path / "run" / "last").state["counters"]
    assert counters["real_steps"] == second[-1]
    records = [r["step"] for r in read_metrics(tmp_path / "run") if r["kind"] == "step"]
    assert records == list(range(1, second[-1] + 1))
