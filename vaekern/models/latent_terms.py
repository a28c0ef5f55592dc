"""What draws latents towards the prior, where it is not a KL in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaekern.models.posterior import Posterior

#: Of the prior's expected squared distance, at which the kernel has fallen by half.
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def multiquadric_mmd(z: Tensor, prior: Tensor) -> Tensor:
    r"""Unbiased MMD^2 of two batches, with the inverse multiquadric kernel at seven scales.

    .. math:: k(a, b) = \sum_{s} \frac{2 d s}{2 d s + \|a - b\|^2}, \quad
              s \in \{0.1, 0.2, 0.5, 1, 2, 5, 10\}, \\
              \frac{\sum_{i \ne j} k(z_i, z_j) + k(p_i, p_j)}{n (n - 1)}
              - \frac{2}{n^2} \sum_{i, j} k(z_i, p_j)

    Its expectation is 0 where both follow one distribution, and it may be negative.

    Args:
        z: [n, d].
        prior: [n, d], as many draws from N(0, I).

    Returns:
        A number, with its graph.

    Raises:
        ValueError: fewer than two samples, or shapes that differ.

    Example:
        >>> z = torch.tensor([[0.0], [1.0]])
        >>> float(multiquadric_mmd(z, z)) < 0  # only the cross term has i = j
        True

    Source: Tolstikhin et al. 2018, Wasserstein Auto-Encoders, algorithm 2, and its code, in which
    both sums within run over the pairs off the diagonal and the sum across over all.
    """
    if z.shape != prior.shape or z.dim() != 2 or len(z) < 2:
        raise ValueError(
            f"z and prior must both be [n, d] with n at least 2, got {list(z.shape)} and "
            f"{list(prior.shape)}; use batches of at least 2 samples"
        )
    n, d = z.shape
    off_diagonal = 1.0 - torch.eye(n, dtype=z.dtype, device=z.device)
    within = (_kernel(z, z, d) + _kernel(prior, prior, d)) * off_diagonal
    return within.sum() / (n * (n - 1)) - 2.0 * _kernel(z, prior, d).mean()


def _kernel(a: Tensor, b: Tensor, d: int) -> Tensor:
    """[n, n]. What cancels in a small distance is far below the narrowest kernel's width."""
    lengths = a.square().sum(-1)[:, None] + b.square().sum(-1)
    squared = (lengths - 2.0 * (a @ b.T)).clamp_min(0.0)
    total = torch.zeros_like(squared)
    for scale in SCALES:
        width = 2.0 * d * scale
        total = total + width / (width + squared)
    return total


def _unnamed(q: Posterior) -> Tensor:
    """[d] of NaN: the value is no sum over dimensions."""
    return q.mu.new_full((q.mu.shape[-1],), math.nan)


def _ratio(
    q: Posterior, z: Tensor, ratio: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    assert ratio is not None
    return ratio.mean(), _unnamed(q)


def _squared_norm(
    q: Posterior, z: Tensor, ratio: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    per_dim = 0.5 * z.flatten(0, -2).square().mean(0)
    return per_dim.sum(), per_dim.detach()


def _mmd(
    q: Posterior, z: Tensor, ratio: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    z = z.flatten(0, -2)
    prior = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    return multiquadric_mmd(z, prior), _unnamed(q)


def _none(
    q: Posterior, z: Tensor, ratio: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    per_dim = q.mu.new_zeros(q.mu.shape[-1])
    return per_dim.sum(), per_dim


Term = Callable[[Posterior, Tensor, Tensor | None, torch.Generator | None], tuple[Tensor, Tensor]]

#: (value, its sum over dimensions before that was taken [d]) for (q, z [..., d],
#: log q(z|x) - log p(z) [...] or None, generator); means over batch and draws, before beta.
#:
#: - "kl": the KL by its draws, where a flow leaves no closed form (elsewhere the loss has it);
#: - "squared-norm": |z|^2 / 2, what the KL leaves where the variance is fixed (Takida et al. 2022,
#:   section 4.2; Ghosh et al. 2020, equation 5);
#: - "mmd": `multiquadric_mmd` to fresh draws of N(0, I) (Tolstikhin et al. 2018);
#: - "none".
LATENT_TERMS: dict[str, Term] = {
    "kl": _ratio,
    "squared-norm": _squared_norm,
    "mmd": _mmd,
    "none": _none,
}
