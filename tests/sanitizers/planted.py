# SPDX-License-Identifier: Apache-2.0
"""``python planted.py FAULT``: one function of planted_faults.cpp, with torch in the process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

from riskernels import library

faults = ctypes.CDLL(str(Path(library.LIBRARY_FOLDER) / "libplanted_faults.so"))
for name in ("planted_race", "planted_no_race", "planted_overflow"):
    getattr(faults, name).restype = ctypes.c_double
faults.planted_undefined.restype = ctypes.c_int64

fault = sys.argv[1]
if fault in ("race", "no_race"):
    tasks = 64
    total = getattr(faults, f"planted_{fault}")(ctypes.c_int64(tasks))
    assert fault == "race" or total == tasks * (tasks - 1) / 2
elif fault == "overflow":
    # Memory of torch's allocator, as that of an operator's input.
    data = torch.ones(16, dtype=torch.float64)
    faults.planted_overflow(ctypes.c_void_p(data.data_ptr()), ctypes.c_int64(data.numel()))
elif fault == "undefined":
    faults.planted_undefined(ctypes.c_int64(1 << 40))
else:
    sys.exit(f"no fault {fault!r}")
