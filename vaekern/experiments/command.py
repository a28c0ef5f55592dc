"""The command line that makes a table."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from vaekern.experiments.plan import Plan
from vaekern.experiments.results import Results


def command(plan: Plan, results: Results) -> str:
    """The command line that goes on with a table, and makes it again in an empty directory."""
    words = ["vaekern", "reproduce", plan.name]
    if plan.experiment.takes_data:
        words += ["--data", plan.data]
    seeds = list(results.seeds)
    counted = seeds == list(range(len(seeds)))
    words += ["--seeds", str(len(seeds)) if counted else ",".join(map(str, seeds))]
    if len(results.rows) < len(plan.experiment.rows):
        words += ["--rows", *(row.name for row in results.rows)]
    if plan.epochs is not None:
        words += ["--epochs", str(plan.epochs)]
    if plan.device != "auto":
        words += ["--device", plan.device]
    if plan.inception is not None:
        words += ["--inception", plan.inception]
    words += ["--stretch"] if plan.stretch else []
    for word in setting_words(plan.settings):
        words += ["--set", word]
    if plan.out != plan.default_out:
        words += ["--out", str(plan.out)]
    return shlex.join(words)


def setting_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """NAME=VALUE for each setting, as --set takes it."""
    for key, value in settings.items():
        inner = value.items() if isinstance(value, Mapping) else [(None, value)]
        for part, each in inner:
            text = "none" if each is None else str(list(each) if isinstance(each, tuple) else each)
            yield f"{key}.{part}={text}" if part else f"{key}={text}"
