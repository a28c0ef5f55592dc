"""The end of a stage whose loss no longer falls."""

from __future__ import annotations

import math
from typing import Any


class EarlyStopping:
    """Ends a stage after `patience` epochs in a row without a lower loss.

    Args:
        patience: epochs without a lower loss.

    Example:
        >>> stopping = EarlyStopping(2)
        >>> [stopping.update(epoch, loss) for epoch, loss in enumerate((3.0, 2.0, 2.0, 2.5), 1)]
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

    def update(self, epoch: int, loss: float) -> bool:
        """Whether the stage ends after this epoch."""
        if loss < self.best:
            self.best, self.best_epoch = loss, epoch
        self.stopped = epoch - self.best_epoch >= self.patience
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        """For a JSON header."""
        return {"best": self.best, "best_epoch": self.best_epoch, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.stopped = state["stopped"]
