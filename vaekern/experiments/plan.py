"""What an experiment will do: its rows, seeds and settings, checked before anything is written."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from vaekern.data import Dataset
from vaekern.experiments.experiment import Experiment, Row, Settings, merged
from vaekern.experiments.joint import PROCEDURES as JOINT
from vaekern.experiments.joint import check_joint
from vaekern.models import TwoStageVAE
from vaekern.training.config import Device, TrainConfig
from vaekern.training.fitting import fitted
from vaekern.training.run import load_data

DEVICES = get_args(Device)
# Numbers of a set that is read again for every row that puts something on it.
SMALL = 50_000_000
MOST_SEEDS = 10_000  # a larger number is a seed that was taken for how many


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
        epochs: of stage 1, for the row that has most; other rows, the second stage and all that is
            counted in epochs are shortened in proportion.
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
        """The settings of one run: the experiment's, the row's, shortened, and those given.

        Raises:
            ValueError: a setting that does not exist, or one outside its range.
        """
        own = {
            "data": row.data.format(data=self.data),
            "seed": seed,
            "device": self.device,
            "run": str(self.out / "runs" / row.run_name / f"seed-{seed}"),
        }
        flat = merged(self.experiment.settings, row.settings)
        if self.epochs is not None:
            flat = merged(flat, _shortened(flat, self.epochs / self._longest))
        return TrainConfig.from_flat(merged(flat, self.settings, own))

    @cached_property
    def _longest(self) -> int:
        """Epochs of stage 1 of the row that has most."""
        rows = (merged(self.experiment.settings, row.settings) for row in self.experiment.rows)
        return max(TrainConfig.from_flat(flat).stage1.epochs for flat in rows)

    def runs(self) -> Iterator[tuple[Row, int]]:
        """Each run that is trained: seed by seed, so that a part of them is a smaller table."""
        for seed in self.seeds:
            for row in self.trained:
                yield row, seed

    @property
    def default_out(self) -> Path:
        """The directory that is taken where none is given."""
        return _default_out(self.name, self.data)

    def identity(self) -> dict[str, Any]:
        """What may not change when the experiment goes on: rows and seeds may."""
        return {
            "experiment": self.name,
            "data": self.data,
            "epochs": self.epochs,
            "settings": dict(self.settings),
        }


def _shortened(flat: Settings, factor: float) -> dict[str, Any]:
    """The lengths of the stages, and what is counted in epochs, times a factor."""
    config = TrainConfig.from_flat(flat)
    stages: dict[str, Any] = {
        name: {
            "epochs": max(1, round(stage.epochs * factor)) if stage.epochs else 0,
            "halve_every": max(1, round(stage.halve_every * factor)),
        }
        for name, stage in (("stage1", config.stage1), ("stage2", config.stage2))
    }
    if config.eps.eps_epochs is not None:
        stages["eps_epochs"] = max(1, round(config.eps.eps_epochs * factor))
    return stages


#: Settings that `reproduce` has its own words for.
RESERVED = {
    "seed": "seeds (--seeds)",
    "data": "data (--data)",
    "device": "device (--device)",
    "run": "out (--out)",
    "preset": "rows (--rows), whose presets they are",
}


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
        TypeError: an argument of another type.
    """
    if name not in experiments:
        raise ValueError(
            f"there is no experiment {name!r}; {_near(name, list(experiments))}"
            "`vaekern reproduce --list` names all of them"
        )
    experiment = experiments[name]
    if data is not None and not isinstance(data, str):
        raise TypeError(f"data must be a spec such as 'digits', got {type(data).__name__}")
    if data is not None and not experiment.takes_data:
        raise ValueError(
            f"data must be left out for {name}, whose rows have data of their own, got {data!r}"
        )
    seeds = _seeds(seeds)
    if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int)):
        raise TypeError(f"epochs must be a whole number or None, got {epochs!r}")
    if epochs is not None and epochs < 1:
        raise ValueError(
            f"epochs must be at least 1, got {epochs}; leave it out for the experiment's own"
        )
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings must be a mapping, got {type(settings).__name__}")
    for key, instead in RESERVED.items():
        if key in settings:
            raise ValueError(f"settings must not hold {key!r}; use {instead}")
    if isinstance(rows, str):
        raise TypeError(f"rows must be names in a list, got the text {rows!r}; pass [{rows!r}]")
    if rows is not None and not rows:
        raise ValueError("rows must name at least one row, got none; leave it out for all")
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
    return Plan(
        name,
        experiment,
        chosen,
        trained,
        spec,
        seeds,
        Path(out).expanduser() if out else _default_out(name, spec),
        epochs,
        settings,
        device,
        None if inception is None else str(inception),
        stretch,
    )


def _default_out(name: str, spec: str) -> Path:
    return Path("experiments") / f"{name}-{spec.rstrip('/').rpartition('/')[2].replace(':', '-')}"


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= MOST_SEEDS:
            raise ValueError(f"seeds must be a number from 1 to {MOST_SEEDS}, got {given}")
        return tuple(range(given))
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"seeds must be a whole number or a list of them, got {given!r}")
    if not given or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in given):
        raise ValueError(f"seeds must hold at least one whole number from 0 on, got {list(given)}")
    if len(set(given)) < len(given):
        raise ValueError(f"seeds must differ from one another, got {list(given)}; each counts once")
    return tuple(given)


def check(plan: Plan) -> Dataset:
    """Read the experiment's data, and build every row's model for them.

    Returns:
        The data, before what a row makes of them.

    Raises:
        ValueError: data or settings that do not go with the experiment; the text names the row.
        OSError, TypeError: data that cannot be read.
    """
    experiment = plan.experiment
    own = Row("data", "")
    try:
        # Of seed 0 whichever are asked for: the features that images are compared in depend on it.
        found = load_data(plan.config(own, 0))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --data SPEC says where the data are") from None
    if experiment.kind is not None and found.kind != experiment.kind:
        raise ValueError(
            f"data of {plan.name} must be {experiment.kind}s, got {plan.data}, which holds "
            f"{found.kind}s; choose other --data"
        )
    if experiment.factors and found.train_factors is None:
        raise ValueError(
            f"data of {plan.name} must have known factors of variation, got {plan.data}; choose a "
            "generated set or dsprites:FILE with --data"
        )
    loaded = {own.data: found}
    for row in plan.trained:
        config = plan.config(row, plan.seeds[0])
        try:
            if row.data not in loaded and _is_small(found):
                loaded[row.data] = load_data(config)
            its = loaded.get(row.data, found)
            config = fitted(config, its)
            if row.procedure in JOINT:
                check_joint(config)
            TwoStageVAE.from_config(config.model, its.sample_shape, its.value_range)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"row {row.name!r} cannot be trained on {config.data.data}: {error}; change --data "
                "or --set, or leave the row out with --rows"
            ) from error
    return found


def _is_small(data: Dataset) -> bool:
    """Whether it costs little to read it once more for each row that changes it."""
    return isinstance(data.train, Tensor) and data.train.numel() <= SMALL


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}? " if near else ""
