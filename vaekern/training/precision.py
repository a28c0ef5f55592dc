"""Half precision and TF32 for the networks; weights, latents and the loss's sums stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products and convolutions in this precision; nothing at all for float32.

    float16 on a CPU computes what it computes on a GPU, more slowly than float32 does.

    Args:
        precision: float32, bfloat16 or float16.
        device: where the model is.

    Example:
        >>> layer, x = torch.nn.Linear(2, 2), torch.zeros(1, 2)
        >>> with autocast("bfloat16", x.device):
        ...     layer(x).dtype, layer.weight.dtype
        (torch.bfloat16, torch.float32)
    """
    if precision not in HALF:
        return nullcontext()
    return torch.autocast(device.type, dtype=HALF[precision])


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """For float16, whose smallest gradients are lost unless the loss is scaled up; else None."""
    return torch.amp.GradScaler(device.type) if precision == "float16" else None


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """TF32 on an NVIDIA GPU, on or off, while it is entered; None leaves torch's own choice.

    torch's own is float32 in matrix products and TF32 in convolutions.

    Example:
        >>> with tf32(True):
        ...     torch.backends.cuda.matmul.allow_tf32
        True
        >>> torch.backends.cuda.matmul.allow_tf32
        False
    """
    if allowed is None:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
