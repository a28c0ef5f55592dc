"""Singular values of latent samples beside those of the prior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaekern.diagnostics._checks import check_samples


class LatentSpectrum(NamedTuple):
    """Result of :func:`latent_spectrum`."""

    singular_values: Tensor  # [min(N, d)] float64, descending
    reference: Tensor  # [min(N, d)] float64, descending: of as many draws of N(0, I)


@torch.no_grad()
def latent_spectrum(
    z: Tensor,  # [N, d]
    *,
    normalized: bool = False,
    generator: torch.Generator | None = None,
) -> LatentSpectrum:
    r"""Singular values of a matrix of latent samples, and of a standard normal one of its size.

    .. math:: Z = U \,\mathrm{diag}(s)\, V^\top, \quad Z \in \mathbb{R}^{N \times d}

    Rows are samples of the aggregate posterior q(z) (or of q(u), for a second stage). Where it is
    N(0, I), as sampling from the prior assumes, the two curves agree; a curve that falls below the
    reference has directions in which q(z) is narrower than the prior. The samples are not centred,
    so a mean away from the origin shows as a large first value.

    Args:
        z: [N, d] latent samples.
        normalized: divide both by sqrt(N): the squares are then the eigenvalues of Z^T Z / N,
            which tend to 1 for the prior. The paper plots them undivided.
        generator: makes the reference reproducible.

    Returns:
        Both spectra in float64, descending.

    Raises:
        ValueError: a shape other than [N, d], or values that are not finite.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> z = torch.tensor([[3.0, 0.0], [0.0, 0.5], [4.0, 0.0]])
        >>> latent_spectrum(z).singular_values.tolist()
        [5.0, 0.5]

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models", section 5.2 and figure 3.
    """
    check_samples("z", z)
    draws = torch.randn(z.shape, dtype=torch.float64, device=z.device, generator=generator)
    scale = len(z) ** -0.5 if normalized else 1.0
    return LatentSpectrum(*(scale * torch.linalg.svdvals(each) for each in (z.double(), draws)))
