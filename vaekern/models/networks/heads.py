"""What every network shares: the checks of its options and the ends of encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Output = Literal["sigmoid", "linear"]
VarianceHead = Literal["sample", "element"]

DecoderOutput = Tensor | tuple[Tensor, Tensor]
"""x_hat, or (x_hat, x_logvar) where the decoder also predicts its log-variance."""

# The encoder's standard deviation never falls below this, as in the two-stage code of Dai & Wipf.
MINIMUM_STD = 1e-6


def check_options(
    sample_shape: Sequence[int],
    latent_dim: int,
    output: str,
    variance_head: str | None,
    initial_variance: float,
) -> None:
    """Raise one clear ValueError for an option that no network accepts."""
    if not sample_shape or any(size < 1 for size in sample_shape):
        raise ValueError(
            f"sample_shape must hold at least one positive size, got {tuple(sample_shape)}; "
            "give the shape of one sample without the batch axis, e.g. (1, 28, 28)"
        )
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
    if output not in ("sigmoid", "linear"):
        raise ValueError(f'output must be "sigmoid" or "linear", got {output!r}')
    if variance_head not in (None, "sample", "element"):
        raise ValueError(
            f'variance_head must be None, "sample" or "element", got {variance_head!r}'
        )
    if not (initial_variance > 0 and math.isfinite(initial_variance)):
        raise ValueError(f"initial_variance must be positive and finite, got {initial_variance}")


def squash(logits: Tensor, output: str) -> Tensor:
    """The decoder's last step: the sigmoid of images in [0, 1], or nothing."""
    return torch.sigmoid(logits) if output == "sigmoid" else logits


def softplus_logvar(raw: Tensor) -> Tensor:
    """logvar = 2 log(1e-6 + softplus(raw)): the encoder's log-variance of Dai & Wipf.

    A softplus grows linearly where an exponential would overflow, and the floor keeps the
    logarithm finite when softplus underflows to zero.
    """
    return 2.0 * torch.log(MINIMUM_STD + F.softplus(raw))


def start_constant(head: nn.Linear | nn.ConvTranspose2d, value: float) -> None:
    """Make a head return `value` for every input until it is trained.

    A learned log-variance then starts exactly where the `variance` option says. The weights start
    at zero, which leaves their own gradient alone: it is the (non-zero) features that multiply it.
    """
    nn.init.zeros_(head.weight)
    assert head.bias is not None
    nn.init.constant_(head.bias, value)
