"""The numbers of an experiment: values of all runs, their spread, and what did not work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vaekern.experiments.experiment import Column, Row
from vaekern.experiments.measures import IN_FEATURES
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
        inception: whether images are compared in Inception's features, as in the papers.
        shared: whether all runs are compared in the same features.
        values: {(row, seed): {column: value}}.
        failed: {run: why it could not be trained or measured}.
        skipped: {(measure, why it does not apply): the rows of which that is so}.
    """

    rows: Sequence[Row]
    columns: Sequence[Column]
    seeds: Sequence[int]
    paper: Quoted | None = None
    inception: bool = False
    shared: bool = False
    values: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def value(self, row: Row, column: Column, seed: int) -> float | None:
        """One number of one run."""
        return self.values.get((row.name, seed), {}).get(column.name)

    def all_values(self, row: Row, column: Column) -> list[float]:
        """A column's numbers, by seed."""
        found = (self.value(row, column, seed) for seed in self.seeds)
        return [value for value in found if value is not None]

    def spread(self, row: Row, column: Column) -> Spread | None:
        """A cell of the table."""
        return spread(self.all_values(row, column))

    def of_paper(self, row: str, column: Column) -> Spread | None:
        """The paper's cell, where it is on the scale of ours."""
        if self.paper is None or (column.measure in IN_FEATURES and not self.inception):
            return None
        return self.paper.value(row, column.name)

    def heading(self, column: Column) -> str:
        """What stands above a column."""
        return column.heading(inception=self.inception)

    def present(self) -> list[Column]:
        """The columns in which some row has a number."""
        return [c for c in self.columns if any(self.all_values(row, c) for row in self.rows)]

    def quoted_rows(self) -> Mapping[str, str]:
        """{name: label} of the rows that only the paper has, with a number in some column."""
        if self.paper is None:
            return {}
        columns = self.present()
        return {
            name: label
            for name, label in self.paper.labels.items()
            if any(self.of_paper(name, column) for column in columns)
        }
