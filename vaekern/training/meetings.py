"""When several processes look up from their steps, all after the same one."""

from __future__ import annotations

import time

from vaekern.training.processes import Processes

# Often enough for Ctrl-C and a progress line, so rarely that a step costs no more than alone.
SECONDS = 0.25


class Meetings:
    """What any process wishes for, all do after the same step.

    One process alone has its wishes after every step. Several meet every few steps, which they
    count so that they need no clock to agree on: at each meeting process 0 says how many steps make
    SECONDS.

    Args:
        processes: who meets.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self._steps = self._left = 1
        self._at = time.monotonic()

    def agree(self, *wishes: float) -> list[float]:
        """After a step: the largest of each wish (0 is none), or none at all between meetings."""
        if self._processes.alone:
            return list(wishes)
        self._left -= 1
        if self._left:
            return [0.0] * len(wishes)
        now = time.monotonic()
        possible = int(self._steps * SECONDS / max(now - self._at, 1e-6))
        chosen = min(max(possible, 1), 2 * self._steps) if self._processes.main else 0
        *found, steps = self._processes.most([*wishes, chosen])
        self._steps = self._left = int(steps)
        self._at = time.monotonic()
        return found
