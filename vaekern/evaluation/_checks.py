"""What every picture asks of the samples that it shows."""

from __future__ import annotations

from torch import Tensor


def check_pictures(name: str, samples: Tensor) -> None:
    """Refuse anything but images [N, C, H, W] or vectors [N, D], at least one of them."""
    if not isinstance(samples, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(samples).__name__}")
    image = samples.ndim == 4 and samples.shape[1] in (1, 3)
    if not (image or samples.ndim == 2) or samples.numel() == 0:
        raise ValueError(
            f"{name} must be images [N, C, H, W] with C 1 or 3 or vectors [N, D], and at least one "
            f"of them, got {list(samples.shape)}"
        )
