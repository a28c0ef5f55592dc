"""experiment.json of a run: what was measured of it, so that nothing is computed twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaekern.storage.files import write_atomically
from vaekern.training.run_directory import RunDirectory

NAME = "experiment.json"


class Record:
    """The measures of one run, on disk beside it.

    complete    whether the run is trained to its end
    seconds     of training, of the epochs that were trained in the last piece
    epochs      so many they were
    measures    {name: {number: value}}
    skipped     {name: why a measure does not apply}

    It holds as long as the run's weights are older: a run that was trained further is measured
    again.
    """

    def __init__(self, directory: RunDirectory):
        self.path = directory.path / NAME
        self.values: dict[str, Any] = {
            "complete": False,
            "seconds": 0.0,
            "epochs": 0,
            "measures": {},
            "skipped": {},
        }
        if _newer(self.path, directory.model):
            self.values |= json.loads(self.path.read_text(encoding="utf-8"))

    def knows(self, measure: str) -> bool:
        """Whether the measure was computed, or does not apply."""
        return measure in self.values["measures"] or measure in self.values["skipped"]

    def number(self, measure: str, key: str) -> float | None:
        """One number of a measure."""
        found: Mapping[str, float] = self.values["measures"].get(measure, {})
        return found.get(key)

    def write(self) -> None:
        """Keep it."""
        write_atomically(self.path, json.dumps(self.values, indent=1) + "\n")


def _newer(path: Path, than: Path) -> bool:
    return path.is_file() and than.is_file() and path.stat().st_mtime >= than.stat().st_mtime
