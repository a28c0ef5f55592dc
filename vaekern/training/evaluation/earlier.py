"""What an earlier evaluation left that still holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaekern.storage.errors import RunError
from vaekern.training.evaluation.outcome import Outcome

# What two evaluations must agree in for their numbers to stand in one table.
SAME = ("format", "version", "seed", "samples", "weights")
FEATURES = ("extractor", "stretch")  # and where images are compared


def earlier(
    numbers: Path, about: Mapping[str, Any], others: Mapping[str, bool], model: Path
) -> dict[str, Outcome]:
    """The outcomes beside those that are computed now: of the same weights and settings.

    Args:
        numbers: evaluation.json, which may not be there.
        about: what the new one will say of itself.
        others: diagnostics that are not computed now, and whether each compares images.
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
    elsewhere = numbers.parent.parent != model.parent  # a run's own folder moves with it
    same = (*SAME, *(["run"] if elsewhere else []))
    lost: dict[str, str] = {}
    for name in list(found):
        keys = (*same, *FEATURES) if others[name] else same
        changed = [key for key in keys if stored.get(key) != about[key]]
        if changed and found.pop(name).status == "done":
            lost[name] = "; ".join(f"{key}: {stored.get(key)} -> {about[key]}" for key in changed)
    if lost:
        first, change = next(iter(lost.items()))
        raise RunError(
            f"{numbers.parent} holds an evaluation with other settings ({change}), of which "
            f"{len(lost)} diagnostics would be lost, {first} among them; choose another directory "
            "with --out DIR"
        )
    return found
