"""The directory of an experiment: what is in it, and whether it is this one's."""

from __future__ import annotations

import json

from vaekern.experiments import table
from vaekern.experiments.figures import FIGURES
from vaekern.experiments.plan import Plan
from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.training.config import TrainConfig
from vaekern.training.run_directory import RunDirectory

MANIFEST = "experiment.json"
PAGE, CSV, NUMBERS = "table.md", "table.csv", "results.json"
CLASSIFIER = "classifier.safetensors"
# What an experiment leaves in its directory, beside the manifest.
OWN = {"runs", PAGE, CSV, NUMBERS, CLASSIFIER, *(f"{name}.png" for name in FIGURES)}


def claim(plan: Plan) -> None:
    """Make the directory this experiment's, or find that it is.

    Raises:
        RunError: it holds something else, or this experiment with other settings.
    """
    manifest = plan.out / MANIFEST
    own = {"format": table.FORMAT, "version": table.VERSION, **plan.identity()}
    own = json.loads(json.dumps(own))  # as it comes back
    if manifest.is_file():
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
        return
    try:
        # each run in it says itself what it was trained with
        others = {p.name for p in plan.out.iterdir()} - OWN if plan.out.exists() else set()
        if others:
            raise RunError(
                f"{plan.out} is not empty and holds no experiment; choose another with --out DIR"
            )
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot create {plan.out} ({error.strerror}); choose another with --out DIR"
        ) from error
    write_atomically(manifest, json.dumps(own, indent=1) + "\n")


def check_settings(directory: RunDirectory, config: TrainConfig) -> None:
    """Whether a finished run is the one that the experiment would train.

    Raises:
        RunError: its settings are others.
    """
    stored, asked = directory.read_config().to_flat(), config.to_flat()
    asked["levels"] = asked["levels"] or stored["levels"]  # a run takes them from its data
    if stored | {"run": None} != asked | {"run": None}:
        raise RunError(
            f"{directory.path} was trained with other settings than this experiment has now; "
            "choose another directory with --out DIR"
        )
