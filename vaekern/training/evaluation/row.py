"""What one row of the table of diagnostics says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vaekern.training.evaluation.subject import Split, Subject

Group = Literal[
    "likelihood", "generation", "latents", "orthogonality", "smoothness", "disentanglement"
]


class Found(NamedTuple):
    """What a diagnostic found."""

    n: int  # samples it looked at
    values: dict[str, Any]  # numbers and lists of numbers, as evaluation.json holds them
    detail: Any = None  # what its figures draw
    split: str | None = None  # of the samples, where the row's own is not it


class Line(NamedTuple):
    """A line of the table: templates that are filled in with the values of a `Found`.

    A line whose value names something that was not found is left out.
    """

    label: str
    value: str
    unit: str = ""
    remark: str = ""


Compute = Callable[[Subject, int], Found]
Draw = Callable[[Subject, Found, Path], None]
Need = Callable[[Subject], str | None]  # why it is not met; None where it is


class Diagnostic(NamedTuple):
    """One row: `vaekern evaluate` knows nothing of a diagnostic but this."""

    name: str  # as --only and --skip take it: the function's
    group: Group
    summary: str  # one line of help
    compute: Compute
    split: Split
    samples: int  # looked at by default, where there are as many
    lines: tuple[Line, ...] = ()
    figures: Mapping[str, Draw] = {}  # by file name
    needs: tuple[Need, ...] = ()
    notes: tuple[str, ...] = ()  # under its lines: templates, left out like them
