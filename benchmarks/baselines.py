"""What a PyTorch user writes without vaekern: every objective and operator as a plain eager chain.

These chains are timed as they stand (eager) and under ``torch.compile``.  They share no code with
vaekern.  x is [B, D], mu and logvar are [B, d]; values are nats, summed over the dimensions and
averaged over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
EPS = 1e-6  # where the maximum-likelihood objectives add it: inside the logarithm


def kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1).mean()


def fixed(q: Tensor, x_logvar: Tensor | None) -> Tensor:
    return 0.5 * (q + LOG_2PI).sum(1).mean()


def learned(q: Tensor, x_logvar: Tensor | None) -> Tensor:
    assert x_logvar is not None
    return 0.5 * (q * torch.exp(-x_logvar) + x_logvar + LOG_2PI).sum(1).mean()


def mle_iso_i(q: Tensor, x_logvar: Tensor | None) -> Tensor:
    return 0.5 * q.shape[1] * (torch.log(q.mean()) + 1 + LOG_2PI)


def mle_iso_d(q: Tensor, x_logvar: Tensor | None) -> Tensor:
    features = q.shape[1]
    logvar = torch.log(q.sum(1) + EPS) - math.log(features)
    return 0.5 * features * (logvar + 1 + LOG_2PI).mean()


def mle_diag_i(q: Tensor, x_logvar: Tensor | None) -> Tensor:
    return 0.5 * (torch.log(q.mean(0) + EPS) + 1 + LOG_2PI).sum()


def mle_diag_d(q: Tensor, x_logvar: Tensor | None) -> Tensor:
    return 0.5 * (torch.log(q + EPS) + 1 + LOG_2PI).sum(1).mean()


@dataclass(frozen=True)
class Objective:
    name: str
    estimate: str
    covariance: str
    reconstruction: Callable[[Tensor, Tensor | None], Tensor]  # of q = (x_hat - x)^2 and x_logvar
    # Tensors of x's size that any implementation has to move, forward and backward together: x_hat
    # and x are read and the gradient is written (3).  mle iso-i needs a number from all of them
    # before the first gradient, so it reads them again (5); the decoder's x_logvar is read too and
    # has a gradient of its own (5).
    tensors_moved: int = 3


OBJECTIVES = (
    Objective("fixed iso-i", "fixed", "iso-i", fixed),
    Objective("learned iso-i", "learned", "iso-i", learned),
    Objective("mle iso-i", "mle", "iso-i", mle_iso_i, tensors_moved=5),
    Objective("mle iso-d", "mle", "iso-d", mle_iso_d),
    Objective("mle diag-i", "mle", "diag-i", mle_diag_i),
    Objective("mle diag-d", "mle", "diag-d", mle_diag_d),
    Objective("learned diag-i", "learned", "diag-i", learned),
    Objective("learned diag-d", "learned", "diag-d", learned, tensors_moved=5),
)


def loss_function(objective: Objective) -> Callable[..., Tensor]:
    """loss(x_hat, x, mu, logvar, x_logvar), as one function that torch.compile sees whole."""
    reconstruction = objective.reconstruction

    def loss(
        x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, x_logvar: Tensor | None = None
    ) -> Tensor:
        return reconstruction((x_hat - x) ** 2, x_logvar) + kl(mu, logvar)

    return loss


def reparameterize(mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mu + torch.exp(0.5 * logvar) * noise


def sample_and_kl(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    z = reparameterize(mu, logvar, noise)
    return z, -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)


def full_gaussian_kl(mu: Tensor, scale_tril: Tensor) -> Tensor:
    log_determinant = scale_tril.diagonal(dim1=1, dim2=2).log().sum(1)
    square = (scale_tril**2).sum((1, 2)) + (mu**2).sum(1)
    return (0.5 * (square - mu.shape[1]) - log_determinant).mean()
