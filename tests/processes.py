# SPDX-License-Identifier: Apache-2.0
"""Work in forked processes, which tests kill."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def in_a_child(work: Callable[[], object]) -> int:
    """Start ``work`` in a forked process and return its number; it exits with 0 or 1."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        # Nothing of the parent's (buffers, fixtures, the test run itself) may end twice.
        os._exit(status)
