"""What an experiment will do: its rows, seeds and settings, checked before anything is written."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vaekern.data import Dataset
from vaekern.experiments.experiment import Experiment, Row, Settings, merged
from vaekern.models import TwoStageVAE
from vaekern.training.config import TrainConfig
from vaekern.training.fitting import fitted
from vaekern.training.run import load_data


@dataclass(frozen=True)
class Plan:
    """An experiment on one data set, with its overrides.

    Attributes:
        name: of the experiment.
        experiment: the experiment.
        rows: those that were asked for.
        trained: those that are trained for them, in order; the others share runs with these.
        data: the spec.
        seeds: of the runs.
        out: the directory.
        epochs: of stage 1, in place of each row's own; the second stage's, and the epochs after
            which learning rates halve, are changed in proportion.
        settings: over every row's.
        device: of all runs.
        inception: a file with Inception's weights, for FID and KID.
        stretch: whether generated images are stretched before these.
    """

    name: str
    experiment: Experiment
    rows: tuple[Row, ...]
    trained: tuple[Row, ...]
    data: str
    seeds: tuple[int, ...]
    out: Path
    epochs: int | None
    settings: Settings
    device: str
    inception: str | None = None
    stretch: bool = False

    def config(self, row: Row, seed: int) -> TrainConfig:
        """The settings of one run.

        Raises:
            ValueError: a setting that does not exist, or one outside its range.
        """
        own = {
            "data": row.data.format(data=self.data),
            "seed": seed,
            "device": self.device,
            "run": str(self.out / "runs" / row.run_name / f"seed-{seed}"),
        }
        flat = merged(self.experiment.settings, row.settings, self.settings, own)
        config = TrainConfig.from_flat(flat)
        return config if self.epochs is None else _shortened(config, flat, self.epochs)

    def runs(self) -> Iterator[tuple[Row, int]]:
        """Each run that is trained: seed by seed, so that a part of them is a smaller table."""
        for seed in self.seeds:
            for row in self.trained:
                yield row, seed

    def identity(self) -> dict[str, Any]:
        """What may not change when the experiment goes on: rows and seeds may."""
        return {
            "experiment": self.name,
            "data": self.data,
            "epochs": self.epochs,
            "settings": dict(self.settings),
        }


def _shortened(config: TrainConfig, flat: Settings, epochs: int) -> TrainConfig:
    factor = epochs / config.stage1.epochs
    stages = {
        name: {
            "epochs": round(stage.epochs * factor) if stage.epochs else 0,
            "halve_every": max(1, round(stage.halve_every * factor)),
        }
        for name, stage in (("stage1", config.stage1), ("stage2", config.stage2))
    }
    if config.stage2.epochs:
        stages["stage2"]["epochs"] = max(1, stages["stage2"]["epochs"])
    return TrainConfig.from_flat(merged(flat, stages))


def make_plan(
    name: str,
    experiments: dict[str, Experiment],
    *,
    data: str | None,
    seeds: int | Sequence[int],
    out: str | Path | None,
    rows: Sequence[str] | None,
    epochs: int | None,
    settings: Settings,
    device: str,
    inception: str | Path | None = None,
    stretch: bool = False,
) -> Plan:
    """The plan for the arguments of :func:`vaekern.experiments.reproduce`.

    Raises:
        ValueError: an unknown experiment or row, or a number outside its range.
    """
    if name not in experiments:
        raise ValueError(
            f"there is no experiment {name!r}; {_near(name, list(experiments))}"
            "`vaekern reproduce --list` names all of them"
        )
    experiment = experiments[name]
    if isinstance(seeds, int):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        seeds = range(seeds)
    if epochs is not None and epochs < 1:
        raise ValueError(
            f"epochs must be at least 1, got {epochs}; leave it out for the experiment's own"
        )
    known = [row.name for row in experiment.rows]
    for each in rows or ():
        if each not in known:
            raise ValueError(
                f"{name} has no row {each!r}; {_near(each, known)}its rows are {', '.join(known)}"
            )
    chosen = tuple(row for row in experiment.rows if rows is None or row.name in rows)
    needed = experiment.with_runs([row.name for row in chosen])
    # A row that shares another's runs trains nothing of its own.
    trained = tuple(row for row in needed if row.run is None)
    spec = data or experiment.data
    folder = f"{name}-{spec.rstrip('/').rpartition('/')[2].replace(':', '-')}"
    return Plan(
        name,
        experiment,
        chosen,
        trained,
        spec,
        tuple(seeds),
        Path(out).expanduser() if out else Path("experiments") / folder,
        epochs,
        settings,
        device,
        None if inception is None else str(inception),
        stretch,
    )


def check(plan: Plan) -> Dataset:
    """Read the experiment's data, and build every row's model for them.

    Returns:
        The data, before what a row makes of them.

    Raises:
        ValueError: data or settings that do not go with the experiment; the text names the row.
        OSError, TypeError: data that cannot be read.
    """
    first = replace(plan.trained[0], data="{data}")
    found, kind = load_data(plan.config(first, plan.seeds[0])), plan.experiment.kind
    if kind is not None and found.kind != kind:
        raise ValueError(
            f"data of {plan.name} must be {kind}s, got {plan.data}, which holds {found.kind}s; "
            f"choose other --data"
        )
    for row in plan.trained:
        config = plan.config(row, plan.seeds[0])
        try:
            config = fitted(config, found)
            TwoStageVAE.from_config(config.model, found.sample_shape, found.value_range)
        except ValueError as error:
            raise ValueError(
                f"row {row.name!r} cannot be trained on {plan.data}: {error}; "
                "choose other --data, or leave the row out with --rows"
            ) from error
    return found


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}? " if near else ""
