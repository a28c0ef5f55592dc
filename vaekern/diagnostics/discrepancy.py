"""How far two samples are from one distribution: the maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from vaekern.diagnostics._checks import check_samples

# The scales of Tolstikhin et al.'s inverse multiquadric: from tight to wide around 2 d sigma^2.
IMQ_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BLOCK_ELEMENTS = 1 << 21  # 16 MB of float64 distances at a time, whatever N and M are
MEDIAN_SAMPLES = 1024  # of each sample, for the median heuristic

Kernel = Callable[[Tensor], Tensor]  # squared distances to kernel values


@torch.no_grad()
def maximum_mean_discrepancy(
    x: Tensor,  # [N, d]
    y: Tensor | None = None,  # [M, d]
    *,
    kernel: Literal["imq", "rbf"] = "imq",
    bandwidth: float | None = None,
    generator: torch.Generator | None = None,
    unbiased: bool = True,
) -> Tensor:  # []
    r"""Squared maximum mean discrepancy between two samples.

    .. math::

        \widehat{\mathrm{MMD}}^2 = \frac{1}{N(N-1)} \sum_{i \ne j} k(x_i, x_j)
            + \frac{1}{M(M-1)} \sum_{i \ne j} k(y_i, y_j)
            - \frac{2}{NM} \sum_{i, j} k(x_i, y_j)

    The kernels are, with h = ``bandwidth``,

    - ``"imq"``: :math:`k(a, b) = \sum_s C_s / (C_s + |a - b|^2)` with :math:`C_s = 2 d h^2 s` and
      s in {0.1, 0.2, 0.5, 1, 2, 5, 10}; h is the standard deviation of the prior, 1 by default.
      Its values lie in (0, 7].
    - ``"rbf"``: :math:`k(a, b) = \exp(-|a - b|^2 / 2 h^2)`; by default h is the median distance
      between different points of both samples together (of at most 1024 evenly spaced rows of
      each). Its values lie in (0, 1].

    Args:
        x: [N, d] samples, for example latent codes.
        y: [M, d] samples to compare with; by default N draws from N(0, I).
        kernel: ``"imq"`` or ``"rbf"``.
        bandwidth: h above; positive.
        generator: makes the draws of the default y reproducible.
        unbiased: leave the diagonals out, as written above: the expectation is then exactly the
            squared MMD, so it averages 0 for equal distributions and may be negative. With
            ``False`` the diagonals count and the divisors are N^2 and M^2: never negative.

    Returns:
        A 0-d float64 tensor. It has no unit. Distances, kernels and sums are float64 and are taken
        in blocks, so memory does not grow with N M.

    Raises:
        ValueError: shapes, devices or sizes that do not fit, values that are not finite, an unknown
            kernel, or a bandwidth that is not positive.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> latents = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
        >>> near = maximum_mean_discrepancy(latents, generator=torch.Generator().manual_seed(1))
        >>> far = maximum_mean_discrepancy(
        ...     latents + 1, generator=torch.Generator().manual_seed(1)
        ... )
        >>> bool(near.abs() < 0.02), bool(far > 0.5)
        (True, True)

    Source: Gretton et al. 2012, "A kernel two-sample test", lemma 6; the inverse multiquadric is
    that of Tolstikhin et al. 2018, "Wasserstein auto-encoders".
    """
    smallest = 2 if unbiased else 1
    check_samples("x", x, at_least=smallest)
    if kernel not in ("imq", "rbf"):
        raise ValueError(f'kernel must be "imq" or "rbf", got {kernel!r}.')
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")
    x = x.double()
    if y is None:
        y = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    else:
        check_samples("y", y, at_least=smallest, beside=("x", x))
        y = y.double()
    # Only differences matter, and |a|^2 + |b|^2 - 2 a.b loses digits far from the origin.
    centre = (x.sum(0) + y.sum(0)) / (len(x) + len(y))
    x, y = x - centre, y - centre

    k = _kernel(kernel, bandwidth, x, y)
    within = _within(x, k, unbiased) + _within(y, k, unbiased)
    return within - 2 * _between(x, y, k) / (len(x) * len(y))


def _kernel(kernel: str, bandwidth: float | None, x: Tensor, y: Tensor) -> Kernel:
    if kernel == "imq":
        base = 2 * x.shape[1] * (1.0 if bandwidth is None else bandwidth) ** 2

        def imq(squared: Tensor) -> Tensor:
            value = torch.zeros_like(squared)
            for scale in IMQ_SCALES:
                value += (squared + base * scale).reciprocal_().mul_(base * scale)
            return value

        return imq
    width = _median_distance(x, y) if bandwidth is None else bandwidth
    return lambda squared: torch.exp(squared / (-2 * width**2))


def _median_distance(x: Tensor, y: Tensor) -> float:
    """The median heuristic (Gretton et al. 2012, section 8) on evenly spaced rows."""
    pooled = torch.cat([_thin(x), _thin(y)])
    distance = torch.pdist(pooled)
    median = float(distance.median()) if len(distance) else 0.0
    if median == 0:
        raise ValueError(
            "bandwidth cannot be the median distance, which is 0 here (most points coincide); "
            "give a positive bandwidth"
        )
    return median


def _thin(samples: Tensor) -> Tensor:
    step = -(-len(samples) // MEDIAN_SAMPLES)
    return samples[::step]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:  # [N, M]
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :]
    return squared.addmm_(a, b.T, alpha=-2).clamp_(min=0)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``rows`` whose block with ``columns`` columns keeps to the memory bound."""
    size = max(1, BLOCK_ELEMENTS // max(columns, 1))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _within(x: Tensor, k: Kernel, unbiased: bool) -> Tensor:
    """Mean of k over pairs of one sample, each unordered pair computed once."""
    count = len(x)
    total = x.new_zeros(())
    for rows in _blocks(count, count):
        square = _squared_distances(x[rows], x[rows]).fill_diagonal_(0)
        values = k(square)
        total += values.sum() - (values.diagonal().sum() if unbiased else 0)
        if rows.stop < count:
            total += 2 * k(_squared_distances(x[rows], x[rows.stop :])).sum()
    return total / (count * (count - 1) if unbiased else count**2)


def _between(x: Tensor, y: Tensor, k: Kernel) -> Tensor:
    """Sum of k over all pairs of two samples."""
    total = x.new_zeros(())
    for rows in _blocks(len(x), len(y)):
        total += k(_squared_distances(x[rows], y)).sum()
    return total
