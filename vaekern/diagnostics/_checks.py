"""What every diagnostic asks of its samples."""

from __future__ import annotations

import torch
from torch import Tensor


def check_samples(
    name: str,
    samples: Tensor,  # [N, d]
    *,
    at_least: int = 1,
    beside: tuple[str, Tensor] | None = None,
) -> None:
    """Refuse anything but a finite floating-point [N, d] with N >= ``at_least``.

    ``beside`` names a checked tensor whose device and number of dimensions must be the same.
    """
    if not isinstance(samples, Tensor):
        raise TypeError(f"{name} must be a tensor of shape [N, d], got {type(samples).__name__}")
    if not samples.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {samples.dtype}; call .float() on it")
    if samples.ndim != 2 or samples.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape [N, d], got {list(samples.shape)}; flatten each sample"
        )
    if len(samples) < at_least:
        raise ValueError(
            f"{name} must hold at least {at_least} sample{'s' * (at_least != 1)}, "
            f"got {len(samples)}"
        )
    if beside is not None:
        other_name, other = beside
        if samples.device != other.device:
            raise ValueError(
                f"{name} must be on the device of {other_name}, got {samples.device} "
                f"and {other.device}; move one with .to()"
            )
        if samples.shape[1] != other.shape[1]:
            raise ValueError(
                f"{name} must have as many dimensions as {other_name}, got {samples.shape[1]} "
                f"and {other.shape[1]}"
            )
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"{name} must be finite, but holds NaN or infinity; look for a diverged run"
        )


def check_data(x: Tensor, **at_least_one: int) -> None:
    """Refuse anything but floating-point x [N, ...] with N >= 1, and options below 1."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        came = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, got {came}; convert it with x.float()")
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(f"x must be [N, ...] with N >= 1, got {list(x.shape)}; add a batch axis")
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
