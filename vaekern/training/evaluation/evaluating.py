"""From a run directory to numbers, a table and pictures."""

from __future__ import annotations

import difflib
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vaekern
from vaekern._optional import require
from vaekern.data import Dataset
from vaekern.evaluation import Extractor, inception_extractor
from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.storage.tensors import read_header
from vaekern.training.checkpoints import reached, second_stage_is_trained
from vaekern.training.config import TrainConfig
from vaekern.training.evaluation.catalogue import DIAGNOSTICS
from vaekern.training.evaluation.earlier import earlier
from vaekern.training.evaluation.needs import features
from vaekern.training.evaluation.outcome import Outcome
from vaekern.training.evaluation.row import Diagnostic
from vaekern.training.evaluation.subject import Subject
from vaekern.training.evaluation.table import make_table
from vaekern.training.page import write_page
from vaekern.training.run import choose_device, read_data
from vaekern.training.run_directory import MODEL, RunDirectory, load_model
from vaekern.training.sources import trained_on

FOLDER = "evaluation"
NUMBERS = "evaluation.json"
TABLE = "table.txt"
FORMAT = "vaekern evaluation"
VERSION = 1
NOTED = 5.0  # seconds from which on a diagnostic has a line in a log


class Evaluation(NamedTuple):
    """Result of :func:`evaluate`."""

    table: str
    outcomes: dict[str, Outcome]  # by the diagnostic's name
    path: Path  # the directory with evaluation.json, table.txt and the pictures


