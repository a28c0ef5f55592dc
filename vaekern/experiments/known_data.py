"""Which of the papers' data sets a data set is: only then do the papers' numbers stand beside."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vaekern.data import Dataset


class Known(NamedTuple):
    """What a public data set is known by."""

    shape: tuple[int, ...]
    train: int  # samples, of the training split
    mean: tuple[float, ...] = ()  # of the training set's pixels, by channel; () is not looked at


#: The means are those with which these sets are normalised everywhere.
KNOWN: dict[str, Known] = {
    "mnist": Known((1, 28, 28), 60_000, (0.1307,)),
    "fashion-mnist": Known((1, 28, 28), 60_000, (0.2860,)),
    "celeba": Known((3, 64, 64), 162_770),
    "cifar-10": Known((3, 32, 32), 50_000, (0.4914, 0.4822, 0.4465)),
}


def recognise(data: Dataset) -> str | None:
    """The name of a public or generated data set that the papers use; None for any other.

    Files are known by shape, number and mean of their training samples (CelebA by the first two:
    its mean depends on the crop), generated sets by name.

    Example:
        >>> from vaekern import data
        >>> [recognise(data.load(spec)) for spec in ("digits", "synth-lin", "manifold")]
        [None, 'synth-lin', None]
    """
    if data.kind == "vector" or data.train_factors is not None:
        # of the generated sets only these squares, in any scale ratio, are a paper's
        return data.name if data.name.startswith(("synth-lin", "synth-nonlin")) else None
    for name, known in KNOWN.items():
        if data.sample_shape == known.shape and len(data.train) == known.train:
            if not known.mean:
                return name
            parts = data.train.split(1000)  # of a set on disk, only as much is in memory
            sums = torch.stack([part.double().sum(dim=(0, 2, 3)) for part in parts]).sum(0)
            means = (sums / (data.train.numel() / len(sums))).tolist()
            if all(abs(a - b) < 1e-3 for a, b in zip(means, known.mean, strict=True)):
                return name
    return None
