"""scikit-learn's bundled handwritten digits: real images with nothing to download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from vaekern._optional import require
from vaekern.data.dataset import Dataset, split_dataset
from vaekern.data.resize import fit_square
from vaekern.data.source import ReadOptions

FILE = "datasets/data/digits.csv.gz"


def _table() -> np.ndarray:
    """[1797, 65]: the pixels and the label of each image.

    Importing scikit-learn takes a second, reading its file none: where it lies as it has since
    version 0.10, it is read without the package.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in () if found is None else found.submodule_search_locations or ():
        if (path := Path(folder) / FILE).is_file():
            return np.loadtxt(path, delimiter=",")
    bunch = require("sklearn.datasets", "--data digits", package="scikit-learn").load_digits()
    return np.column_stack([bunch.data, bunch.target])


def read_digits(argument: str, options: ReadOptions) -> Dataset:
    """1797 images of 1x8x8 with ten labels; scikit-learn stores 0 to 16, divided here by 16."""
    table = torch.from_numpy(_table())
    images = table[:, :-1].reshape(-1, 1, 8, 8).to(torch.float32).div_(16)
    labels = table[:, -1].to(torch.int64)
    return split_dataset(
        "digits",
        "image",
        fit_square(images, options.image_size),
        labels,
        test_fraction=options.test_fraction,
        seed=options.seed,
        source="digits",
    )
