"""scikit-learn's bundled handwritten digits: real images with nothing to download."""

from __future__ import annotations

import torch

from vaekern._optional import require
from vaekern.data.dataset import Dataset, split_dataset
from vaekern.data.resize import fit_square
from vaekern.data.source import ReadOptions


def read_digits(argument: str, options: ReadOptions) -> Dataset:
    """1797 images of 1x8x8 with ten labels; scikit-learn stores 0 to 16, divided here by 16."""
    datasets = require("sklearn.datasets", "--data digits", package="scikit-learn")
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div_(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return split_dataset(
        "digits",
        "image",
        fit_square(images, options.image_size),
        labels,
        test_fraction=options.test_fraction,
        seed=options.seed,
        source="digits",
    )
