"""`vaekern reproduce`: trains what is missing, measures it, and keeps the table up to date."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vaekern.data import Dataset
from vaekern.evaluation import (
    Extractor,
    FeatureClassifier,
    classifier_extractor,
    fit_feature_classifier,
    inception_extractor,
)
from vaekern.experiments import table
from vaekern.experiments.catalogue import EXPERIMENTS
from vaekern.experiments.command import command
from vaekern.experiments.directory import CLASSIFIER, CSV, NUMBERS, PAGE, check_run, claimed
from vaekern.experiments.experiment import Column, Row
from vaekern.experiments.figures import FIGURES
from vaekern.experiments.finished import Finished
from vaekern.experiments.known_data import recognise
from vaekern.experiments.measures import IN_FEATURES, MEASURES, NotApplicable, numbers
from vaekern.experiments.papers import quoted
from vaekern.experiments.plan import Plan, check, make_plan
from vaekern.experiments.procedures import PROCEDURES
from vaekern.experiments.record import Record
from vaekern.experiments.results import Results
from vaekern.experiments.trained import Show
from vaekern.storage.errors import DivergedError, RunError
from vaekern.storage.files import write_atomically
from vaekern.training.config import TrainConfig
from vaekern.training.run import choose_device, choose_threads, describe_device
from vaekern.training.run_directory import RunDirectory

# Measures that only read what a run has written.
AT_ONCE = {"report", "training_time"}
# What `vaekern train` says of its flags, for a command that has others.
OF_TRAIN = {
    "train again with another --run directory": "remove the directory to train it again",
    "continue with --resume": "go on with the same command",
    "with --run DIR": "with --out DIR",
}


class Reproduction(NamedTuple):
    """Result of :func:`reproduce`."""

    page: str  # the table with what belongs to it, as Markdown
    results: Results
    path: Path  # of table.md, table.csv, results.json, figures and runs/


def reproduce(
    name: str,
    *,
    data: str | None = None,
    seeds: int | Sequence[int] = 3,
    out: str | Path | None = None,
    rows: Sequence[str] | None = None,
    epochs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    inception: str | Path | None = None,
    stretch: bool = False,
    show: Show = print,
) -> Reproduction:
    """Train the rows of one table over several seeds, and write mean and standard deviation.

    Each (row, seed) is an ordinary run directory under OUT/runs. What is there already is used:
    finished runs are skipped, half-finished ones go on, and each says so. A run that fails is named
    and the others go on. Tables are written after every run, so that a stopped experiment leaves
    the table of what it has; figures at the end. Finished runs that are in OUT and were not asked
    for this time stay in the table.

    Args:
        name: a row of :data:`EXPERIMENTS`.
        data: the spec of the data, as `vaekern train` takes it; the experiment's own by default.
        seeds: how many, from 0 on; or which.
        out: the directory; experiments/NAME-DATA by default.
        rows: names of rows; all by default.
        epochs: of stage 1, for the row that has most; other rows, the second stage and the epochs
            after which learning rates halve are shortened in proportion.
        settings: over those of every row, as `TrainConfig.from_flat` takes them.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        inception: a file with Inception's weights, for FID and KID (see
            `vaekern.evaluation.load_inception`); without it images are compared in the features
            of a small classifier, the same for all runs.
        stretch: stretch each generated image to its full range first, as the code of Dai & Wipf.
        show: called with each line of progress.

    Returns:
        The page, all numbers, and where they are.

    Raises:
        ValueError: an unknown name, row or setting, or data that cannot go with the experiment.
        TypeError, OSError: an argument of another type, or data that cannot be read.
        RunError: the directory holds something else, or is in use, or the disk is full.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.

    Example:
        >>> found = reproduce("digits", seeds=3, out="digits")  # doctest: +SKIP
        >>> print(found.page)  # doctest: +SKIP
    """
    plan = make_plan(
        name,
        EXPERIMENTS,
        data=data,
        seeds=seeds,
        out=out,
        rows=rows,
        epochs=epochs,
        settings={} if settings is None else settings,
        device=device,
        inception=inception,
        stretch=stretch,
    )
    on = choose_device(device)
    loaded = check(plan)
    without = _without_features(plan, loaded)
    if without is not None:
        show(without)
    network = None if plan.inception is None else inception_extractor(plan.inception, device=on)
    with claimed(plan):
        for row, seed in plan.runs():
            check_run(plan, row, seed, loaded)
        reproducing = _Reproducing(plan, loaded, on, show, network, extract=without is None)
        try:
            return reproducing()
        finally:
            torch.set_num_threads(reproducing.threads)


def _without_features(plan: Plan, data: Dataset) -> str | None:
    """One sentence where images cannot be compared; None where they can, or need not be.

    Raises:
        ValueError: the experiment does nothing else.
    """
    columns = plan.experiment.columns
    wanted = [column for column in columns if column.measure in IN_FEATURES]
    labels = data.train_labels
    classes = labels is not None and data.test_labels is not None and len(labels.unique()) > 1
    if plan.inception is not None or not wanted or (data.kind == "image" and classes):
        return None
    inception = plan.inception is not None
    names = ", ".join(column.heading(inception=inception) for column in wanted)
    remedy = "give --inception FILE" if data.kind == "image" else "choose images with --data"
    sentence = f"{plan.data} has no classes to train a feature classifier on"
    if data.kind != "image":
        sentence = f"{plan.data} holds vectors, and these columns compare images"
    if len(wanted) == len(columns):
        raise ValueError(f"{sentence}, and {plan.name} has no other columns ({names}); {remedy}")
    return f"warning: {sentence}: without {names}; for these {remedy}"


class _Reproducing:
    """One call of :func:`reproduce`, in a directory that is its own.

    Args:
        plan: what is to be done.
        data: the experiment's.
        device: of all runs.
        show: takes the lines of progress.
        network: whose features images are compared in; None takes a small classifier.
        extract: whether columns that compare images can be computed.
    """

    def __init__(
        self,
        plan: Plan,
        data: Dataset,
        device: torch.device,
        show: Show,
        network: Extractor | None,
        *,
        extract: bool,
    ):
        self.plan, self.data, self.show = plan, data, show
        experiment = plan.experiment
        self.columns = [c for c in experiment.columns if extract or c.measure not in IN_FEATURES]
        self.extractor = (network or self._classifier()) if extract else None
        self.results = Results(plan.rows, self.columns, plan.seeds)
        self.results.inception = plan.inception is not None
        self.results.shared = self.extractor is not None
        if experiment.papers:
            file, *tables = experiment.papers
            self.results.paper = quoted(file, tables, recognise(data))
        self.records: dict[tuple[str, int], Record] = {}
        self.earlier: dict[tuple[str, int], Record | None] = {}
        self.threads = torch.get_num_threads()
        self.about = self._about(describe_device(device))

    def __call__(self) -> Reproduction:
        runs = list(self.plan.runs())
        for index, (row, seed) in enumerate(runs):
            head = f"[{index + 1}/{len(runs)}] {row.name}, seed {seed}"
            torch.set_num_threads(self.threads)  # a small model has taken one for itself
            try:
                self._run(row, seed, _prefixed(self.show, f"{head}: "))
            except Exception as error:
                reason = _sentence(error)
                self.show(f"{head}: failed: {reason}")
                self.results.failed[f"{row.name}, seed {seed}"] = reason
            self._write()
        self.about["complete"] = True
        page = self._write()
        for figure in self.plan.experiment.figures if self.results.present() else ():
            drawn = FIGURES[figure](self.plan, self.results, self.plan.out / f"{figure}.png")
            if not drawn:
                self.show(f"{figure}.png was not drawn: it takes columns that have no numbers here")
        return Reproduction(page, self.results, self.plan.out)

    def _classifier(self) -> Extractor | None:
        """Features for the whole experiment; None where no column compares images."""
        if not any(column.measure in IN_FEATURES for column in self.plan.experiment.columns):
            return None
        path = self.plan.out / CLASSIFIER
        with contextlib.suppress(RunError):
            classifier = FeatureClassifier.load(path)
            if classifier.sample_shape == self.data.sample_shape:
                return classifier_extractor(classifier)
        self.show("trains the classifier whose features images are compared in")
        classifier = fit_feature_classifier(self.data, seed=0)
        classifier.save(path)
        return classifier_extractor(classifier)

    def _run(self, row: Row, seed: int, show: Show) -> None:
        """Train one run where it is not trained, and measure it where it is not measured."""
        plan = self.plan
        config = plan.config(row, seed)
        directory = RunDirectory(config.run_directory)
        record = Record(directory)
        said = "finished before, skipped"
        trains = not record.complete
        if trains:
            show("trains")
            done = PROCEDURES[row.procedure](config, show)
            for remark in done.remarks:
                show(f"warning: {remark}")
            record = Record(directory)
            record.complete = True
            record.write()
            said = f"trained, {_count(done.epochs, 'epoch')} in {done.seconds:.0f} s"
            if not done.epochs:
                said = "nothing was left to train"
        self.records[row.name, seed] = record
        if self._measure(config, record, row, seed, show) and not trains:
            said = "finished before, and now measured"
        show(said)

    def _measure(
        self, config: TrainConfig, record: Record, row: Row, seed: int, show: Show
    ) -> bool:
        """Whether there was something left to measure."""
        plan = self.plan
        wanted = dict.fromkeys(column.measure for column in self.columns)
        missing = [each for each in wanted if not record.knows(_name(plan, each))]
        # features of the data are none of what a row has made of them
        extractor = self.extractor
        if plan.inception is None and row.data != "{data}":
            extractor = None
        run = Finished(config, extractor=extractor, stretch=plan.stretch)
        if slow := [each for each in missing if each not in AT_ONCE]:
            show(f"measures {', '.join(slow)}")
            # as after its training, so that it makes no difference when it is measured
            threads = choose_threads(config.run.threads, run.subject.model)
            torch.set_num_threads(threads or self.threads)
        for measure in missing:
            began = time.monotonic()
            try:
                record.measures[_name(plan, measure)] = numbers(MEASURES[measure](run))
            except NotApplicable as error:
                record.skipped[_name(plan, measure)] = str(error)
            except RunError:  # the disk is full, or the run is damaged: no other measure would work
                raise
            except Exception as error:
                reason = _sentence(error)
                self.results.failed[f"{row.name}, seed {seed}, {measure}"] = reason
                show(f"{measure} failed: {reason}")
            record.write()
            if (seconds := time.monotonic() - began) > 5:
                show(f"{measure} took {seconds:.0f} s")
        return bool(missing)

    def _found(self) -> dict[tuple[str, int], Record]:
        """Records of this call's runs, and of finished ones that were in the directory before."""
        found = dict(self.records)
        for row in self.plan.experiment.rows:
            folder = self.plan.out / "runs" / row.name
            for path in sorted(folder.glob("seed-*")) if row.run is None else ():
                number = path.name.removeprefix("seed-")
                if not number.isdecimal() or (row.name, int(number)) in found:
                    continue
                if f"{row.name}, seed {number}" in self.results.failed:
                    continue
                if (record := self._earlier(row, int(number))) is not None:
                    found[row.name, int(number)] = record
        return found

    def _earlier(self, row: Row, seed: int) -> Record | None:
        """What is known of a finished run of this experiment; looked at once."""
        key = row.name, seed
        if key not in self.earlier:
            self.earlier[key] = None
            try:
                check_run(self.plan, row, seed, self.data)
                record = Record(RunDirectory(self.plan.config(row, seed).run_directory))
                self.earlier[key] = record if record.complete else None
            except (RunError, ValueError) as error:  # other settings, or ones that do not fit it
                self.show(f"{row.name}, seed {seed}: left out of the table: {error}")
        return self.earlier[key]

    def _collect(self) -> None:
        results, experiment = self.results, self.plan.experiment
        records = self._found()
        trained = {name for name, _ in records}
        chosen = {row.name for row in self.plan.rows}
        # What was trained only as another row's baseline is no row of the table.
        results.rows = [
            row
            for row in experiment.rows
            if row.name in chosen or (row.name in self._before and row.run_name in trained)
        ]
        seeds = {seed for name, seed in records if any(r.run_name == name for r in results.rows)}
        results.seeds = sorted(seeds | set(self.plan.seeds))
        results.values, results.skipped = {}, {}
        for row in results.rows:
            for seed in results.seeds:
                record = records.get((row.run_name, seed))
                if record is None:
                    continue
                baseline = records.get((row.baseline, seed)) if row.baseline else None
                results.values[row.name, seed] = {
                    column.name: column.scale * value
                    for column in results.columns
                    if (value := self._number(column, row, record, baseline)) is not None
                }
                for column in results.columns:
                    why = record.skipped.get(_name(self.plan, column.measure))
                    labels = results.skipped.setdefault((column.measure, why), []) if why else []
                    if why and row.label not in labels:
                        labels.append(row.label)

    @functools.cached_property
    def _before(self) -> set[str]:
        """Rows of the table that was there when this call began; where it is damaged, of any."""
        path = self.plan.out / NUMBERS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {row["name"] for row in found["rows"]}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError, KeyError):
            return {row.name for row in self.plan.experiment.rows}

    def _number(
        self, column: Column, row: Row, record: Record, baseline: Record | None
    ) -> float | None:
        place = _name(self.plan, column.measure), column.key_of(row)
        value = record.number(*place)
        if value is None or not column.relative:
            return value
        base = None if baseline is None else baseline.number(*place)
        return None if base is None else value - base

    def _about(self, device: str) -> dict[str, Any]:
        plan, data, name = self.plan, self.data, recognise(self.data)
        count = f"{len(data.train)} training and {len(data.test)} test samples"
        spec = plan.data if plan.experiment.takes_data else "that of each row"
        return {
            "data": f"{spec}, {count}" + (f", the papers' {name}" if name else ""),
            "epochs": plan.epochs,
            "machine": table.describe_machine(device),
            "date": date.today().isoformat(),
            "complete": False,
        }

    def _write(self) -> str:
        _ = self._before  # before it is written over
        self._collect()
        plan, results = self.plan, self.results
        about = self.about | {"command": command(plan, results), "seeds": list(results.seeds)}
        page = table.markdown(plan, results, about)
        write_atomically(plan.out / PAGE, page)
        write_atomically(plan.out / CSV, table.comma_separated(results))
        found = table.numbers(plan, results, about)
        write_atomically(plan.out / NUMBERS, json.dumps(found, indent=1) + "\n")
        return page


def _name(plan: Plan, measure: str) -> str:
    """Under which a record keeps a measure: one in other features is another."""
    if measure not in IN_FEATURES:
        return measure
    features = [] if plan.inception is None else [f"in {Path(plan.inception).name}"]
    return ", ".join([measure, *features, *(["stretched"] if plan.stretch else [])])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _prefixed(show: Show, head: str) -> Show:
    return lambda text: show(head + text)


def _sentence(error: Exception) -> str:
    if isinstance(error, DivergedError):
        return f"{error.what}; lower --set stage1.lr, or --set clip_norm=1, with another --out DIR"
    text = " ".join(str(error).split())
    known = isinstance(error, (RunError, ValueError, TypeError, OSError, ImportError))
    for of_train, own in OF_TRAIN.items():
        text = text.replace(of_train, own)
    return text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")
