"""What became of each diagnostic, and how evaluation.json holds it."""

from __future__ import annotations

import math
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
        plain: dict[str, Any] = _finite(flat)
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Outcome:
        """The inverse of `to_json`, with NaN for every number that was not finite.

        Raises:
            TypeError: fields that an outcome does not have.
        """
        return cls(**{key: _numbers(value) for key, value in plain.items()})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return math.nan if value is None else value
