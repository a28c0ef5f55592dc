"""Which of the papers' data sets a data set is: only then do the papers' numbers stand beside."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vaekern.data import Dataset


class Known(NamedTuple):
    """What a public data set is known by."""

    shape: tuple[int, ...]
    train: int  # samples, of the training split
    mean: tuple[float, ...] = ()  # of the training set's pixels, by channel
    names: tuple[str, ...] = ()  # of its readers, where the mean depends on a crop or a split


#: The means are those with which these sets are normalised everywhere.
KNOWN: dict[str, Known] = {
    "mnist": Known((1, 28, 28), 60_000, (0.1307,)),
    "fashion-mnist": Known((1, 28, 28), 60_000, (0.2860,)),
    "cifar-10": Known((3, 32, 32), 50_000, (0.4914, 0.4822, 0.4465)),
    # as each paper crops them
    "celeba": Known((3, 64, 64), 162_770, names=("celeba",)),
    "celeba140": Known((3, 64, 64), 162_770, names=("celeba140",)),
    "celeba-hq": Known((3, 128, 128), 27_000, names=("celeba-hq",)),
    "dsprites": Known((1, 64, 64), 663_552, names=("dsprites",)),
}


def recognise(data: Dataset) -> str | None:
    """The name of a public or generated data set that the papers use; None for any other.

    Files are known by shape, number and mean of their training samples, or by shape, number and
    reader; generated sets by name. A set with noise on it is another.

    Example:
        >>> from vaekern import data
        >>> [recognise(data.load(spec)) for spec in ("digits", "synth-lin", "manifold")]
        [None, 'synth-lin', None]
    """
    if data.noise is not None:
        return None
    for name, known in KNOWN.items():
        if data.sample_shape != known.shape or len(data.train) != known.train:
            continue
        if known.names:
            if data.name in known.names:
                return name
        elif _has_mean(data, known.mean):
            return name
    # of the generated sets only these squares, in any scale ratio, are a paper's
    squares = data.train_factors is not None and data.name.startswith(("synth-lin", "synth-non"))
    return data.name if squares else None


def _has_mean(data: Dataset, mean: tuple[float, ...]) -> bool:
    parts = data.train.split(1000)  # of a set on disk, only as much is in memory
    sums = torch.stack([part.double().sum(dim=(0, 2, 3)) for part in parts]).sum(0)
    found = (sums / (data.train.numel() / len(sums))).tolist()
    return all(abs(a - b) < 1e-3 for a, b in zip(found, mean, strict=True))
