"""How strongly the decoder reacts to its code: expected gap and expected local smoothness."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaekern import _checks
from vaekern.diagnostics._decode import CHUNK
from vaekern.diagnostics._decoders import check_decoder
from vaekern.diagnostics._exact import exact_evaluation
from vaekern.diagnostics.jacobian import decoder_jacobian_chunks


class LocalSmoothness(NamedTuple):
    """Result of :func:`expected_local_smoothness`."""

    smoothness: Tensor  # [] float64: E |J|_F^2
    per_dimension: Tensor  # [] float64: the same divided by d, as Takida et al. tabulate it


class ExpectedGap(NamedTuple):
    """Result of :func:`expected_gap`."""

    gap: Tensor  # [] float64: Delta^2(s^2)
    smoothness: Tensor  # [] float64: gap / (2 s^2), which tends to E |J|_F^2 as s goes to 0
    per_dimension: Tensor  # [] float64: the same divided by d


@torch.no_grad()
def expected_local_smoothness(
    decoder: Any,
    mu: Tensor,  # [N, d]
    *,
    chunk_size: int | None = None,
) -> LocalSmoothness:
    r"""Mean squared Frobenius norm of the decoder's Jacobian over the data.

    .. math:: \mathrm{ELS} = \mathrm{E}_x \|J(\mu(x))\|_F^2, \quad J = \partial \hat x / \partial z

    Large where the decoder is steep, and small where it is oversmoothed. Exact: the derivatives in
    all d directions are taken in forward mode. Takida et al. define ELS by this equation, but what
    their tables 1 and E.8 print under the name is ELS / d (equation C.7; a gap of 6.35e-6 at
    s^2 = 1e-3 and d = 8 is an ELS of 3.2e-3, printed as 3.97e-4).

    Args:
        decoder: a model with ``decode`` (such as a VAE), a module or a function of z, as in
            :func:`vaekern.diagnostics.decoder_jacobian`.
        mu: [N, d] encoder means of the data.
        chunk_size: samples differentiated at once; by default as many as fit its memory budget.

    Returns:
        The definition, and the value divided by d, in squared units of x. Sums are float64.

    Raises:
        TypeError, ValueError: as :func:`vaekern.diagnostics.decoder_jacobian`.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> found = expected_local_smoothness(lambda z: z @ weight.T, torch.zeros(5, 2))
        >>> float(found.smoothness), float(found.per_dimension)
        (14.0, 7.0)

    Source: Takida et al. 2022, "Preventing oversmoothing in VAE via generalized variance
    parameterization", equation 6 (the definition) and C.7 (the divided one).
    """
    total = 0.0
    for J in decoder_jacobian_chunks(decoder, mu, chunk_size=chunk_size):
        total += float(J.double().square().sum())
    smoothness = torch.tensor(total / len(mu), dtype=torch.float64)
    return LocalSmoothness(smoothness, smoothness / mu.shape[1])


@torch.no_grad()
def expected_gap(
    decoder: Any,
    mu: Tensor,  # [N, d]
    noise_variance: float = 1e-2,
    *,
    draws: int = 1,
    chunk_size: int = CHUNK,
    generator: torch.Generator | None = None,
) -> ExpectedGap:
    r"""Mean squared distance between two decodings of a code, each with noise of its own.

    .. math::

        \Delta^2(s^2) = \mathrm{E}\, |\mathrm{Dec}(\mu(x) + \epsilon)
            - \mathrm{Dec}(\mu(x) + \epsilon')|^2, \quad \epsilon, \epsilon' \sim N(0, s^2 I)

    For a linear decoder :math:`\Delta^2 = 2 s^2 \|J\|_F^2` for every s, for any other as s goes to
    0: ``smoothness`` is the gap divided by 2 s^2, to be held beside
    :func:`expected_local_smoothness`. The expectation is an average over the data and ``draws``.

    Args:
        decoder: a model with ``decode`` (such as a VAE), a module or a function of z. Modules are
            put in evaluation mode meanwhile.
        mu: [N, d] encoder means of the data.
        noise_variance: s^2; the paper uses 1e-2 and 1e-3. In float32 the difference of two
            decodings keeps few digits below 1e-8.
        draws: pairs of noise for every mu.
        chunk_size: codes decoded at once.
        generator: makes the noise reproducible, on mu's device; it depends on chunk_size.

    Returns:
        The gap, gap / (2 s^2), and that divided by d (the unit of the papers' ELS columns), in
        squared units of x. Sums are float64.

    Raises:
        ValueError: a noise variance that is not positive, a number below 1, or as
            :func:`vaekern.diagnostics.decoder_jacobian`.
        TypeError: as there.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> found = expected_gap(
        ...     lambda z: z @ weight.T,
        ...     torch.zeros(4000, 2),
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> round(float(found.smoothness))  # |weight|^2 = 14
        14

    Source: Takida et al. 2022, equations 5 and C.8.
    """
    _checks.positive("noise_variance", noise_variance, "it is s^2, such as 1e-2")
    for name, value in (("draws", draws), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    checked, mu = check_decoder(decoder, mu, "mean")
    std = math.sqrt(noise_variance)
    total = 0.0
    with exact_evaluation(checked.module, mu.device):
        for part in mu.split(max(1, chunk_size // 2)):
            for _ in range(draws):
                noise = torch.randn(
                    2, *part.shape, generator=generator, dtype=torch.float64, device=mu.device
                )
                z = (part.double() + std * noise).to(part.dtype)
                one, other = checked.function(z.flatten(0, 1)).double().chunk(2)
                total += float((one - other).square().sum())
    gap = torch.tensor(total / (len(mu) * draws), dtype=torch.float64)
    smoothness = gap / (2 * noise_variance)
    return ExpectedGap(gap, smoothness, smoothness / mu.shape[1])
