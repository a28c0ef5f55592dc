"""What all generated data sets share: points with their factors, made the same at every call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaekern.data.dataset import Dataset, Kind, split_dataset
from vaekern.data.rows import Samples
from vaekern.data.source import ReadOptions


class Synthetic(NamedTuple):
    """Samples and the factors they were made of."""

    x: Tensor  # [n, D] or [n, 1, H, W] float32
    factors: Tensor  # [n, F] float32


def fixed_generator() -> torch.Generator:
    """Named data sets are one set each: ``seed`` chooses what is held out, never what is drawn."""
    return torch.Generator().manual_seed(0)


def check_count(n: object, remedy: str) -> None:
    """``n`` must be a whole number of samples, at least 1."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be a whole number of samples, got {n!r}; pass an int")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}; {remedy}")


def generated_dataset(
    name: str,
    kind: Kind,
    x: Samples,  # [N, ...]
    factors: Tensor,  # [N, F]
    options: ReadOptions,
    *,
    labels: Tensor | None = None,
    factor_names: tuple[str, ...] = (),
    class_factors: tuple[str, ...] = (),
) -> Dataset:
    """A dataset of generated samples, part of them held out.

    Raises:
        ValueError: numbers so large that samples are not finite in float32.
    """
    if isinstance(x, Tensor) and not bool(x.isfinite().all()):
        raise ValueError(
            f"{name} makes samples that are not finite in float32; give smaller numbers"
        )
    return split_dataset(
        name,
        kind,
        x,
        labels,
        test_fraction=options.test_fraction,
        seed=options.seed,
        source=name,
        factors=factors,
        factor_names=factor_names,
        class_factors=class_factors,
    )
