# SPDX-License-Identifier: Apache-2.0
"""The seed of a run's random inputs.

Every change of the sources draws new inputs, and the same sources draw the same ones on every
machine: what one run has found, the next one finds again.
"""

from __future__ import annotations

import hashlib
import os
import random
from functools import cache
from pathlib import Path

import numpy as np
import torch

_ROOT = Path(__file__).parents[1]
_SOURCES = ("csrc", "riskernels", "python", "tests")
_SUFFIXES = {".py", ".cpp", ".hpp", ".cu", ".cuh"}


@cache
def run_seed() -> int:
    """RISKERNELS_TEST_SEED, or a digest of the sources."""
    given = os.environ.get("RISKERNELS_TEST_SEED")
    if given is not None:
        return int(given)
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:4], "big")


def seed_of(name: str) -> int:
    """The seed of one test: that of the run, and the test's own name."""
    digest = hashlib.sha256(f"{run_seed()} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def seed_generators(seed: int) -> None:
    """Set every generator that a test may draw from without a seed of its own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