def evaluate(
    run: str | Path,
    *,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    inception: str | Path | None = None,
    extractor: Extractor | None = None,
    stretch: bool = False,
    weights: str = "last",
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Compute every diagnostic that applies to a trained run.

    Likelihood, reconstructions, orthogonality, smoothness and disentanglement are of the test
    split, what the encoder does and the aggregate posteriors of the training split, without what
    was held out for validation. A diagnostic that fails is reported as failed, and the others go
    on. Each is written as soon as it is done. A second evaluation into the same directory replaces
    what it computes again; the rest stays there as long as it is of the same weights, seed and
    samples. What lies in RUN/evaluation is also shown by RUN/report.html.

    Args:
        run: the directory that `vaekern train` wrote.
        only: names from :data:`DIAGNOSTICS`; None takes all.
        skip: names to leave out.
        samples: how many samples each diagnostic looks at, in the place of its own number.
        seed: of the choice of samples and of all noise; a diagnostic's numbers do not depend on
            which others are computed.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        inception: a file with Inception's weights, for FID and KID: see
            `vaekern.evaluation.load_inception`.
        extractor: instead, features of your own. Without either the distances between images are
            taken in the features of a small classifier that is trained on the data.
        stretch: stretch generated and reconstructed images before these distances, as the code of
            Dai & Wipf does.
        weights: ``"last"``, or ``"best"`` for stage 1 as it was after its best epoch; stage 2,
            which has learned the latents of the last weights, is then left out.
        out: the directory to write to; RUN/evaluation by default, RUN/evaluation-best for the best.
        progress: a bar on stderr; by default where stderr is a terminal. Elsewhere, unless it is
            False, a line for each diagnostic that took more than a few seconds.

    Returns:
        The table, and what became of each diagnostic. evaluation.json holds the same numbers, with
        null for those that are not finite, and those that were there before.

    Raises:
        RunError: the directory is no run, its first stage is not finished, a file is damaged, its
            data are gone or others, the output cannot be written, or a part of the diagnostics is
            asked for where an evaluation with other settings lies.
        ValueError: an unknown name, nothing left to compute, a file that does not hold Inception,
            or an option outside its range.
        KeyboardInterrupt: Ctrl-C; what was finished is written.

    Example:
        >>> found = evaluate("runs/digits-iso-i-mle", skip=["codes_tsne"])  # doctest: +SKIP
        >>> print(found.table)  # doctest: +SKIP
        >>> found.outcomes["polarized_regime"].values["delta_kl"]  # doctest: +SKIP
        0.031
    """
    chosen = _choose(only, skip)
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}; leave it out for the default")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie between 0 and 2^63 - 1, got {seed}")
    if weights not in ("last", "best"):
        raise ValueError(f"weights must be last or best, got {weights!r}")
    best = weights == "best"
    on = choose_device(device)
    if inception is not None and extractor is not None:
        raise ValueError("give inception or an extractor, not both")
    directory = RunDirectory(run)
    config, data, two_stages = _read(directory)
    data, two_stages = trained_on(data, config), two_stages and not best
    model, _ = load_model(run, best_of_stage=1 if best else None)
    model_file = directory.best(1) if best else directory.model
    if inception is not None:
        extractor = inception_extractor(inception, device=on)
    subject = Subject(
        model.to(on),
        data,
        two_stages=two_stages,
        seed=seed,
        samples=samples,
        extractor=extractor,
        stretch=stretch,
    )
    default = directory.path / (f"{FOLDER}-best" if best else FOLDER)
    folder = Path(out).expanduser() if out else default
    about = {
        "format": FORMAT,
        "version": VERSION,
        "vaekern": vaekern.__version__,
        "torch": torch.__version__,
        "run": str(directory.path),
        "seed": seed,
        "samples": samples,
        "device": on.type,
        "extractor": None if extractor is None else extractor.name,
        "stretch": stretch,
        "weights": weights,
        "second_stage": two_stages,
    }
    epoch = _best_epoch(directory) if best else None
    head = _head(config, data, two_stages, epoch)
    outcomes: dict[str, Outcome] = {}
    others = {row.name: features in row.needs for row in DIAGNOSTICS if row not in chosen}
    kept = earlier(folder / NUMBERS, about, others, model_file)
    _prepare(folder, [row for row in DIAGNOSTICS if row.name not in kept])

    def write(complete: bool) -> None:
        found = kept | outcomes
        found = {row.name: found[row.name] for row in DIAGNOSTICS if row.name in found}
        diagnostics = {name: outcome.to_json() for name, outcome in found.items()}
        content = about | {"complete": complete, "diagnostics": diagnostics}
        table = make_table(head, DIAGNOSTICS, found)
        write_atomically(folder / NUMBERS, json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_atomically(folder / TABLE, table + "\n")

    tqdm = require("tqdm", "vaekern evaluate").tqdm
    quiet = None if progress is None else not progress
    with tqdm(chosen, unit="", disable=quiet, dynamic_ncols=True, leave=False) as bar:
        for row in bar:
            bar.set_description_str(row.name)
            outcomes[row.name] = _outcome(row, subject, folder)
            write(complete=False)
            if bar.disable and progress is None and outcomes[row.name].seconds > NOTED:
                _note(row.name, outcomes, chosen)
    write(complete=True)
    if folder == directory.path / FOLDER and directory.metrics.is_file():
        write_page(directory.path)  # report.html shows it too
    return Evaluation(make_table(head, chosen, outcomes), outcomes, folder)


def _note(name: str, outcomes: dict[str, Outcome], chosen: list[Diagnostic]) -> None:
    """A line in a log, of what takes long."""
    seconds = outcomes[name].seconds
    done = f"{len(outcomes)} of {len(chosen)} diagnostics"
    print(f"{name} took {seconds:.0f} s, {done} done", file=sys.stderr, flush=True)


def _choose(only: Sequence[str] | None, skip: Sequence[str]) -> list[Diagnostic]:
    known = [row.name for row in DIAGNOSTICS]
    for name in [*(only or ()), *skip]:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"there is no diagnostic {name!r}; {hint}`vaekern evaluate -h` lists all of them"
            )
    chosen = [
        row for row in DIAGNOSTICS if (only is None or row.name in only) and row.name not in skip
    ]
    if not chosen:
        raise ValueError("only and skip leave no diagnostic to compute; name fewer in skip")
    return chosen


def _read(directory: RunDirectory) -> tuple[TrainConfig, Dataset, bool]:
    """(settings, data, whether stage 2 was trained), once it is clear that they belong together."""
    directory.read_description()
    config = directory.read_config()
    remedy = f"finish it with vaekern train --run {directory.path} --resume"
    if not directory.model.exists():
        raise RunError(f"{directory.path} holds no weights yet; {remedy}")
    position = reached(directory)
    if position.stage == 1:
        raise RunError(
            f"{directory.path} is not finished (stage 1, epoch {position.epoch} of "
            f"{config.stage1.epochs}); {remedy}"
        )
    return config, read_data(directory), second_stage_is_trained(directory)


def _prepare(folder: Path, rows: Sequence[Diagnostic]) -> None:
    """Make the directory, without what an earlier evaluation has drawn for these rows."""
    if RunDirectory(folder).description.exists():
        raise RunError(f"{folder} holds a run, whose table would be lost; choose another --out DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / NUMBERS).exists():
            for row in rows:
                for name in row.figures:
                    (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot write to {folder} ({error.strerror}); choose another directory with --out DIR"
        ) from error


def _outcome(row: Diagnostic, subject: Subject, folder: Path) -> Outcome:
    """Compute and draw one row; whatever is wrong with it stays its own affair."""
    began = time.monotonic()
    about: dict[str, Any] = {"group": row.group, "split": row.split}
    subject.begin(row.name)
    unmet, reason = _attempt(lambda: next(filter(None, (need(subject) for need in row.needs)), ""))
    if unmet:
        return Outcome(**about, status="skipped", reason=unmet)
    found = None
    if reason is None:
        n = subject.count(row.split, row.samples)
        found, reason = _attempt(functools.partial(row.compute, subject, n))
    if found is None:
        return Outcome(
            **about, status="failed", reason=reason, seconds=round(time.monotonic() - began, 2)
        )
    drawn: list[str] = []
    failed: dict[str, str] = {}
    for name, draw in row.figures.items():
        path = folder / name
        _, reason = _attempt(functools.partial(draw, subject, found, path))
        if reason is None:
            drawn.append(name)
        else:
            failed[name] = reason
    about["split"] = found.split or row.split
    return Outcome(
        **about,
        status="done",
        n=found.n,
        seconds=round(time.monotonic() - began, 2),
        values=found.values,
        figures=drawn,
        failed_figures=failed,
    )


def _attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, why there is none)."""
    try:
        return work(), None
    except RunError:  # the disk is full: nothing that follows could be written either
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        known = isinstance(error, (ValueError, TypeError, NotImplementedError, ImportError))
        return None, text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _best_epoch(directory: RunDirectory) -> int:
    return int(read_header(directory.best(1), MODEL)["epoch"])


def _head(
    config: TrainConfig, data: Dataset, two_stages: bool, best_epoch: int | None
) -> list[str]:
    network = config.network
    second = "both stages" if two_stages else "stage 1 (stage 2 is not trained)"
    if best_epoch is not None:
        second = f"stage 1 after its best epoch, {best_epoch}"
    return [
        f"{data.name}: {config.model.describe()}, {network.network}, "
        f"{network.latent_dim} latent dimensions, {second}",
        f"({len(data.test)} test and {len(data.train)} train samples; "
        "beside each value how many it looks at; ± is a standard error)",
    ]
