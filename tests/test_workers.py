# SPDX-License-Identifier: Apache-2.0
"""How local workers of a search share devices and threads."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest
import torch

from ris_pytorch_pipeline import workers
from ris_pytorch_pipeline.cli import _parse
from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.hpo import HpoError, HpoOptions
from ris_pytorch_pipeline.interrupts import Interrupted
from ris_pytorch_pipeline.workers import _judge, _processes, spread_devices, threads_per_worker


def test_workers_are_spread_over_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spread_devices(["cpu"], 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert spread_devices(["auto"], 2) == ["cpu"] * 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert spread_devices(["auto"], 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert spread_devices(["cuda:1", "cpu"], 3) == ["cuda:1", "cpu", "cuda:1"]
    with pytest.raises(ConfigError, match="--devices: 'cuda:2' is not there"):
        spread_devices(["cuda:0", "cuda:2"], 2)
    with pytest.raises(ConfigError, match="--devices"):
        spread_devices(["cuda:0", ""], 2)
    assert HpoOptions(device="cuda:0, cuda:1").device_names == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert [threads_per_worker(count) for count in (1, 3, 16, 40)] == [16, 5, 1, 1]


def test_both_spellings_of_the_devices() -> None:
    for option in ("--device", "--devices"):
        assert _parse(["hpo", option, "cuda:0,cuda:1"]).options.device == "cuda:0,cuda:1"


def test_workers_stopped_by_a_signal_fail_a_search_only_if_trials_are_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _judge([143, 0, 130, -9], 5, 5)
    assert capsys.readouterr().out.splitlines() == [
        "worker 0 was stopped by signal 15",
        "worker 2 was stopped by signal 2",
        "worker 3 was killed by signal 9",
    ]
    for statuses in ([143, 143], [0, -9]):
        with pytest.raises(HpoError, match="4 of 5 trials are finished, and no worker is left"):
            _judge(statuses, 4, 5)
    with pytest.raises(HpoError, match=r"worker\(s\) \[1\] ended with an error"):
        _judge([143, 1], 5, 5)


def test_a_signal_while_workers_are_started_stops_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = subprocess.Popen, []

    def popen(command: list[str], **how: Any) -> Any:
        started.append(real(["sleep", "60"], **how))
        signal.raise_signal(signal.SIGTERM)  # the worker is there, but not yet known
        return started[-1]

    monkeypatch.setattr(workers.subprocess, "Popen", popen)
    with pytest.raises(Interrupted, match="all workers have stopped"):
        _processes([HpoOptions()] * 3, dict(os.environ))
    assert [child.returncode for child in started] == [-signal.SIGTERM]
