"""What is computed of a finished run. A new measure is a new row of `MEASURES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vaekern.experiments.finished import Finished
from vaekern.training.evaluation import DIAGNOSTICS, Diagnostic

Measure = Callable[[Finished], Mapping[str, Any]]


class NotApplicable(ValueError):
    """A measure that means nothing for this run; the text says why."""


def report(run: Finished) -> Mapping[str, Any]:
    """metrics.json, where `vaekern train` ends, and the squared error summed over a sample."""
    metrics = run.metrics
    return metrics | {"squared_error": metrics["mse"] * metrics["dimensions"]}


def training_time(run: Finished) -> Mapping[str, float]:
    """Seconds for each epoch, checkpoints and metrics included."""
    seconds, epochs = run.record["seconds"], run.record["epochs"]
    if not epochs:
        raise NotApplicable("no epoch of it was trained in one piece")
    return {"seconds_per_epoch": seconds / epochs}


def _of(diagnostic: Diagnostic) -> Measure:
    def measure(run: Finished) -> Mapping[str, Any]:
        subject = run.subject
        subject.begin(diagnostic.name)
        for need in diagnostic.needs:
            if (unmet := need(subject)) is not None:
                raise NotApplicable(unmet)
        n = subject.count(diagnostic.split, diagnostic.samples)
        return diagnostic.compute(subject, n).values

    return measure


#: By name. Every diagnostic of `vaekern evaluate` is one, under its own name.
MEASURES: dict[str, Measure] = {
    "report": report,
    "training_time": training_time,
    **{row.name: _of(row) for row in DIAGNOSTICS},
}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values of a measure."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
