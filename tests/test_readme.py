# SPDX-License-Identifier: Apache-2.0
"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def test_code_block_runs():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict = {}
        exec(block, names)
        gradient = names["codes"].grad
        assert torch.isfinite(gradient.abs()).all() and gradient.abs().max() > 0
