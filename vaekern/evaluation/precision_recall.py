"""How much of what is generated looks real, and how much of what is real can be generated."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaekern.diagnostics._checks import check_samples

NEIGHBOURS = 3
# Distances at once: 2048 x 10,000 of them in float64 take 160 MB.
ROWS = 2048


class PrecisionRecall(NamedTuple):
    """Result of :func:`precision_recall`, 0-d float64 tensors between 0 and 1."""

    precision: Tensor
    recall: Tensor


@torch.no_grad()
def precision_recall(
    real: Tensor,  # [N, d]
    made: Tensor,  # [M, d]
    *,
    neighbours: int = NEIGHBOURS,
) -> PrecisionRecall:
    r"""The share of each sample that lies on the estimated manifold of the other.

    .. math::

        \mathrm{precision} = \frac1M \sum_{m} \Big[ \exists n: |m - n| \le r_k(n) \Big], \quad
        \mathrm{recall} = \frac1N \sum_{n} \Big[ \exists m: |n - m| \le r_k(m) \Big]

    :math:`r_k` is the distance of a point to its k-th nearest neighbour in its own sample: the
    balls of these radii are what is taken for the manifold. Both depend on the sample sizes: a
    larger sample has smaller balls. Compare at equal N and M.

    Args:
        real: [N, d] features of real samples, more than `neighbours`.
        made: [M, d] features of generated ones, more than `neighbours`.
        neighbours: k.

    Returns:
        precision: how much of what was made looks real.
        recall: how much of what is real can be made.

    Raises:
        ValueError: shapes or devices that do not fit, too few samples, values that are not finite,
            or k below 1.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> made = torch.tensor([[0.25], [0.5], [0.75], [1.25]])
        >>> found = precision_recall(real, made, neighbours=1)
        >>> float(found.precision), float(found.recall)  # nothing was made near 2 and 3
        (1.0, 0.5)

    Source: Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing
    generative models", equations 1 and 2, with their k = 3.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    check_samples("real", real, at_least=neighbours + 1)
    check_samples("made", made, at_least=neighbours + 1, beside=("real", real))
    # The distances are differences of large squares; about the mean these are as small as can be.
    centre = real.double().mean(0)
    real, made = real.double() - centre, made.double() - centre
    return PrecisionRecall(
        _covered(made, real, _radii(real, neighbours)),
        _covered(real, made, _radii(made, neighbours)),
    )


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """[N] distance to the k-th nearest other point."""
    # The point itself, at distance zero, is the first.
    return torch.cat(
        [torch.cdist(part, points).kthvalue(neighbours + 1).values for part in points.split(ROWS)]
    )


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """The share of points in a ball."""
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(ROWS)]
    return torch.cat(inside).double().mean()
