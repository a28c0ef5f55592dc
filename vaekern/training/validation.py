"""The loss of samples that are not trained on."""

from __future__ import annotations

import math

import torch

from vaekern.models import VAE
from vaekern.models.modes import evaluation_mode
from vaekern.training.metrics import FIELDS
from vaekern.training.processes import Processes
from vaekern.training.seeds import derived_seed
from vaekern.training.sources import Images, Latents


@torch.no_grad()
def validate(
    vae: VAE,
    held_out: Images | Latents,
    batch_size: int,
    seed: tuple[int, ...],
    processes: Processes | None = None,
) -> dict[str, float]:
    """Means over the held-out samples, in evaluation mode, with the same noise for the same seed.

    Args:
        vae: its mode is restored.
        held_out: at least one sample; its batches are not shared.
        batch_size: the largest batch.
        seed: words of the noise's seed.
        processes: that each do some of the batches; all get the means.

    Returns:
        A number for each of FIELDS.
    """
    processes = processes or Processes()
    device = next(vae.parameters()).device
    generator = torch.Generator(device)
    sums = torch.zeros(len(FIELDS), dtype=torch.float64, device=device)
    # Batches of nearly equal size: a variance estimated from a few samples is too small. One is
    # never divided between processes: the estimates of a part are others.
    pieces = torch.arange(len(held_out)).tensor_split(math.ceil(len(held_out) / batch_size))
    with evaluation_mode(vae):
        for index in range(processes.rank, len(pieces), processes.size):
            generator.manual_seed(derived_seed(*seed, index))
            found = vae(held_out.batch(pieces[index], generator), generator=generator)
            means = torch.stack([getattr(found, name).mean() for name in FIELDS])
            sums += len(pieces[index]) * means
    sums = processes.sum(sums)
    return dict(zip(FIELDS, (sums / len(held_out)).tolist(), strict=True))
