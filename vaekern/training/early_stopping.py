"""The end of a stage whose loss no longer falls."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class EarlyStopping:
    """Ends a stage after `patience` epochs in a row without a lower loss, and keeps the best.

    Args:
        patience: epochs without a lower loss.

    Example:
        >>> stopping = EarlyStopping(2)
        >>> [stopping.update(epoch, loss, {}) for epoch, loss in enumerate((3.0, 2.0, 2.0, 2.5), 1)]
        [False, False, False, True]
        >>> stopping.best_epoch
        2

    Source:
        Prechelt 1998, Early Stopping - But When?, the class UP_s with strips of one epoch.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.best = math.inf
        self.best_epoch = 0
        self.stopped = False
        self.weights: dict[str, Tensor] = {}

    def update(self, epoch: int, loss: float, weights: dict[str, Tensor]) -> bool:
        """Whether the stage ends after this epoch; its weights are copied if it is the best."""
        if loss < self.best:
            self.best, self.best_epoch = loss, epoch
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        self.stopped = epoch - self.best_epoch >= self.patience
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        """All but the weights, for a JSON header."""
        return {"best": self.best, "best_epoch": self.best_epoch, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Go on from `state_dict` and the weights."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.stopped, self.weights = state["stopped"], weights
