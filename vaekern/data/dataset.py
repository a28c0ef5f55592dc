"""What every reader returns, and the one place where data is split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vaekern.data.rows import Samples, take

if TYPE_CHECKING:
    from vaekern.data.noise import Noise

Kind = Literal["image", "vector"]


@dataclass(
    frozen=True, eq=False
)  # tensors have no single truth value, so datasets compare by identity
class Dataset:
    """Training and test samples as float32, held in memory or read from disk (`Rows`).

    Attributes:
        name: short name of the source, for titles and run directories.
        kind: ``"image"`` or ``"vector"``.
        train: [N, C, H, W] in [0, 1] for images, [N, D] for vectors.
        test: [M, ...] with the same sample shape.
        train_labels: [N] int64, or None where the source has none.
        test_labels: [M] int64, or None where the source has none.
        value_range: smallest and largest value a sample may have, noise apart: (0, 1) for images,
            None for vectors, which are unbounded.
        train_factors: [N, F] the true factors of variation, or None where they are not known.
        test_factors: [M, F], or None.
        factor_names: F names, or empty where there are none.
        class_factors: names of the factors that are classes; the others are continuous.
        noise: where and how strong noise was added by :func:`vaekern.data.add_noise`, or None.
    """

    name: str
    kind: Kind
    train: Samples = field(repr=False)
    test: Samples = field(repr=False)
    train_labels: Tensor | None = field(default=None, repr=False)
    test_labels: Tensor | None = field(default=None, repr=False)
    value_range: tuple[float, float] | None = None
    train_factors: Tensor | None = field(default=None, repr=False)
    test_factors: Tensor | None = field(default=None, repr=False)
    factor_names: tuple[str, ...] = ()
    class_factors: tuple[str, ...] = ()
    noise: Noise | None = None

    def __post_init__(self) -> None:
        ndim = 4 if self.kind == "image" else 2
        for name, part in (("train", self.train), ("test", self.test)):
            if part.ndim != ndim or part.dtype != torch.float32:
                raise ValueError(
                    f"{name} of {self.kind} data must be float32 with {ndim} axes, "
                    f"got {part.dtype} with shape {list(part.shape)}"
                )
        if self.train.shape[1:] != self.test.shape[1:]:
            raise ValueError(
                f"train and test samples of {self.name!r} must have one shape, got "
                f"{list(self.train.shape[1:])} and {list(self.test.shape[1:])}; "
                f"prepare both the same way"
            )
        for name, part, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if labels is not None and labels.shape != part.shape[:1]:
                raise ValueError(
                    f"{self.name!r} needs one {name} label per {name} sample, got "
                    f"{list(labels.shape)} labels for {len(part)} samples"
                )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (D,) for vectors."""
        return tuple(self.train.shape[1:])

    @property
    def factor_is_class(self) -> list[bool] | None:
        """For each factor whether it is a class; None where no factor has a name."""
        if not self.factor_names:
            return None
        return [name in self.class_factors for name in self.factor_names]


def split_indices(
    count: int, labels: Tensor | None, *, test_fraction: float, seed: int, source: str
) -> tuple[Tensor, Tensor]:
    """Rows for training and rows for testing, each ascending; stratified when labels are known.

    The rows are shuffled, sorted by label with the shuffle kept inside each class, and read at
    ``round(count * test_fraction)`` evenly spaced places: every class gives its share within one
    sample, and the total is exact. The same arguments give the same split on every machine.
    """
    if count < 2:
        raise ValueError(
            f"{source} holds {count} sample{'' if count == 1 else 's'}, but training and testing "
            f"need at least one each; supply at least 2 samples"
        )
    wanted = min(max(round(count * test_fraction), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        order = order[torch.argsort(labels[order], stable=True)]
    places = (2 * torch.arange(wanted) + 1) * count // (2 * wanted)
    is_test = torch.zeros(count, dtype=torch.bool)
    is_test[order[places]] = True
    return torch.nonzero(~is_test).flatten(), torch.nonzero(is_test).flatten()


def split_dataset(
    name: str,
    kind: Kind,
    samples: Samples,  # [N, ...]
    labels: Tensor | None,  # [N]
    *,
    test_fraction: float,
    seed: int,
    source: str,
    factors: Tensor | None = None,  # [N, F]
    factor_names: tuple[str, ...] = (),
    class_factors: tuple[str, ...] = (),
) -> Dataset:
    """A dataset whose test part is taken out of ``samples``."""
    train, test = split_indices(
        len(samples), labels, test_fraction=test_fraction, seed=seed, source=source
    )
    return Dataset(
        name=name,
        kind=kind,
        train=take(samples, train),
        test=take(samples, test),
        train_labels=None if labels is None else labels[train],
        test_labels=None if labels is None else labels[test],
        value_range=(0.0, 1.0) if kind == "image" else None,
        train_factors=None if factors is None else factors[train],
        test_factors=None if factors is None else factors[test],
        factor_names=factor_names,
        class_factors=class_factors,
    )
