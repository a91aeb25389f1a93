# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of the operators and of every file that comes from outside.

``python -m fuzz`` runs all targets, see :mod:`fuzz.__main__`; a target by itself,
``python -m fuzz.fuzz_npz FILE``, runs one saved case again.
"""

import sys
from pathlib import Path

# The calls of every operator are recorded from the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
