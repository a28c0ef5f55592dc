"""Numbers of the training, gathered on the device and fetched in blocks."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from vaekern.functional import LossComponents

FIELDS = ("loss", "reconstruction", "kl", "mse", "x_logvar")


class Totals:
    """Sums over the steps of an epoch. Adding to them never waits for the device."""

    def __init__(self, device: torch.device):
        # float64: an epoch of many thousand float32 terms keeps its digits.
        self.sums = torch.zeros(len(FIELDS), dtype=torch.float64, device=device)
        self.steps = 0

    def add(self, components: LossComponents) -> None:
        """Add what one call of a VAE returned."""
        values = [getattr(components, name).detach().mean() for name in FIELDS]
        self.sums += torch.stack(values)
        self.steps += 1

    def means(self) -> Tensor:
        """[len(FIELDS)], still on the device."""
        return self.sums / max(self.steps, 1)

    def reset(self) -> None:
        """Start a new epoch."""
        self.sums = torch.zeros_like(self.sums)
        self.steps = 0


class Log:
    """Records whose numbers are still on the device, until `lines` fetches them all at once."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._values: list[Tensor] = []
        self.last: dict[str, Any] | None = None

    def add(self, record: dict[str, Any], values: Tensor) -> None:
        """Keep a record; `values` are the means of FIELDS."""
        self._records.append(record)
        self._values.append(values)

    def take(self) -> list[dict[str, Any]]:
        """All records since the last call, complete."""
        if not self._records:
            return []
        rows = torch.stack(self._values).tolist()
        complete = [
            self._complete(record, row) for record, row in zip(self._records, rows, strict=True)
        ]
        self._records, self._values = [], []
        self.last = complete[-1]
        return complete

    @staticmethod
    def _complete(record: dict[str, Any], row: list[float]) -> dict[str, Any]:
        named = dict(zip(FIELDS, row, strict=True))
        return record | named | {"sigma": sigma(named["x_logvar"])}


def sigma(x_logvar: float) -> float:
    """The decoder's standard deviation (a geometric mean, where there are several)."""
    return math.exp(0.5 * min(x_logvar, 1400.0)) if math.isfinite(x_logvar) else math.nan


def to_lines(records: list[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)
