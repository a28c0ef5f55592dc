"""The product of a Jacobian's column norms, which a VAE minimises, against its volume."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaekern.diagnostics._jacobians import check_jacobian, normalized_blocks


class ColumnNormProduct(NamedTuple):
    """Result of :func:`column_norm_product`, for every sample, in float64."""

    ratio: Tensor  # [B], at least 1
    log_product: Tensor  # [B]
    log_volume: Tensor  # [B]


@torch.no_grad()
def column_norm_product(J: Tensor) -> ColumnNormProduct:  # [B, m, d]
    r"""Product of the column norms of each Jacobian, its volume, and their ratio.

    .. math::

        \mathrm{col}_\Pi(J) = \prod_j \|J_{\cdot j}\| \;\ge\;
        \mathrm{Vol}(J) = \sqrt{\det J^\top J}

    Once the encoder's variances are optimal, what remains of a VAE's stochastic loss is
    :math:`d \, (e^{-C} \, \mathrm{col}_\Pi(J)^2)^{1/d}` for a KL budget C. Rotating the latent
    space leaves the volume as it is, so only the ratio :math:`\mathrm{col}_\Pi / \mathrm{Vol}` can
    fall. It is at least 1 (Hadamard) and 1 only for orthogonal columns, also where singular values
    are equal and the singular vectors say nothing. In two dimensions it is 1 / sin of the angle
    between the columns.

    Args:
        J: [B, m, d] Jacobians in any layout.

    Returns:
        ``ratio`` without unit, ``log_product`` and ``log_volume`` as natural logarithms, so that
        they neither overflow nor vanish. Columns of zeros are orthogonal to all others and left out
        of the ratio, while both logarithms are then -inf. The ratio is inf, or above 1e15, where
        the remaining columns depend on each other, as they must for more columns than rows.

    Raises:
        TypeError: J is no floating-point tensor.
        ValueError: another shape, or NaN or infinity in a named sample.

    Example:
        >>> J = torch.tensor([[[4.0, 1.0], [-3.0, 1.0], [5.0, -1.0]]])
        >>> result = column_norm_product(J)  # norms sqrt(50) and sqrt(3), det J^T J = 134
        >>> round(float(result.log_product.exp()), 4), round(float(result.ratio), 4)
        (12.2474, 1.058)

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    equations 22 to 28. Two slips there: the bounds (25) and (26) carry exp(-C/2), as the constraint
    (23) fixes the product of the variances; the volume in the caption of figure 3 is
    \|w_1\| \|w_2\| sin(alpha).
    """
    check_jacobian(J)
    J = J.detach()
    count, rows, d = J.shape
    log_product = torch.empty(count, dtype=torch.float64, device=J.device)
    log_ratio = torch.empty_like(log_product)
    for block in normalized_blocks(J):
        log_product[block.rows] = block.lengths.log().sum(1)
        # QR measures each column against those before it; a column of zeros before others would
        # take a row of theirs with it
        used, order = (block.lengths > 0).sort(dim=1, descending=True, stable=True)
        columns = block.columns.gather(2, order[:, None].expand_as(block.columns))
        heights = block.lengths.new_zeros(len(columns), d)
        R = torch.linalg.qr(columns, mode="r").R
        heights[:, : min(rows, d)] = R.diagonal(dim1=1, dim2=2).abs()
        logs = torch.where(used, heights.log(), 0.0)
        log_ratio[block.rows] = -logs.sum(1).clamp(max=0)  # 1 by Hadamard, up to rounding
    return ColumnNormProduct(log_ratio.exp(), log_product, log_product - log_ratio)
