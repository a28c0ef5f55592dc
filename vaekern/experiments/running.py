"""`vaekern reproduce`: trains what is missing, measures it, and keeps the table up to date."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from vaekern.data import Dataset
from vaekern.evaluation import Extractor, inception_extractor
from vaekern.experiments import table
from vaekern.experiments.catalogue import EXPERIMENTS
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
from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.storage.lock import Lock
from vaekern.training.config import TrainConfig
from vaekern.training.run import choose_device, describe_device
from vaekern.training.run_directory import RunDirectory

MANIFEST = "experiment.json"
PAGE, CSV, NUMBERS = "table.md", "table.csv", "results.json"


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
    the table of what it has; figures at the end.

    Args:
        name: a row of :data:`EXPERIMENTS`.
        data: the spec of the data, as `vaekern train` takes it; the experiment's own by default.
        seeds: how many, from 0 on; or which.
        out: the directory; experiments/NAME-DATA by default.
        rows: names of rows; all by default.
        epochs: of stage 1, in place of the experiment's own; the length of the second stage and
            the epochs after which learning rates halve are changed in proportion.
        settings: over those of every row, as `TrainConfig.from_flat` takes them.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        inception: a file with Inception's weights, for FID and KID (see
            `vaekern.evaluation.load_inception`); without it images are compared in the features
            of a small classifier.
        stretch: stretch each generated image to its full range first, as the code of Dai & Wipf.
        show: called with each line of progress.

    Returns:
        The page, all numbers, and where they are.

    Raises:
        ValueError: an unknown name, row or setting, or data that cannot go with the experiment.
        TypeError, OSError: data that cannot be read.
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
        settings=settings or {},
        device=device,
        inception=inception,
        stretch=stretch,
    )
    on = choose_device(device)
    loaded = check(plan)
    extractor = None if inception is None else inception_extractor(inception, device=on)
    results = Results(plan.rows, plan.experiment.columns, plan.seeds)
    results.inception = extractor is not None
    if plan.experiment.papers:
        file, *tables = plan.experiment.papers
        results.paper = quoted(file, tables, recognise(loaded))
    _claim(plan)
    lock = Lock(plan.out / "reproduce.lock", str(plan.out))
    lock.acquire()
    try:
        about = _about(plan, loaded, describe_device(on))
        records: dict[tuple[str, int], Record] = {}
        runs = list(plan.runs())
        for index, (row, seed) in enumerate(runs):
            head = f"[{index + 1}/{len(runs)}] {row.name}, seed {seed}"
            try:
                record, failed = _run(plan, row, seed, extractor, _prefixed(show, f"{head}: "))
                records[row.name, seed] = record
                for measure, reason in failed.items():
                    results.failed[f"{row.name}, seed {seed}, {measure}"] = reason
            except Exception as error:
                reason = _sentence(error)
                show(f"{head}: failed: {reason}")
                results.failed[f"{row.name}, seed {seed}"] = reason
            _collect(plan, records, results)
            _write(plan, results, about)
        about["complete"] = True
        page = _write(plan, results, about)
        for figure in plan.experiment.figures if results.present() else ():
            FIGURES[figure](plan, results, plan.out / f"{figure}.png")
        return Reproduction(page, results, plan.out)
    finally:
        lock.release()


def _claim(plan: Plan) -> None:
    """Make the directory this experiment's, or find that it is.

    Raises:
        RunError: it holds something else, or this experiment with other settings.
    """
    manifest = plan.out / MANIFEST
    own = {"format": table.FORMAT, "version": table.VERSION, **plan.identity()}
    if manifest.is_file():
        try:
            stored = dict(json.loads(manifest.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{manifest} is damaged; choose another directory with --out") from error
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
        if plan.out.exists() and any(plan.out.iterdir()):
            raise RunError(
                f"{plan.out} is not empty and holds no experiment; choose another with --out DIR"
            )
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot create {plan.out} ({error.strerror}); choose another with --out DIR"
        ) from error
    write_atomically(manifest, json.dumps(own, indent=1) + "\n")


def _run(
    plan: Plan, row: Row, seed: int, extractor: Extractor | None, show: Show
) -> tuple[Record, dict[str, str]]:
    """Train one run where it is not trained, and measure it where it is not measured.

    Returns:
        What is known of it, and why measures failed, by name.
    """
    config = plan.config(row, seed)
    directory = RunDirectory(config.run_directory)
    record = Record(directory)
    if record.values["complete"]:
        _check_settings(directory, config)
        said = "finished before, skipped"
    else:
        show("trains")
        done = PROCEDURES[row.procedure](config, show)
        for remark in done.remarks:
            show(f"warning: {remark}")
        record = Record(directory)
        record.values |= {"complete": True, "seconds": done.seconds, "epochs": done.epochs}
        record.write()
        said = f"trained, {done.epochs} epochs in {done.seconds:.0f} s"
    wanted = dict.fromkeys(column.measure for column in plan.experiment.columns)
    missing = [measure for measure in wanted if not record.knows(_name(plan, measure))]
    run = Finished(config, record.values, extractor=extractor, stretch=plan.stretch)
    failed: dict[str, str] = {}
    for measure in missing:
        began = time.monotonic()
        try:
            record.values["measures"][_name(plan, measure)] = numbers(MEASURES[measure](run))
        except NotApplicable as error:
            record.values["skipped"][_name(plan, measure)] = str(error)
        except RunError:  # the disk is full, or the run is damaged: no other measure would work
            raise
        except Exception as error:
            failed[measure] = _sentence(error)
            show(f"{measure} failed: {failed[measure]}")
        record.write()
        if (seconds := time.monotonic() - began) > 5:
            show(f"{measure} took {seconds:.0f} s")
    show(said)
    return record, failed


def _name(plan: Plan, measure: str) -> str:
    """Under which a record keeps a measure: one in other features is another."""
    if measure not in IN_FEATURES:
        return measure
    features = [] if plan.inception is None else [f"in {Path(plan.inception).name}"]
    return ", ".join([measure, *features, *(["stretched"] if plan.stretch else [])])


def _check_settings(directory: RunDirectory, config: TrainConfig) -> None:
    stored, asked = directory.read_config().to_flat(), config.to_flat()
    asked["levels"] = asked["levels"] or stored["levels"]  # a run takes them from its data
    if stored | {"run": None} != asked | {"run": None}:
        raise RunError(
            f"{directory.path} was trained with other settings than this experiment has now; "
            "choose another directory with --out DIR"
        )


def _collect(plan: Plan, records: Mapping[tuple[str, int], Record], results: Results) -> None:
    for row in plan.rows:
        for seed in plan.seeds:
            record = records.get((row.run_name, seed))
            if record is None:
                continue
            baseline = records.get((row.baseline, seed)) if row.baseline else None
            results.values[row.name, seed] = {
                column.name: column.scale * value
                for column in results.columns
                if (value := _number(plan, column, row, record, baseline)) is not None
            }
            results.skipped |= record.values["skipped"]


def _number(
    plan: Plan, column: Column, row: Row, record: Record, baseline: Record | None
) -> float | None:
    place = _name(plan, column.measure), column.key_of(row)
    value = record.number(*place)
    if value is None or not column.relative:
        return value
    base = None if baseline is None else baseline.number(*place)
    return None if base is None else value - base


def _about(plan: Plan, data: Dataset, device: str) -> dict[str, Any]:
    name = recognise(data)
    count = f"{len(data.train)} training and {len(data.test)} test samples"
    return {
        "command": command(plan),
        "data": f"{plan.data}, {count}" + (f", the papers' {name}" if name else ""),
        "seeds": list(plan.seeds),
        "epochs": plan.epochs,
        "machine": table.describe_machine(device),
        "date": date.today().isoformat(),
        "complete": False,
    }


def command(plan: Plan) -> str:
    """The command line of a plan."""
    words = ["vaekern reproduce", plan.name, "--data", plan.data, "--seeds", str(len(plan.seeds))]
    if len(plan.rows) < len(plan.experiment.rows):
        words += ["--rows", *(row.name for row in plan.rows)]
    if plan.epochs is not None:
        words += ["--epochs", str(plan.epochs)]
    if plan.inception is not None:
        words += ["--inception", plan.inception]
    words += ["--stretch"] if plan.stretch else []
    for key, value in plan.settings.items():
        inner = value.items() if isinstance(value, Mapping) else [(None, value)]
        for part, each in inner:
            words += ["--set", f"{key}.{part}={each}" if part else f"{key}={each}"]
    return " ".join(words)


def _write(plan: Plan, results: Results, about: dict[str, Any]) -> str:
    page = table.markdown(plan, results, about)
    write_atomically(plan.out / PAGE, page)
    write_atomically(plan.out / CSV, table.comma_separated(results))
    found = table.numbers(plan, results, about)
    write_atomically(plan.out / NUMBERS, json.dumps(found, indent=1) + "\n")
    return page


def _prefixed(show: Show, head: str) -> Show:
    return lambda text: show(head + text)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    known = isinstance(error, (RunError, ValueError, TypeError, OSError, ImportError))
    return text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")
