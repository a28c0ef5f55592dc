"""Centre crop and resize, the same for every image source."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_square(
    images: Tensor,  # [N, C, H, W] in [0, 1]
    size: int | None,
) -> Tensor:  # [N, C, size, size] in [0, 1]
    """Cut the largest centred square and resize it to ``size`` pixels, bilinear and antialiased.

    With ``size=None``, or where the images have that size already, they come back as they are.
    """
    height, width = images.shape[-2:]
    if size is None or (height, width) == (size, size):
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    resized = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)
    # the antialiasing weights sum to one only up to rounding
    return torch.clamp(resized, 0, 1)
