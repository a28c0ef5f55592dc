"""What an experiment is: rows to train over several seeds, and columns to compute of each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One number of every run.

    Attributes:
        name: in the files, and in the papers' numbers.
        label: heading of the table; ``{frechet}`` and ``{kernel}`` stand for FID and KID where
            there is Inception, else for FD and KD.
        measure: the row of `MEASURES` that computes it.
        key: the name of the number in what that measure returns; ``{stage}`` and other names in
            braces stand for what the row's `keys` say.
        digits: how it is written, a format specification.
        scale: what it is multiplied by.
        relative: the same number of the row's `baseline`, at the same seed, is subtracted.
        log: whether figures draw it on a logarithmic axis.
    """

    name: str
    label: str
    measure: str
    key: str
    digits: str = ".3f"
    scale: float = 1.0
    relative: bool = False
    log: bool = False

    def heading(self, *, inception: bool) -> str:
        """The label."""
        fid, kid = ("FID", "KID") if inception else ("FD", "KD")
        return self.label.format(frechet=fid, kernel=kid)

    def key_of(self, row: Row) -> str:
        """The key of a row's number."""
        return self.key.format_map({"stage": 1, "sampler": "prior", **row.keys})


@dataclass(frozen=True)
class Row:
    """One system of a table.

    Attributes:
        name: in paths, as --rows takes it, and in the papers' numbers.
        label: in the table.
        settings: over the experiment's, as `TrainConfig.from_flat` takes them; ``preset`` is one.
        keys: what the names in braces of columns' keys stand for; by default ``stage`` is 1 and
            ``sampler`` prior.
        run: the row whose runs this one looks at; its own by default.
        data: the spec of this row's data, ``{data}`` in it the experiment's.
        procedure: how it is trained, a row of `PROCEDURES`.
        group: rows of one group are one curve, or one colour, of a figure.
        value: the place on a curve.
        baseline: the row that columns which are `relative` are relative to.
    """

    name: str
    label: str
    settings: Settings = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None
    data: str = "{data}"
    procedure: str = "train"
    group: str = ""
    value: float | None = None
    baseline: str | None = None

    @property
    def run_name(self) -> str:
        """The row whose directory the runs are in."""
        return self.run or self.name


@dataclass(frozen=True)
class Experiment:
    """One table: `vaekern reproduce` knows nothing of an experiment but this.

    Attributes:
        title: one line.
        source: the paper and the place in it.
        rows: what is trained.
        columns: what is computed.
        settings: of all rows.
        data: the spec that is taken where none is given.
        kind: what the data must be; None for both.
        factors: whether the data must have known factors of variation.
        papers: where the paper's numbers are: a file of `papers`, and tables in it.
        figures: the rows of `FIGURES` that draw it.
        figure_columns: the names of the columns drawn; all by default.
        axis: of curves, what `Row.value` is.
        log_axis: whether that is drawn logarithmically.
        cost: what it takes, in words.
        notes: what was chosen where the paper leaves a choice open.
    """

    title: str
    source: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    settings: Settings = field(default_factory=dict)
    data: str = "digits"
    kind: Literal["image", "vector"] | None = None
    factors: bool = False
    papers: tuple[str, ...] = ()
    figures: Sequence[str] = ("dots",)
    figure_columns: Sequence[str] = ()
    axis: str = ""
    log_axis: bool = False
    cost: str = ""
    notes: str = ""

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def takes_data(self) -> bool:
        """Whether its rows are trained on data of the user's choice."""
        return any("{data}" in row.data for row in self.rows)

    def with_runs(self, names: Sequence[str]) -> Iterator[Row]:
        """The rows of these names, and those whose runs or values they need, in order."""
        wanted = set(names)
        for name in names:
            wanted |= {self.row(name).run_name, self.row(name).baseline or name}
        return (row for row in self.rows if row.name in wanted)


def merged(*parts: Settings) -> dict[str, Any]:
    """Settings one over the other; those of the two stages key by key.

    Example:
        >>> merged({"stage1": {"epochs": 9, "lr": 1e-4}}, {"beta": 4.0, "stage1": {"epochs": 3}})
        {'stage1': {'epochs': 3, 'lr': 0.0001}, 'beta': 4.0}
    """
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                result[key] = {**result.get(key, {}), **value}
            else:
                result[key] = value
    return result
