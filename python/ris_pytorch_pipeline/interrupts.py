# SPDX-License-Identifier: Apache-2.0
"""Interrupts that wait for the work at hand: finish the step, save, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Work that was stopped by a signal after it had been saved; the message says where."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + signum
        """Exit status by which a shell knows the signal."""


class RaisedInterrupt:
    """In its ``with`` block SIGINT and SIGTERM raise :class:`Interrupted` with ``message``.

    By default SIGTERM ends a process before it can say what it leaves. Signals are delivered to the
    main thread alone; in another one the block changes nothing.

    >>> try:
    ...     with RaisedInterrupt("nothing was at hand"):
    ...         signal.raise_signal(signal.SIGTERM)
    ... except Interrupted as stop:
    ...     print(stop, stop.status)
    nothing was at hand 143
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._before: dict[signal.Signals, object] = {}

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum, self._message)

    def __enter__(self) -> RaisedInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._raise) for kind in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


class DeferredInterrupt:
    """In its ``with`` block the first SIGINT or SIGTERM is only noted, in :attr:`signum`.

    The second one of any kind acts at once, as SIGINT does by default. Signals are delivered to the
    main thread alone; in another one the block changes nothing.

    Args:
        patient: later signals do nothing, and after one that came the handlers stay when the block
            ends. For one of several processes: who starts them also ends them, by SIGTERM when one
            has left, while another may still be saving or saying what it did, and then by SIGKILL.

    >>> with DeferredInterrupt() as interrupt:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupt.signum == signal.SIGINT
    True
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.patient = patient
        self.signum: int | None = None
        """The signal that has arrived."""
        self._before: dict[signal.Signals, object] = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
        elif not self.patient:
            raise KeyboardInterrupt

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.patient and self.signum is not None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
