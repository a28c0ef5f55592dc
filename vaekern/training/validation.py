"""The loss of samples that are not trained on."""

from __future__ import annotations

import math

import torch

from vaekern.models import VAE
from vaekern.training.metrics import FIELDS
from vaekern.training.sources import Images, Latents


@torch.no_grad()
def validate(vae: VAE, held_out: Images | Latents, batch_size: int, seed: int) -> dict[str, float]:
    """Means over the held-out samples, in evaluation mode, with the same noise for the same seed.

    Args:
        vae: its mode is restored.
        held_out: at least one sample.
        batch_size: the largest batch.
        seed: of the noise.

    Returns:
        A number for each of FIELDS.
    """
    device = next(vae.parameters()).device
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    sums = torch.zeros(len(FIELDS), dtype=torch.float64, device=device)
    training = vae.training
    vae.eval()
    # Batches of nearly equal size: a variance estimated from a few samples is too small.
    pieces = math.ceil(len(held_out) / batch_size)
    for rows in torch.arange(len(held_out)).tensor_split(pieces):
        found = vae(held_out.batch(rows, generator), generator=generator)
        sums += len(rows) * torch.stack([getattr(found, name).mean() for name in FIELDS])
    vae.train(training)
    return dict(zip(FIELDS, (sums / len(held_out)).tolist(), strict=True))
