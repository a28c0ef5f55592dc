"""Ctrl-C and SIGTERM between two steps instead of in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

# torchrun passes on the Ctrl-C that its processes have received from the terminal, too.
SAME = 2.0  # seconds


class Stopped(KeyboardInterrupt):
    """The run ends as it was asked to, in all its processes, after a checkpoint.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.number = int(number)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, with `Stopped`, so that it can clean up and say so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:  # and not ignored to the end, as torchrun's is
            signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """While it is entered, the first Ctrl-C or SIGTERM only notes the signal in `requested`.

    A second one interrupts at once. A step that is cut in half has changed some weights and not
    others; the loop looks at `requested` after each step and leaves a checkpoint from which the
    run goes on exactly.

    Args:
        alone: whether there is one process; several may each get the first signal twice.
    """

    def __init__(self, alone: bool = True) -> None:
        self.requested = 0
        self._alone = alone
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python delivers signals to the main thread only; elsewhere they keep their meaning.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested and (self._alone or time.monotonic() - self._at > SAME):
            raise KeyboardInterrupt
        self.requested, self._at = number, time.monotonic()
