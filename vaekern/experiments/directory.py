"""The directory of an experiment: what is in it, and whether it is this one's."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator

from vaekern.data import Dataset
from vaekern.experiments import table
from vaekern.experiments.experiment import Row
from vaekern.experiments.figures import FIGURES
from vaekern.experiments.plan import Plan
from vaekern.storage.errors import RunError
from vaekern.storage.files import PREFIX, remove_temporaries, write_atomically
from vaekern.storage.lock import Lock
from vaekern.training.config import MACHINE, differences
from vaekern.training.run import check_same_data
from vaekern.training.run_directory import RunDirectory

MANIFEST = "experiment.json"
PAGE, CSV, NUMBERS = "table.md", "table.csv", "results.json"
CLASSIFIER = "classifier.safetensors"
LOCK = "reproduce.lock"
# What an experiment leaves in its directory, beside the manifest.
OWN = {"runs", LOCK, PAGE, CSV, NUMBERS, CLASSIFIER, *(f"{name}.png" for name in FIGURES)}


@contextlib.contextmanager
def claimed(plan: Plan) -> Iterator[None]:
    """The directory is this experiment's, and no other process's, as long as the block runs.

    Raises:
        RunError: it holds something else, this experiment with other settings, or runs with other
            settings than this experiment's; or another process is at work in it.
    """
    _make(plan)
    lock = Lock(plan.out / LOCK, str(plan.out), "--out")
    lock.acquire()
    try:
        remove_temporaries(plan.out)
        _enter(plan)
        yield
    finally:
        lock.release()


def _make(plan: Plan) -> None:
    """A directory that holds this experiment or nothing."""
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        names = {each.name for each in plan.out.iterdir() if not each.name.startswith(PREFIX)}
    except OSError as error:
        raise RunError(
            f"cannot create {plan.out} ({error.strerror}); choose another with --out DIR"
        ) from error
    # each run in it says itself what it was trained with
    if MANIFEST not in names and names - OWN:
        raise RunError(
            f"{plan.out} is not empty and holds no experiment; choose another with --out DIR"
        )


def _enter(plan: Plan) -> None:
    """Write what the directory holds, or find that it is this."""
    manifest = plan.out / MANIFEST
    own = {"format": table.FORMAT, "version": table.VERSION, **plan.identity()}
    own = json.loads(json.dumps(own))  # as it comes back
    if not manifest.is_file():
        write_atomically(manifest, json.dumps(own, indent=1) + "\n")
        return
    try:
        stored = dict(json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{manifest} is damaged; remove it, and the same command writes it again, or "
            "choose another directory with --out DIR"
        ) from error
    changed = [
        f"{key}: {stored.get(key)} -> {value}"
        for key, value in own.items()
        if stored.get(key) != value
    ]
    if changed:
        raise RunError(
            f"{plan.out} holds an experiment with other settings ({'; '.join(changed)}); "
            "leave these out, or choose another directory with --out DIR"
        )


def check_run(plan: Plan, row: Row, seed: int, data: Dataset) -> None:
    """Whether a run that is there, finished or not, is the one that the experiment would train.

    Raises:
        RunError: its settings or its data are others, or it is damaged.
    """
    config = plan.config(row, seed)
    directory = RunDirectory(config.run_directory)
    if not directory.is_run():
        return
    stored = directory.read_config()
    system = config.system
    if system.levels is None:  # a run takes them from its data
        system = dataclasses.replace(system, levels=stored.system.levels)
    config = dataclasses.replace(config, system=system)
    if changed := differences(stored, config, MACHINE):
        raise RunError(
            f"{directory.path} was trained with other settings than this experiment has now "
            f"({'; '.join(changed)}); choose another directory with --out DIR"
        )
    if row.data == "{data}":
        check_same_data(data, config, directory)
