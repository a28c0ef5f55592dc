"""What became of each diagnostic, and how evaluation.json holds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["done", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one diagnostic.

    Attributes:
        group: of the table.
        status: ``"done"``, ``"failed"`` or ``"skipped"``.
        split: ``"test"`` or ``"train"``.
        n: samples it looked at.
        seconds: how long it took, with its figures.
        reason: why it failed or was skipped.
        values: its numbers.
        figures: the files that it drew.
        failed_figures: why the others could not be drawn, by file.
    """

    group: str
    status: Status
    split: str
    n: int | None = None
    seconds: float = 0.0
    reason: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    failed_figures: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with null for what is not finite."""
        flat = {key: value for key, value in asdict(self).items() if value not in (None, {}, [])}
        plain: dict[str, Any] = _each(flat, _finite)
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Outcome:
        """The inverse of `to_json`, with NaN for every number that was not finite.

        Raises:
            TypeError: fields that an outcome does not have.
        """
        return cls(**_each(plain, _number))


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with every number and text in it changed."""
    if isinstance(value, dict):
        return {key: _each(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_each(each, change) for each in value]
    return change(value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return math.nan if value is None else value
