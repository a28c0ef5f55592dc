"""The numbers of an experiment: values of all runs, their spread, and what did not work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vaekern.experiments.experiment import Column, Row
from vaekern.experiments.papers import Quoted
from vaekern.experiments.statistics import Spread, spread


@dataclass
class Results:
    """What was found so far.

    Attributes:
        rows: of the table.
        columns: of the table.
        seeds: of the runs.
        paper: the paper's numbers on these data.
        values: {(row, seed): {column: value}}.
        failed: {run: why it could not be trained or measured}.
        skipped: {measure: why it does not apply}.
    """

    rows: Sequence[Row]
    columns: Sequence[Column]
    seeds: Sequence[int]
    paper: Quoted | None = None
    values: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def value(self, row: Row, column: Column, seed: int) -> float | None:
        """One number of one run, relative to the row's baseline where the column is."""
        own = self.values.get((row.name, seed), {}).get(column.name)
        if own is None or not column.relative:
            return own
        if row.baseline is None:
            return None
        base = self.values.get((row.baseline, seed), {}).get(column.name)
        return None if base is None else own - base

    def all_values(self, row: Row, column: Column) -> list[float]:
        """A column's numbers, by seed."""
        found = (self.value(row, column, seed) for seed in self.seeds)
        return [value for value in found if value is not None]

    def spread(self, row: Row, column: Column) -> Spread | None:
        """A cell of the table."""
        return spread(self.all_values(row, column))

    def of_paper(self, row: str, column: Column) -> Spread | None:
        """The paper's cell."""
        return None if self.paper is None else self.paper.value(row, column.name)

    def present(self) -> list[Column]:
        """The columns in which some row has a number."""
        return [c for c in self.columns if any(self.all_values(row, c) for row in self.rows)]

    def quoted_rows(self) -> Mapping[str, str]:
        """{name: label} of the rows that only the paper has."""
        return {} if self.paper is None else self.paper.labels
