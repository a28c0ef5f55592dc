"""The learning rates of both parameter groups, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vaekern.training.config import StageConfig
from vaekern.training.schedule_config import ScheduleConfig


class LearningRate:
    """Multiplies the learning rates of a stage by a factor, which is 1 in its first epoch.

    step is 0.5^floor(epoch / halve_every), cosine (1 + cos(pi epoch / epochs)) / 2: functions of
    the epoch alone, so that nothing has to be stored and settings that are changed when a run is
    continued hold from its next epoch on. plateau is `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Args:
        optimizer: its groups are the networks and, where there is one, a learned variance.
        stage: the rates that are multiplied.
        schedule: how.

    Source:
        step: Dai & Wipf 2019, appendix D. cosine: Loshchilov & Hutter 2017, equation 5.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, stage: StageConfig, schedule: ScheduleConfig
    ):
        self.optimizer = optimizer
        self.stage = stage
        self.kind = schedule.lr_schedule
        self.plateau: ReduceLROnPlateau | None = None
        self._set(1.0)
        if self.kind == "plateau":
            # No threshold: torch's is relative, and a loss below zero would count as lower when
            # it has risen a little.
            self.plateau = ReduceLROnPlateau(
                optimizer, factor=0.5, patience=schedule.lr_patience, threshold=0.0, eps=0.0
            )

    def start(self, epoch: int) -> None:
        """Set the rates of this epoch."""
        if self.kind == "step":
            self._set(self.stage.lr_factor(epoch))
        elif self.kind == "cosine":
            self._set(0.5 * (1.0 + math.cos(math.pi * min(epoch / self.stage.epochs, 1.0))))

    def end(self, watched: float) -> None:
        """Look at an epoch's loss."""
        if self.plateau is not None:
            self.plateau.step(watched)

    def state_dict(self) -> dict[str, Any]:
        """What plateau remembers; the other schedules remember nothing."""
        if self.plateau is None:
            return {}
        state = self.plateau.state_dict()
        kept = {key: state[key] for key in ("best", "num_bad_epochs", "last_epoch")}
        return kept | {"factor": self.optimizer.param_groups[0]["lr"] / self.stage.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        if self.plateau is not None and state:
            left = dict(state)
            # A power of two: the rates are those of before, to the bit.
            self._set(left.pop("factor"))
            self.plateau.load_state_dict(left)

    def _set(self, factor: float) -> None:
        rates = (self.stage.lr, self.stage.variance_lr)
        for group, lr in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = lr * factor
