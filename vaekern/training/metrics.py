"""Numbers of the training, gathered on the device and fetched in blocks."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from vaekern.diagnostics import PolarizedRegimeTracker
from vaekern.diagnostics.latents import activity
from vaekern.diagnostics.polarization import kl_error
from vaekern.functional import LossComponents
from vaekern.training.processes import Processes

FIELDS = ("loss", "reconstruction", "kl", "mse", "x_logvar")
MISSING = ("x_logvar", "delta_kl")
POLARIZATION = ("delta_kl", "active_units", "active_units_std")

# Rolinek et al. look as often; an epoch that is shorter is looked at when it ends.
OBSERVED_EVERY = 500


class Totals:
    """Sums over the steps of an epoch. Adding to them never waits for the device."""

    def __init__(self, device: torch.device):
        # float64: an epoch of many thousand float32 terms keeps its digits.
        self.sums = torch.zeros(len(FIELDS), dtype=torch.float64, device=device)
        self.steps = 0

    def add(self, components: LossComponents) -> None:
        """Add what one call of a VAE returned."""
        values = [getattr(components, name).detach() for name in FIELDS]
        self.sums += torch.stack([each.mean() if each.dim() else each for each in values])
        self.steps += 1

    def load(self, sums: Tensor, steps: int, processes: Processes) -> None:
        """Go on from the sums [size, len(FIELDS)] of as many processes, or of another number."""
        rows = sums.view(-1, len(FIELDS)).to(self.sums.device)
        self.sums = rows[processes.rank] if len(rows) == processes.size else rows.mean(0)
        self.steps = steps

    def finite(self) -> Tensor:
        """The sums, of which no number may be infinite or NaN; a variance that is not there is 0.

        A decoder without a variance says NaN. One that has become NaN shows in the loss as well.
        """
        last = self.sums[-1:]
        return torch.cat([self.sums[:-1], torch.where(last.isnan(), 0.0, last)])

    def means(self) -> Tensor:
        """[len(FIELDS)], still on the device."""
        return self.sums / max(self.steps, 1)

    def reset(self) -> None:
        """Start a new epoch."""
        self.sums = torch.zeros_like(self.sums)
        self.steps = 0


class Watch:
    """Finds the step whose loss is not finite. Adding a step never waits for the device."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._losses: list[Tensor] = []

    def add(self, step: int, loss: Tensor) -> None:
        """Add the loss of one step."""
        self._steps.append(step)
        self._losses.append(loss.detach())

    def lost(self) -> float:
        """The first step since the last call whose loss is infinite or NaN; inf where none is."""
        if not self._losses:
            return math.inf
        finite = torch.isfinite(torch.stack(self._losses)).tolist()
        steps, self._steps, self._losses = self._steps, [], []
        return next((step for step, ok in zip(steps, finite, strict=True) if not ok), math.inf)


class Polarization:
    """Delta_KL and active units of one batch now and then. Observing never waits for the device."""

    def __init__(self, device: torch.device):
        self.newest = torch.zeros(len(POLARIZATION), dtype=torch.float64, device=device)
        self.tracker = PolarizedRegimeTracker()
        self._untracked: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def observe(self, mu: Tensor, logvar: Tensor, step: int | None = None) -> None:
        """Look at q(z|x) of one batch, and track its Delta_KL where a step is given."""
        by_variance, _ = activity(mu, logvar, "posterior")
        by_std, _ = activity(mu, logvar, "std")
        delta, _, _ = kl_error(mu, logvar, by_std)
        self.newest = torch.stack([delta, by_variance.sum().double(), by_std.sum().double()])
        if step is not None:
            self._untracked.append((step, delta))

    def track(self) -> None:
        """Bring the tracker up to date."""
        if not self._untracked:
            return
        steps, values = zip(*self._untracked, strict=True)
        for step, value in zip(steps, torch.stack(values).tolist(), strict=True):
            if not math.isnan(value):  # the posterior has a KL
                self.tracker.update(step, value)
        self._untracked = []


class Log:
    """Records whose numbers are still on the device, until `lines` fetches them all at once."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._values: list[Tensor] = []
        self.last: dict[str, Any] | None = None

    def add(self, record: dict[str, Any], values: Tensor) -> None:
        """Keep a record; `values` are the means of FIELDS, then the newest of POLARIZATION."""
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
        named: dict[str, Any] = dict(zip(FIELDS + POLARIZATION, row, strict=True))
        # What a system does not have is NaN: a decoder's variance, the KL of a fixed code.
        named |= {name: None for name in MISSING if math.isnan(named[name])}
        counts = {name: int(named[name]) for name in POLARIZATION if name != "delta_kl"}
        return record | named | counts | {"sigma": sigma(named["x_logvar"])}


def sigma(x_logvar: float | None) -> float | None:
    """The decoder's standard deviation (a geometric mean, where there are several)."""
    if x_logvar is None or math.isnan(x_logvar):
        return None
    return math.exp(0.5 * min(x_logvar, 1400.0)) if math.isfinite(x_logvar) else math.nan


def to_lines(records: list[dict[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)
