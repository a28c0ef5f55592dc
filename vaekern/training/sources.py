"""What the stages learn, batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from vaekern.models import Posterior
from vaekern.training.seeds import derived_seed

# Data up to this size lives on the device; a larger set is sent batch by batch.
RESIDENT_BYTES = 4 * 2**30


def split(train: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(held out, the rest) of a training set, drawn at random; neither is empty.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if len(train) < 2:
        raise ValueError(
            f"validation_fraction must be 0 for a training set of {len(train)}, got {fraction}; "
            "leave it out"
        )
    count = min(max(1, round(fraction * len(train))), len(train) - 1)
    rows = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(derived_seed(seed, 4))
    )
    return train[rows[:count]], train[rows[count:]]


class Images:
    """What stage 1 learns: rows of the training set."""

    def __init__(self, x: Tensor, device: torch.device):
        self.device = device
        self.dimensions = x[0].numel()
        small = x.numel() * x.element_size() <= RESIDENT_BYTES
        self.x = x.to(device) if small else x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[B, *sample_shape]."""
        return self.x[rows.to(self.x.device)].to(self.device, non_blocking=True)


class Latents:
    """What stage 2 learns: a fresh z ~ q(z|x) whenever a row is asked for."""

    def __init__(self, posterior: Posterior):
        self.posterior = posterior
        self.dimensions = posterior.mu.shape[1]

    def __len__(self) -> int:
        return len(self.posterior.mu)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[B, d]."""
        return self.posterior.take(rows.to(self.posterior.mu.device)).sample(generator=generator)
