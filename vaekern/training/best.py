"""The weights of the best epoch so far."""

from __future__ import annotations

import torch
from torch import Tensor

# The names under which a checkpoint holds them.
LOSS, EPOCH, WEIGHTS = "lowest_loss", "lowest_epoch", "lowest."


class Best:
    """The weights after the epoch with the lowest loss. Comparing never waits for the device.

    Args:
        device: where the weights are.
    """

    def __init__(self, device: torch.device):
        self.loss = torch.full((), torch.inf, dtype=torch.float64, device=device)
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, loss: Tensor, epoch: int, weights: dict[str, Tensor]) -> None:
        """Keep a copy of the weights after `epoch` epochs where their loss is the lowest."""
        lower = loss < self.loss  # not where it is NaN
        self.loss = torch.where(lower, loss, self.loss)
        self.epoch = torch.where(lower, epoch, self.epoch)
        kept = self.weights or weights
        self.weights = {
            name: torch.where(lower, value, kept[name]) for name, value in weights.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint; none before the first epoch has ended."""
        if not self.weights:
            return {}
        named = {WEIGHTS + name: value for name, value in self.weights.items()}
        return {LOSS: self.loss, EPOCH: self.epoch, **named}

    @classmethod
    def of_checkpoint(cls, tensors: dict[str, Tensor], device: torch.device) -> Best:
        """From the `tensors` of a checkpoint."""
        best = cls(device)
        if LOSS in tensors:
            best.loss, best.epoch = tensors[LOSS].to(device), tensors[EPOCH].to(device)
            best.weights = {
                name.removeprefix(WEIGHTS): value.to(device)
                for name, value in tensors.items()
                if name.startswith(WEIGHTS)
            }
        return best
