"""How far the columns of a Jacobian are from orthogonal: distance to orthogonality."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaekern import _checks, _matrix_checks
from vaekern.diagnostics._jacobians import BLOCK_ELEMENTS, normalized_blocks
from vaekern.linalg import MAX_COLUMNS, nearest_signed_permutation, right_svd


class OrthogonalityDistance(NamedTuple):
    """Result of :func:`distance_to_orthogonality`, for every sample, in float64."""

    full: Tensor  # [B]
    active: Tensor  # [B]
    off_diagonal: Tensor  # [B]
    gaps: Tensor  # [B, d - 1]


@torch.no_grad()
def distance_to_orthogonality(
    J: Tensor,  # [B, m, d]
    active: Tensor | None = None,  # [d] or [B, d] bool
) -> OrthogonalityDistance:
    r"""Distance to orthogonality (DtO) of each Jacobian, with what is needed to read it.

    .. math::

        \mathrm{DtO}(J) = \| V - P(V) \|_F, \qquad J = U \Sigma V^\top

    where P(V) is the signed permutation matrix nearest to V in the entrywise L1 norm. It is 0 where
    the columns of J are orthogonal, at most sqrt(2 (d - sqrt d)), and has no unit. The mean over
    samples at z = mu(x) is the published number; :func:`random_rotation_baseline` is what
    orthogonality by chance would give.

    One number cannot tell whether columns are orthogonal, because V is unique only where the
    singular values differ: an orthonormal J has every rotation as its V, and two or more passive
    dimensions (columns of zeros or noise) leave an arbitrary rotation among themselves, which adds
    up to the random baseline of that many dimensions. Hence three numbers and a warning sign:

    - ``full``: all d columns, as published.
    - ``active``: the columns of the active dimensions alone, k x k for k of them: no passive noise.
      0 for k <= 1.
    - ``off_diagonal``: the mean of \|cos\| over all pairs of columns, with no basis to choose:
      :math:`|J_i^\top J_j| / (|J_i| |J_j|)`. A column of zeros is orthogonal to every other; its
      pairs count as 0 and stay in the mean. 0 for d = 1.
    - ``gaps``: :math:`(s_i - s_{i+1}) / s_i` of the descending singular values, 0 where both are 0.
      Where a gap is near 0, ``full`` measures the arbitrary rotation of an equal pair.

    Args:
        J: [B, m, d] Jacobians in any layout, d at most 256.
        active: the active dimensions, for example ``active_units(mu, definition="std").mask``, for
            all samples or for each; None means all, and ``active`` is then ``full``.

    Returns:
        ``full`` [B], ``active`` [B], ``off_diagonal`` [B] and ``gaps`` [B, d - 1]. Singular vectors
        are those of :func:`vaekern.linalg.right_svd`; everything after is float64.

    Raises:
        TypeError: J is no floating-point tensor, or active is no boolean one.
        ValueError: another shape or device, d > 256, or NaN or infinity in a named sample.

    Example:
        >>> orthogonal = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
        >>> rotated = orthogonal @ torch.tensor([[0.8, -0.6], [0.6, 0.8]])
        >>> distance = distance_to_orthogonality(torch.cat([orthogonal, rotated]))
        >>> [round(value, 4) for value in distance.full.tolist()]  # sqrt(2 * 2 - 2 * 1.6)
        [0.0, 0.8944]

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    equation 29; the assignment replaces the paper's mixed-integer programme, with equal results.
    """
    _matrix_checks.matrices("J", J, "[B, m, d]", MAX_COLUMNS)
    check_active(active, J.shape[0], J.shape[2], J.device)
    return measure(J.detach(), active)[0]


def measure(J: Tensor, active: Tensor | None) -> tuple[OrthogonalityDistance, Tensor, Tensor]:
    """The distances, the singular values [B, d] and the lengths of the columns [B, d]."""
    svd = right_svd(J)
    full = _distance(svd.V)
    singular = svd.S.double()
    above = singular[:, :-1]
    gaps = (above - singular[:, 1:]) / torch.where(above > 0, above, 1.0)
    off_diagonal, lengths = _cosines(J)
    distance = OrthogonalityDistance(full, _active_distance(J, active, full), off_diagonal, gaps)
    return distance, singular, lengths


def _distance(V: Tensor) -> Tensor:  # [B, k, k] -> [B]
    V = V.double()
    return (V - nearest_signed_permutation(V)).square().sum((1, 2)).sqrt()


def _active_distance(J: Tensor, active: Tensor | None, full: Tensor) -> Tensor:
    if active is None or not len(J):
        return full.clone()
    distance = torch.zeros_like(full)
    # samples with the same active dimensions form one batch
    masks, members = active.expand(len(J), -1).unique(dim=0, return_inverse=True)
    for index, mask in enumerate(masks):
        rows = (members == index).nonzero().flatten()
        if mask.all():
            distance[rows] = full[rows]
        elif int(mask.sum()) > 1:
            chosen = J[:, :, mask] if len(masks) == 1 else J[rows][:, :, mask]
            distance[rows] = _distance(right_svd(chosen).V)
    return distance


def _cosines(J: Tensor) -> tuple[Tensor, Tensor]:
    """Mean |cos| of the pairs of columns [B], and the lengths of the columns [B, d]."""
    count, _, d = J.shape
    mean = torch.zeros(count, dtype=torch.float64, device=J.device)
    lengths = torch.empty(count, d, dtype=torch.float64, device=J.device)
    for block in normalized_blocks(J):
        gram = block.columns.mT @ block.columns
        pairs = gram.abs_().triu_(1).sum((1, 2))
        mean[block.rows] = pairs / max(d * (d - 1) // 2, 1)
        lengths[block.rows] = block.lengths
    return mean, lengths


def check_active(active: Tensor | None, samples: int, d: int, device: torch.device) -> None:
    """A boolean [d] or [samples, d] on the device, or None."""
    if active is None:
        return
    if not isinstance(active, Tensor) or active.dtype != torch.bool:
        got = active.dtype if isinstance(active, Tensor) else type(active).__name__
        raise TypeError(f"active must be a boolean tensor, got {got}; pass active_units(mu).mask")
    if active.shape not in ((d,), (samples, d)):
        raise ValueError(
            f"active must have shape [{d}] or [{samples}, {d}], one entry for each latent "
            f"dimension, got {list(active.shape)}; pass active_units(mu).mask"
        )
    if active.device != device:
        raise ValueError(
            f"active must be on {device} beside the samples, got {active.device}; "
            f"move it with .to({str(device)!r})"
        )


@torch.no_grad()
def random_rotation_baseline(
    d: int,
    samples: int = 10_000,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:  # [samples]
    r"""Distance to orthogonality of random rotations: what no preference for axes would give.

    .. math:: \| Q - P(Q) \|_F, \qquad Q \sim \mathrm{Haar}(O(d))

    The mean is 0.548 for d = 2, 1.63 for 5 and 2.85 for 10; for d = 2 it is
    :math:`(16 \sqrt 2 / \pi)(1 - \cos(\pi / 8))`. The autoencoders of the paper, trained without a
    KL, lie close to it.

    Args:
        d: dimensions, 1 to 256.
        samples: how many rotations.
        generator: makes the draws reproducible, and says on which device they are made.

    Returns:
        [samples] distances in float64, without unit.

    Raises:
        TypeError: d or samples is no whole number.
        ValueError: d or samples out of range.

    Example:
        >>> distance = random_rotation_baseline(2, generator=torch.Generator().manual_seed(0))
        >>> abs(float(distance.mean()) - 0.548) < 0.01
        True

    Source: the distance is equation 29 of Rolinek et al. 2019; Mezzadri 2007, "How to generate
    random matrices from the classical compact groups", section 5, for the draws.
    """
    for name, value in (("d", d), ("samples", samples)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}; pass an int")
    if not 1 <= d <= MAX_COLUMNS:
        raise ValueError(f"d must lie in 1 to {MAX_COLUMNS}, got {d}; pick latent dimensions")
    _checks.positive("samples", samples, "1000 give the mean to about 0.01")
    device = torch.device("cpu") if generator is None else generator.device
    distances = torch.empty(samples, dtype=torch.float64, device=device)
    for part in distances.split(max(1, BLOCK_ELEMENTS // d**2)):
        normal = torch.randn(
            len(part), d, d, dtype=torch.float64, device=device, generator=generator
        )
        # Q is uniform up to the signs of its columns, which the distance does not see
        part.copy_(_distance(torch.linalg.qr(normal).Q))
    return distances
