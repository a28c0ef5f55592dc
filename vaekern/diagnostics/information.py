"""Mutual information of data and codes: bounds from a sample of the encoder."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vaekern import functional
from vaekern.diagnostics._checks import check_samples
from vaekern.diagnostics.latents import check_same_samples

BLOCK_ELEMENTS = 1 << 21  # 16 MB of float64 log-densities at a time, whatever N is
SMALLEST_LOGVAR = -700.0  # exp(-logvar) is finite in float64


class MutualInformation(NamedTuple):
    """Result of :func:`mutual_information`, all in nats."""

    lower: Tensor  # [] float64: at most log N
    upper: Tensor  # [] float64: E KL(q(z|x) || N(0, I))
    leave_one_out: Tensor  # [] float64: what Takida et al. tabulate


@torch.no_grad()
def mutual_information(
    mu: Tensor,  # [N, d]
    logvar: Tensor,  # [N, d]
    *,
    z: Tensor | None = None,  # [N, d]
    generator: torch.Generator | None = None,
) -> MutualInformation:
    r"""Bounds on I(x; z), the information that a code z ~ q(z|x) carries about its x.

    .. math::

        \mathrm{lower} &= \frac1N \sum_i \Big[ \log q(z_i|x_i)
            - \log \frac1N \sum_j q(z_i|x_j) \Big], \\
        \mathrm{upper} &= \frac1N \sum_i \mathrm{KL}(q(z|x_i) \,\|\, N(0, I)), \\
        \mathrm{leave\ one\ out} &= \frac1N \sum_i \Big[ \mathrm{E} \log q(z|x_i)
            - \log \frac1{N-1} \sum_{j \ne i} q(z_i|x_j) \Big].

    For N independent x, E lower <= I(x; z) <= E upper, with the data's true distribution behind
    both expectations.

    - ``lower`` compares each z with its own x among N, so it is never above log N: where it comes
      near to that, N is too small to tell how much more there is. The 10,000 samples of the paper
      can show at most 9.21 nats.
    - ``upper`` exceeds I(x; z) by KL(q(z) || N(0, I)), the mismatch of the aggregate posterior.
    - ``leave_one_out`` is the paper's equation D.1 as its tables 1 and E.8 show it: z is scored
      against samples that do not hold its own x (and with the d_z/2 that its printed d_x/2 must
      be). It is no estimate. Its expectation lies above I(x; z), by Jensen's inequality, but it
      takes N of the order of exp(I) for the difference to become small; before that it may exceed
      ``upper``, as it does in those tables. For d = 8 independent dimensions with
      sigma^2 = 0.00445, mean variance 1 - sigma^2 and N = 4000 it is about 170 nats, where I(x; z)
      is 21.7. It is here to compare with those tables, and with nothing else.

    The densities are diagonal Gaussians with each sample's own variances. For equal variances the
    third line is D.1 term by term. A deterministic encoder (sigma = 0) has no density; its I(x; z)
    is infinite for continuous data.

    Args:
        mu: [N, d] encoder means of N >= 2 independent samples.
        logvar: [N, d] encoder log-variances, log sigma^2.
        z: [N, d] with z_i drawn from q(z|x_i); by default drawn here.
        generator: makes that draw reproducible.

    Returns:
        The three values in nats. Densities and sums are float64; the N x N log-densities are
        computed in blocks, so memory does not grow with N^2.

    Raises:
        ValueError: shapes, devices or sizes that do not fit, values that are not finite, a
            log-variance below -700, or both z and generator.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> mu = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
        >>> found = mutual_information(mu, torch.full_like(mu, -9.0), z=mu)
        >>> round(float(found.lower), 4)  # four codes, all told apart: log 4
        1.3863

    Source: Takida et al. 2022, "Preventing oversmoothing in VAE via generalized variance
    parameterization", equations A.2 and D.1; lower and leave_one_out are the two sample bounds of
    Poole et al. 2019, "On variational bounds of mutual information", section 2.2 and equation 13.
    """
    check_samples("mu", mu, at_least=2)
    check_same_samples(mu, logvar)
    smallest = float(logvar.min())
    if smallest < SMALLEST_LOGVAR:
        raise ValueError(
            f"logvar must be at least {SMALLEST_LOGVAR:g}, got {smallest:g}; a deterministic "
            "encoder has no density"
        )
    mu, logvar = mu.double(), logvar.double()
    if z is None:
        z = functional.reparameterize(mu, logvar, generator=generator)
    else:
        if generator is not None:
            raise ValueError("z and generator must not both be given; drop the generator")
        check_samples("z", z, beside=("mu", mu))
        if len(z) != len(mu):
            raise ValueError(f"z must hold as many samples as mu, got {len(z)} and {len(mu)}")
        z = z.double()
    count, dims = mu.shape
    own = -0.5 * ((z - mu).square() * (-logvar).exp() + logvar).sum(1)
    among, others = _log_sums(z, mu, logvar, own)
    minus_entropy = -0.5 * (logvar.sum(1) + dims)
    return MutualInformation(
        (own - among).mean() + math.log(count),
        functional.gaussian_kl(mu, logvar),
        (minus_entropy - others).mean() + math.log(count - 1),
    )


def _log_sums(z: Tensor, mu: Tensor, logvar: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_j and log sum_{j != i} of q(z_i|x_j), without the constant of 2 pi, each [N]."""
    # The squared distance is expanded into matrix products, whose rounding, 1e-16 |z|^2 / sigma^2,
    # shows only between samples of one code; each sample's own distance is put in exactly.
    centre = mu.mean(0)
    z, mu = z - centre, mu - centre
    precision = (-logvar).exp()
    scaled = mu * precision
    constant = -0.5 * (mu * scaled + logvar).sum(1)
    among, others = torch.empty_like(own), torch.empty_like(own)
    step = max(1, BLOCK_ELEMENTS // len(mu))
    for start in range(0, len(z), step):
        rows = slice(start, start + step)
        block = constant + z[rows] @ scaled.T
        block.addmm_(z[rows].square(), precision.T, alpha=-0.5)
        diagonal = block.diagonal(start)
        diagonal.fill_(-math.inf)
        others[rows] = torch.logsumexp(block, 1)
        diagonal.copy_(own[rows])
        among[rows] = torch.logsumexp(block, 1)
    return among, others
