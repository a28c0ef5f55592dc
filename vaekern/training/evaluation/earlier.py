"""What an earlier evaluation left that still holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaekern.storage.errors import RunError
from vaekern.training.evaluation.outcome import Outcome

# What two evaluations must agree in for their numbers to stand in one table.
SAME = ("format", "version", "seed", "samples", "extractor", "stretch", "weights")


def earlier(
    numbers: Path, about: Mapping[str, Any], others: Sequence[str], model: Path
) -> dict[str, Outcome]:
    """The outcomes beside those that are computed now: of the same weights and settings.

    Args:
        numbers: evaluation.json, which may not be there.
        about: what the new one will say of itself.
        others: diagnostics that are not computed now.
        model: the file of the weights; what is older than it is of others.

    Raises:
        RunError: there are such outcomes, with other settings.
    """
    try:
        if numbers.stat().st_mtime < model.stat().st_mtime:
            return {}
        stored = json.loads(numbers.read_text(encoding="utf-8"))
        found = {
            name: Outcome.from_json(outcome)
            for name, outcome in stored["diagnostics"].items()
            if name in others
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # none, or a damaged one
    done = [name for name, outcome in found.items() if outcome.status == "done"]
    elsewhere = numbers.parent.parent != model.parent  # a run's own folder moves with it
    changed = [
        f"{key}: {stored.get(key)} -> {about[key]}"
        for key in (*SAME, *(["run"] if elsewhere else []))
        if stored.get(key) != about[key]
    ]
    if done and changed:
        raise RunError(
            f"{numbers.parent} holds an evaluation with other settings ({'; '.join(changed)}), of "
            f"which {len(done)} diagnostics would be lost; choose another directory with --out DIR"
        )
    return {} if changed else found
