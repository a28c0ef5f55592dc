"""Decoders as the diagnostics call them: in evaluation mode, a bounded number of codes at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vaekern.models.modes import evaluation_mode

# Enough codes to fill a machine, few enough that the activations for large images fit.
CHUNK = 512

Decoder = Callable[[Tensor], Tensor]  # z [n, d] to the mean of p(x|z) [n, ...]


def decode(decoder: Decoder, z: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """The decoder's means of z [n, d], as [n, ...]."""
    # a bound method such as vae.decode carries its module
    with torch.no_grad(), evaluation_mode(decoder, getattr(decoder, "__self__", None)):
        return torch.cat([_means(decoder, part) for part in z.split(chunk)])


def _means(decoder: Decoder, z: Tensor) -> Tensor:
    x = decoder(z)
    if not isinstance(x, Tensor) or x.shape[:1] != z.shape[:1] or not x.is_floating_point():
        came = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"decoder must map z [{len(z)}, {z.shape[1]}] to one floating-point tensor "
            f"[{len(z)}, ...], got {came}; pass the part that gives the mean, such as vae.decode"
        )
    return x
