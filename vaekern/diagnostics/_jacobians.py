"""What is asked of a batch of Jacobians, and how it is read in float64 without a second copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vaekern import _matrix_checks
from vaekern.linalg import MAX_COLUMNS

BLOCK_ELEMENTS = 1 << 21  # 16 MB of float64 at a time, whatever B, m and d are


class Normalized(NamedTuple):
    """A block of Jacobians with columns of length 1, or 0 where they were 0."""

    rows: slice  # of the batch
    columns: Tensor  # [b, m, d] float64
    lengths: Tensor  # [b, d] float64


def check_jacobian(J: Tensor) -> None:
    """Refuse anything but a finite floating-point [B, m, d] with m >= 1 and d from 1 to 256."""
    _matrix_checks.matrices("J", J, "[B, m, d]", MAX_COLUMNS)
    if J.shape[1] == 0:
        raise ValueError(f"J must have at least one row, got {list(J.shape)}; check the decoder")
    _matrix_checks.all_finite("J", _matrix_checks.finite_samples(J))


def normalized_blocks(J: Tensor) -> Iterator[Normalized]:
    """J in float64, a block of samples at a time, its columns divided by their lengths."""
    step = max(1, BLOCK_ELEMENTS // (J.shape[1] * J.shape[2]))
    for start in range(0, len(J), step):
        rows = slice(start, min(start + step, len(J)))
        block = J[rows].double()
        # in two steps, so that squares neither overflow nor vanish
        largest = block.abs().amax(1, keepdim=True)
        block = block / torch.where(largest > 0, largest, 1.0)
        lengths = block.square().sum(1, keepdim=True).sqrt()
        block /= torch.where(lengths > 0, lengths, 1.0)
        yield Normalized(rows, block, (largest * lengths).squeeze(1))
