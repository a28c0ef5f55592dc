"""How long each epoch takes, in every piece that a run is trained in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from vaekern.storage.files import write_atomically
from vaekern.training.metrics import Log

FILE = "epoch_seconds.json"


class Clock:
    """Seconds of the epochs that this process trains, kept beside those of earlier ones.

    The first epoch of a piece holds what is done once (libraries, caches, compilation), so that it
    is kept apart: it counts where there is no other.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path):
        self.path = directory / FILE
        self.seconds = 0.0
        self._began = self._last = time.monotonic()
        self._found: list[dict[str, Any]] = []

    @property
    def epochs(self) -> int:
        """So many have ended."""
        return len(self._found)

    def start(self) -> None:
        """The first epoch begins."""
        self._began = self._last = time.monotonic()

    def tick(self, stage: int) -> None:
        """An epoch of this stage has ended."""
        now = time.monotonic()
        first = not any(each["stage"] == stage for each in self._found)
        self._found.append({"stage": stage, "seconds": now - self._last, "first": first})
        self._last = now

    def write(self) -> None:
        """Keep them, however the piece has ended."""
        self.seconds = time.monotonic() - self._began
        if self._found:
            write_atomically(self.path, json.dumps(read_epochs(self.path) + self._found) + "\n")


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """What was kept: for each epoch its stage, seconds, and whether it was a piece's first."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [each for each in found if {"stage", "seconds", "first"} <= set(each)]
    except (OSError, ValueError, TypeError):
        return []


class TimedLog(Log):
    """The log of a run, whose records are the epochs."""

    def __init__(self, clock: Clock):
        super().__init__()
        self._clock = clock

    def add(self, record: dict[str, Any], values: Tensor) -> None:
        """Keep a record, and the time."""
        super().add(record, values)
        self._clock.tick(record["stage"])
