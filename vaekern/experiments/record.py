"""experiment.json of a run: what was measured of it, so that nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path

from vaekern.storage.files import write_atomically
from vaekern.training.run_directory import RunDirectory

NAME = "experiment.json"


class Record:
    """The measures of one run, on disk beside it.

    complete    whether the run is trained to its end
    measures    {name: {number: value}}
    skipped     {name: why a measure does not apply}

    It holds as long as the run's weights are older: a run that was trained further is measured
    again. So is one whose file is damaged, which says no more than one that is not there.
    """

    def __init__(self, directory: RunDirectory):
        self.path = directory.path / NAME
        self.complete = False
        self.measures: dict[str, dict[str, float]] = {}
        self.skipped: dict[str, str] = {}
        if _newer(self.path, directory.model):
            self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            complete, measures = bool(found["complete"]), dict(found["measures"])
            skipped = {str(name): str(why) for name, why in found["skipped"].items()}
            measures = {
                name: {key: float(value) for key, value in values.items()}
                for name, values in measures.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        self.complete, self.measures, self.skipped = complete, measures, skipped

    def knows(self, measure: str) -> bool:
        """Whether the measure was computed, or does not apply."""
        return measure in self.measures or measure in self.skipped

    def number(self, measure: str, key: str) -> float | None:
        """One number of a measure."""
        return self.measures.get(measure, {}).get(key)

    def write(self) -> None:
        """Keep it."""
        found = {"complete": self.complete, "measures": self.measures, "skipped": self.skipped}
        write_atomically(self.path, json.dumps(found, indent=1) + "\n")


def _newer(path: Path, than: Path) -> bool:
    return path.is_file() and than.is_file() and path.stat().st_mtime >= than.stat().st_mtime
