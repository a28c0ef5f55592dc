"""Batched linear algebra of the orthogonality diagnostics: singular vectors and assignments.

The public functions validate and choose the backend; the algorithms are in csrc/ and, in plain
PyTorch, in ``vaekern.reference_linalg``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _matrix_checks, backends, cpu, cuda, reference_linalg

#: The largest number of columns of ``right_svd`` and ``assignment``.
MAX_COLUMNS = 256


class RightSVD(NamedTuple):
    """Result of :func:`right_svd`."""

    S: Tensor  # [B, d], descending
    V: Tensor  # [B, d, d], columns
    U: Tensor | None  # [B, m, min(m, d)], where left=True asked for it
    sweeps: Tensor  # [B] int32: rounds of rotations until nothing was left to rotate
    converged: Tensor  # [B] bool


@torch.no_grad()
def right_svd(
    J: Tensor,  # [B, m, d]
    *,
    left: bool = False,
) -> RightSVD:
    r"""Singular values and right singular vectors of a batch of matrices.

    .. math:: J_b = U_b \, \mathrm{diag}(S_b) \, V_b^\top

    Every singular value is accurate to its own size, however small, where the columns of J are
    nearly orthogonal (decoders of VAEs), and to rounding of the largest one otherwise.

    Args:
        J: [B, m, d] with any m >= 1, d from 1 to 256; float16, bfloat16, float32 or float64, in any
            memory layout. A batch of 0 is fine.
        left: compute U too.

    Returns:
        S [B, d] in descending order (zeros from m on where m < d), V [B, d, d] with the right
        singular vectors as columns, U [B, m, min(m, d)] with orthonormal columns or None, the
        number of ``sweeps`` [B] and whether they ``converged`` [B]. S, V and U are float64 for
        float64 input, else float32. V is orthogonal for every input, including zero and
        rank-deficient matrices. In each column of V the first of the largest entries (equal to
        1e-6) is positive; vectors of equal singular values are one orthonormal basis out of many.

    Raises:
        TypeError: J is no floating-point tensor.
        ValueError: another shape, d > 256, or NaN or infinity in a named sample.
        RuntimeError: J requires grad: this is a diagnostic without a derivative.

    Example:
        >>> J = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]])
        >>> svd = right_svd(J)
        >>> svd.S.tolist(), svd.V.tolist()
        ([[2.0, 1.0]], [[[0.0, 1.0], [1.0, 0.0]]])

    Source: the Jacobian's SVD of Rolinek et al. 2019, "Variational autoencoders pursue PCA
    directions (by accident)", section 3; one-sided Jacobi of a triangular factor after Demmel and
    Veselic 1992, "Jacobi's method is more accurate than QR".
    """
    _matrix_checks.matrices("J", J, "[B, m, d]", MAX_COLUMNS)
    if J.shape[1] == 0:
        raise ValueError(f"J must have at least one row, got {list(J.shape)}; check the decoder")
    if J.requires_grad:
        raise RuntimeError(
            "J requires grad and right_svd has no derivative: pass J.detach(), or use "
            "torch.linalg.svd for a differentiable one"
        )
    if backends.has_kernel(J.device.type, backends.LINALG):
        kernels = cuda if J.is_cuda else cpu
        S, V, sweeps, converged, finite = kernels.right_svd(J)
        _matrix_checks.all_finite("J", finite)
    else:
        _matrix_checks.all_finite("J", _matrix_checks.finite_samples(J))
        S, V, sweeps, converged = reference_linalg.right_svd(J)
    return RightSVD(S, V, _left_vectors(J, V) if left else None, sweeps, converged)


def _left_vectors(J: Tensor, V: Tensor) -> Tensor:
    """U of J V = U diag(S): orthonormal also where singular values vanish."""
    product = J.double() @ V.double()[:, :, : min(J.shape[1:])]
    Q, R = torch.linalg.qr(product)
    signs = torch.where(R.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
    return (Q * signs[:, None]).to(V.dtype)


@torch.no_grad()
def assignment(cost: Tensor) -> Tensor:  # [B, d, d] -> [B, d]
    r"""The permutations of least total cost, exactly, for a batch of cost matrices.

    .. math:: \pi_b = \arg\min_\pi \sum_i C_{b,\,i,\,\pi(i)}

    Args:
        cost: [B, d, d], d from 1 to 256, floating point and finite, in any memory layout.

    Returns:
        columns [B, d] int64: row i of sample b is assigned column ``columns[b, i]``. Where several
        assignments cost the same it is the one that ``scipy.optimize.linear_sum_assignment`` finds.

    Raises:
        TypeError: cost is no floating-point tensor.
        ValueError: another shape, d > 256, or NaN or infinity in a named sample.

    Example:
        >>> assignment(torch.tensor([[[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]])).tolist()
        [[1, 0, 2]]

    Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms", shortest
    augmenting paths.
    """
    _matrix_checks.matrices("cost", cost, "[B, d, d]", MAX_COLUMNS)
    if cost.shape[1] != cost.shape[2]:
        raise ValueError(
            f"cost must be square, [B, d, d], got {list(cost.shape)}; pad it with a constant"
        )
    if backends.has_kernel(cost.device.type, backends.LINALG):
        columns = (cuda if cost.is_cuda else cpu).assignment(cost)
        _matrix_checks.all_finite("cost", columns[:, 0] >= 0)
        return columns
    _matrix_checks.all_finite("cost", _matrix_checks.finite_samples(cost))
    return reference_linalg.assignment(cost)


@torch.no_grad()
def nearest_signed_permutation(V: Tensor) -> Tensor:  # [B, d, d] -> [B, d, d]
    r"""The signed permutation matrix nearest to each matrix, entry by entry.

    .. math:: P_b = \arg\min_P \sum_{ij} |V_{b,ij} - P_{ij}|

    With one entry of +1 or -1 in each row and column. The best sign at a place is that of V there
    (+1 for 0), so this is a linear assignment of cost :math:`||V_{ij}| - 1| - |V_{ij}|`, which is
    :math:`1 - 2 |V_{ij}|` where no entry exceeds 1. For an orthogonal V it is also the nearest in
    the Frobenius norm.

    Args:
        V: [B, d, d], d from 1 to 256, floating point and finite.

    Returns:
        P [B, d, d] with entries 0, 1 and -1, in V's dtype.

    Raises:
        TypeError: V is no floating-point tensor.
        ValueError: another shape, d > 256, or NaN or infinity in a named sample.

    Example:
        >>> nearest_signed_permutation(torch.tensor([[[0.6, -0.8], [0.8, 0.6]]])).tolist()
        [[[0.0, -1.0], [1.0, 0.0]]]

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    equation 29; the paper solves a mixed-integer programme.
    """
    _matrix_checks.matrices("V", V, "[B, d, d]", MAX_COLUMNS)
    if V.shape[1] != V.shape[2]:
        raise ValueError(f"V must be square, [B, d, d], got {list(V.shape)}")
    size = V.abs()
    columns = assignment((size - 1).abs() - size)[:, :, None]
    signs = torch.where(V.gather(2, columns) < 0, -1.0, 1.0).to(V.dtype)
    return torch.zeros_like(V).scatter_(2, columns, signs)
