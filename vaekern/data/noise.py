"""Noise of a known variance on known parts of a data set: does a decoder find it?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from vaekern._checks import number, option
from vaekern.data.dataset import Dataset
from vaekern.data.rows import Rows

Split = Literal["train", "test"]
Pattern = Literal["uniform", "spatial", "conditional", "spatial-conditional"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

# Squared residuals of it are far from float32's largest number.
LARGEST_VARIANCE = 1e12

# One row per partition: (small, upper), None where that does not matter.
PARTITIONS: dict[str, tuple[bool | None, bool | None]] = {
    "all": (None, None),
    "U": (None, True),
    "L": (None, False),
    "S": (True, None),
    "B": (False, None),
    "SU": (True, True),
    "SL": (True, False),
    "BU": (False, True),
    "BL": (False, False),
}


@dataclass(frozen=True, eq=False)
class Noise:
    """Which parts of a :class:`~vaekern.data.Dataset` hold noise, and of which variance.

    The images whose label is in the lower half of the classes are "small" (S; digits 0 to 4), the
    others "big" (B); in a generated set without labels, those whose first factor is below its
    median in training. The upper half of the rows of pixels is U, the lower L. Both together make
    the partitions SU, SL, BU and BL.

    Attributes:
        pattern: "uniform" (noise everywhere), "spatial" (on U), "conditional" (on S) or
            "spatial-conditional" (on SU).
        variance: s^2 of the noise.
        upper: [C, H, W] bool, the pixels of U.
        train_small: [N] bool, the training images of S.
        test_small: [M] bool, the test images of S.
    """

    pattern: Pattern
    variance: float
    upper: Tensor = field(repr=False)
    train_small: Tensor = field(repr=False)
    test_small: Tensor = field(repr=False)

    def is_noisy(self, partition: str) -> bool | None:
        """Whether a partition holds noise; None where a part of it does and a part does not.

        Example:
            >>> digits = torch.arange(10).repeat(10)
            >>> small = digits < 5
            >>> noise = Noise("spatial", 0.1, torch.ones(1, 2, 2) > 0, small, small)
            >>> noise.is_noisy("SU"), noise.is_noisy("L"), noise.is_noisy("S")
            (True, False, None)
        """
        option("partition", partition, PARTITIONS)
        small, upper = PARTITIONS[partition]
        wanted = {
            "uniform": [],
            "spatial": [upper],
            "conditional": [small],
            "spatial-conditional": [small, upper],
        }[self.pattern]
        if False in wanted:
            return False
        return None if None in wanted else True

    def means(self, values: Tensor, split: Split = "train") -> dict[str, float]:
        """The mean of a quantity over each partition, such as an estimated variance.

        Args:
            values: [N, C, H, W], or what broadcasts to it: [] or [C, H, W] for a variance that all
                images share, [N, 1, 1, 1] for one of each image.
            split: whose images ``values`` is of, "train" or "test".

        Returns:
            The mean by partition: all, U, L, S, B, SU, SL, BU, BL; NaN for one without images.

        Raises:
            ValueError: values that do not broadcast, or another split.
        """
        option("split", split, get_args(Split))
        small = self.train_small if split == "train" else self.test_small
        shape = (len(small), *self.upper.shape)
        try:
            full = values.detach().cpu().double().expand(shape)
        except RuntimeError:
            raise ValueError(
                f"values must broadcast to the {split} images {list(shape)}, got "
                f"{list(values.shape)}; reshape one value per image to [{len(small)}, 1, 1, 1]"
            ) from None
        # images first: a row of sums for each half, then sums over the images
        halves = {True: full[:, self.upper].mean(1), False: full[:, ~self.upper].mean(1)}
        whole = full.flatten(1).mean(1)
        found = {}
        for name, (is_small, is_upper) in PARTITIONS.items():
            per_image = whole if is_upper is None else halves[is_upper]
            rows = slice(None) if is_small is None else small == is_small
            found[name] = float(per_image[rows].mean())
        return found


def add_noise(dataset: Dataset, pattern: Pattern, variance: float, *, seed: int = 0) -> Dataset:
    r"""A data set of images with Gaussian noise on a part of them.

    .. math:: x + s\, m \odot \epsilon, \qquad \epsilon \sim N(0, I)

    where m is 1 on the noisy part. The noise is drawn once, for training and test images; it is not
    clipped, so that its variance is s^2 everywhere and pixels leave [0, 1]. ``value_range`` remains
    that of the clean images, the decoder's mean.

    Args:
        dataset: images; labels too for the conditional patterns, or factors.
        pattern: "uniform", "spatial" (upper half of the pixels), "conditional" (images whose label
            is in the lower half of the classes: digits 0 to 4; or, without labels, whose first
            factor is below its median) or "spatial-conditional" (both).
        variance: s^2; the paper has 0.01 and 0.1. 0 keeps the images and names the partitions.
        seed: of the noise.

    Returns:
        The noisy data set, whose ``noise`` is a :class:`Noise`.

    Raises:
        TypeError, ValueError: vectors, a conditional pattern without labels or factors, or with one
            class alone, an unknown pattern, images that have noise already, or a variance that is
            negative or too large for float32.

    Example:
        >>> from vaekern.data import load
        >>> noisy = add_noise(load("digits"), "spatial", 0.1)
        >>> estimates = noisy.noise.means((noisy.train - load("digits").train).square())
        >>> round(estimates["U"], 2), estimates["L"]
        (0.1, 0.0)

    Source: Takida et al. 2022, "Preventing oversmoothing in VAE via generalized variance
    parameterization", section 5.3.
    """
    option("pattern", pattern, PATTERNS)
    if not 0 <= number("variance", variance, "pass s^2") <= LARGEST_VARIANCE:
        raise ValueError(
            f"variance must be finite and not negative, and at most {LARGEST_VARIANCE:g}, got "
            f"{variance!r}; the paper has 0.01 and 0.1"
        )
    if dataset.kind != "image":
        raise ValueError(
            f"noise patterns are of the upper and lower half of images, but {dataset.name} holds "
            f"vectors; choose a set of images"
        )
    if isinstance(dataset.train, Rows) or isinstance(dataset.test, Rows):
        raise ValueError(
            f"noise is drawn for images in memory, but those of {dataset.name} are read batch by "
            f"batch; load them with stream=False"
        )
    if dataset.noise is not None:
        raise ValueError(
            f"{dataset.name} has noise already; start from the clean images, since two layers of "
            f"noise have no one variance"
        )
    small = _small(dataset, pattern)
    shape = dataset.sample_shape
    upper = (torch.arange(shape[1]) < shape[1] // 2)[None, :, None].expand(shape)
    generator = torch.Generator().manual_seed(seed)

    def noisy(images: Tensor, small: Tensor) -> Tensor:
        result = images.clone()
        for i, rows in enumerate(torch.arange(len(images)).split(1024)):
            drawn = torch.randn(len(rows), *shape, generator=generator) * math.sqrt(variance)
            if pattern.startswith("spatial"):
                drawn *= upper
            if pattern.endswith("conditional"):
                drawn *= small[rows, None, None, None]
            result[i * 1024 : i * 1024 + len(rows)] += drawn
        return result

    return replace(
        dataset,
        name=f"{dataset.name}-{pattern}-{variance:g}",
        train=noisy(dataset.train, small["train"]),
        test=noisy(dataset.test, small["test"]),
        noise=Noise(pattern, float(variance), upper.clone(), small["train"], small["test"]),
    )


def _small(dataset: Dataset, pattern: str) -> dict[Split, Tensor]:
    """By split, whether each image is "small": of the lower half of the classes, or of the first
    factor; all are in a set that has neither."""
    labels = dataset.train_labels, dataset.test_labels
    factors = dataset.train_factors, dataset.test_factors
    train, test = (torch.zeros(len(x)) for x in (dataset.train, dataset.test))
    middle: Tensor | float = 1.0
    if labels[0] is not None:
        if labels[1] is None:
            raise ValueError(
                f"{dataset.name} has labels for training but none for testing; "
                f"use 'uniform' or 'spatial', or supply both"
            )
        classes = labels[0].unique()
        if "conditional" in pattern and len(classes) < 2:
            raise ValueError(
                f"pattern {pattern!r} puts noise on half of the classes, but {dataset.name} has "
                f"one; use 'uniform' or 'spatial'"
            )
        train, test, middle = labels[0], labels[1], classes[len(classes) // 2]
    elif factors[0] is not None and factors[1] is not None:
        train, test = factors[0][:, 0], factors[1][:, 0]
        middle = train.median()
    elif "conditional" in pattern:
        raise ValueError(
            f"pattern {pattern!r} goes by the labels, but {dataset.name} has none; "
            f"use 'uniform' or 'spatial', or a set with labels"
        )
    return {"train": train < middle, "test": test < middle}
