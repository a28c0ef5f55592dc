"""What is asked of a batch of matrices, by vaekern.linalg and the diagnostics on top of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def matrices(name: str, t: Tensor, shape: str, most_columns: int) -> None:
    """A floating-point batch of matrices with 1 to ``most_columns`` columns."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {t.dtype}; call .float() on it")
    if t.layout is not torch.strided:
        raise ValueError(
            f"{name} must be a dense tensor, got {t.layout}; convert it with {name}.to_dense()"
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{name} is inside a torch.func transform, which this function does not support; "
            "it takes whole batches: call it outside"
        )
    if t.is_meta or isinstance(t, FakeTensor):
        raise ValueError(f"{name} must hold numbers, got a {t.device.type} tensor without memory")
    if t.dim() != 3:
        raise ValueError(
            f"{name} must have shape {shape}, got {list(t.shape)}; "
            "one matrix becomes a batch with .unsqueeze(0)"
        )
    if not 1 <= t.shape[2] <= most_columns:
        raise ValueError(
            f"{name} must have 1 to {most_columns} columns, got {list(t.shape)}; "
            "pick latent dimensions, or use torch.linalg.svd and SciPy for larger ones"
        )


def finite_samples(t: Tensor) -> Tensor:
    """[B] bool: is all of a sample finite?"""
    return torch.isfinite(t).flatten(1).all(1)


def all_finite(name: str, finite: Tensor) -> None:
    """``finite`` [B] bool, of each sample; the first that is not gets named."""
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten()
        raise ValueError(
            f"{name} must be finite, but sample {int(bad[0])} holds NaN or infinity "
            f"({len(bad)} of {len(finite)} samples do); look for a diverged model"
        )
