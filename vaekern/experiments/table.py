"""An experiment's numbers as a Markdown page, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vaekern
from vaekern.experiments.command import setting_words
from vaekern.experiments.experiment import Column, Row
from vaekern.experiments.measures import IN_FEATURES
from vaekern.experiments.plan import Plan
from vaekern.experiments.results import Results

FORMAT = "vaekern experiment"
VERSION = 1
BAR = "\\|"  # within a cell


def markdown(plan: Plan, results: Results, about: dict[str, Any]) -> str:
    """The page: title, table, what it is of, and what did not work."""
    experiment = plan.experiment
    lines = [f"# {experiment.title}", "", f"{experiment.source}.", "", *_table(results), ""]
    seeds = ", ".join(map(str, results.seeds))
    lines += [f"Data: {about['data']}. Seeds: {seeds}; mean ± standard deviation over them."]
    short = [
        f"{row.label} {len(found)} of {len(results.seeds)}"
        for row in results.rows
        if 0 < len(found := _seeds_of(results, row)) < len(results.seeds)
    ]
    if short:
        lines.append(f"Fewer runs than seeds: {'; '.join(short)}.")
    if fewer := _fewer(results):
        lines.append(f"Fewer numbers than runs, the others not finite or not there: {fewer}.")
    if results.paper is not None:
        lines.append(f"Columns 'paper': {results.paper.source}. {results.paper.note}".rstrip())
    elif experiment.papers:
        lines.append("The paper has no numbers for these data.")
    lines += _of_features(results)
    if experiment.notes:
        lines.append(experiment.notes)
    if plan.settings:
        words = ", ".join(setting_words(plan.settings))
        lines.append(f"With other settings than the experiment's own: {words}.")
    if about["epochs"] is not None:
        lines.append(
            f"Shortened: stage 1 of the longest row to {about['epochs']} "
            f"epoch{'s' * (about['epochs'] != 1)}, all other lengths in proportion."
        )
    for (measure, why), labels in results.skipped.items():
        of = "" if len(labels) == len(results.rows) else f" of {'; '.join(labels)}"
        lines.append(f"{measure}{of} was not computed: {why}.")
    lines += ["", f"    {about['command']}", ""]
    if results.failed:
        lines += ["Failed:", "", *(f"- {run}: {why}" for run, why in results.failed.items()), ""]
    if not about["complete"]:
        lines += ["Not complete: the same command goes on with it.", ""]
    machine = about["machine"]
    lines.append(
        f"{machine['processor']}, {machine['device']}; Python {machine['python']}, "
        f"torch {machine['torch']}, vaekern {machine['vaekern']}; {about['date']}."
    )
    return "\n".join(lines) + "\n"


def _table(results: Results) -> list[str]:
    columns = results.present()
    beside = [c for c in columns if any(results.of_paper(r.name, c) for r in results.rows)]
    head = [
        "",
        *(cell for c in columns for cell in _twice(results.heading(c), "paper", c in beside)),
    ]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in results.rows:
        cells = [row.label]
        for column in columns:
            paper = results.of_paper(row.name, column)
            cells += _twice(
                _text(results.spread(row, column), column), _text(paper, column), column in beside
            )
        lines.append(_line(cells))
    for name, label in results.quoted_rows().items():
        cells = [f"{label} (the paper's number only)"]
        for column in columns:
            cells += _twice("", _text(results.of_paper(name, column), column), column in beside)
        lines.append(_line(cells))
    return lines


def _fewer(results: Results) -> str:
    """The cells that are of fewer runs than their row has."""
    found = []
    for row in results.rows:
        runs = len(_seeds_of(results, row))
        for column in results.present():
            spread = results.spread(row, column)
            if spread is not None and spread.n < runs:
                found.append(f"{row.label}, {results.heading(column)} {spread.n} of {runs}")
    return "; ".join(found)


def _of_features(results: Results) -> list[str]:
    if not any(column.measure in IN_FEATURES for column in results.present()):
        return []
    if results.inception:
        return ["FID and KID are in Inception's features."]
    text = "FD and KD, the Frechet and the kernel distance to real images, "
    text += "are in the features of a small classifier trained on the data"
    text += ", the same for all runs" if results.shared else ""
    paper = results.paper is not None
    return [
        f"{text}; the paper's FID and KID stand beside with --inception." if paper else f"{text}."
    ]


def _twice(own: str, paper: str, beside: bool) -> list[str]:
    return [own, paper] if beside else [own]


def _text(spread: Any, column: Column) -> str:
    return "" if spread is None else str(spread.text(column.digits))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def _seeds_of(results: Results, row: Row) -> list[int]:
    return [seed for seed in results.seeds if (row.name, seed) in results.values]


def comma_separated(results: Results) -> str:
    """One line for each row and column: what a spreadsheet or a script wants."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "mean", "std", "n", "paper_mean", "paper_std"])
    for row in results.rows:
        for column in results.present():
            own, paper = results.spread(row, column), results.of_paper(row.name, column)
            writer.writerow(
                [
                    *(row.name, column.name),
                    *((own.mean, own.std, own.n) if own else ("", "", 0)),
                    *((paper.mean, paper.std) if paper else ("", "")),
                ]
            )
    for name in results.quoted_rows():
        for column in results.present():
            if (paper := results.of_paper(name, column)) is not None:
                writer.writerow([name, column.name, "", "", 0, paper.mean, paper.std])
    return text.getvalue()


def numbers(plan: Plan, results: Results, about: dict[str, Any]) -> dict[str, Any]:
    """results.json: everything, with each run's own values."""
    rows = []
    for row in results.rows:
        summary = {}
        for column in results.present():
            own, paper = results.spread(row, column), results.of_paper(row.name, column)
            summary[column.name] = {
                "mean": own.mean if own else None,
                "std": own.std if own else None,
                "n": own.n if own else 0,
                **({"paper": paper.mean, "paper_std": paper.std} if paper else {}),
            }
        runs = {str(seed): results.values[row.name, seed] for seed in _seeds_of(results, row)}
        rows.append({"name": row.name, "label": row.label, "columns": summary, "runs": runs})
    quoted = [
        {
            "name": name,
            "label": label,
            "columns": {
                column.name: {"paper": paper.mean, "paper_std": paper.std}
                for column in results.present()
                if (paper := results.of_paper(name, column)) is not None
            },
        }
        for name, label in results.quoted_rows().items()
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "experiment": plan.name,
        "title": plan.experiment.title,
        "source": plan.experiment.source,
        **about,
        "columns": {column.name: results.heading(column) for column in results.present()},
        "rows": rows,
        "papers_only": quoted,
        "failed": results.failed,
        "not_computed": [
            {"measure": measure, "why": why, "rows": labels}
            for (measure, why), labels in results.skipped.items()
        ],
    }


def describe_machine(device: str) -> dict[str, str]:
    """Hardware and versions."""
    cores = os.cpu_count() or 1
    return {
        "processor": f"{_processor()}, {cores} core{'s' * (cores > 1)}",
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "vaekern": vaekern.__version__,
    }


def _processor() -> str:
    """As the system names it: platform.processor() is often empty on Linux."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
