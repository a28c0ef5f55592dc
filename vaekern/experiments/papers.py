"""The papers' own numbers, from the JSON files of this folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from vaekern.experiments.statistics import Spread


class Quoted(NamedTuple):
    """Tables as their paper prints them, for one data set."""

    source: str
    note: str
    rows: Mapping[str, Mapping[str, Spread]]  # by row and column
    labels: Mapping[str, str]  # of rows that the experiment has not

    def value(self, row: str, column: str) -> Spread | None:
        """One cell."""
        return self.rows.get(row, {}).get(column)


@cache
def _read(file: str) -> dict[str, Any]:
    text = resources.files("vaekern.experiments").joinpath("papers", f"{file}.json")
    return dict(json.loads(text.read_text(encoding="utf-8")))


def quoted(file: str, tables: Sequence[str], data: str | None) -> Quoted | None:
    """The tables of a paper on one of its data sets; None where it has none of that.

    A cell is written as a number, or as [mean, standard deviation].

    Example:
        >>> table = quoted("dai_wipf", ["table1"], "mnist")
        >>> table.value("two-stage", "samples").text(".1f")
        '12.6 ± 1.5'
    """
    found = [_read(file)["tables"][table] for table in tables]
    found = [table for table in found if data in table["data"]]
    if not found:
        return None
    rows: dict[str, dict[str, Spread]] = {}
    for table in found:
        for row, cells in table["data"][data].items():
            own = rows.setdefault(row, {})
            own |= {column: _spread(cell) for column, cell in cells.items()}
    labels = {name: label for t in found for name, label in t.get("labels", {}).items()}
    source = "; ".join(table["source"] for table in found)
    notes = (table["note"] for table in found)
    return Quoted(source, " ".join(filter(None, notes)), rows, labels)


def _spread(cell: float | list[float]) -> Spread:
    mean, std = cell if isinstance(cell, list) else (cell, None)
    return Spread(float(mean), None if std is None else float(std), 0)
