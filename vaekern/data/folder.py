"""A folder of image files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vaekern.data.dataset import Dataset, split_indices
from vaekern.data.image_files import SUFFIXES, image_paths, read_images, survey
from vaekern.data.resize import fit_square
from vaekern.data.rows import Samples
from vaekern.data.source import ReadOptions, existing


def read_folder(argument: str, options: ReadOptions) -> Dataset:
    """Images of a folder, or of its subfolders, whose sorted names then are the labels 0, 1, ...

    The images have one channel when every file is greyscale and three otherwise; transparency is
    dropped. Hidden files and other kinds of file are passed over.
    """
    directory = existing(argument, directory=True)
    paths, labels = _list(directory)
    train_rows, test_rows = split_indices(
        len(paths),
        labels,
        test_fraction=options.test_fraction,
        seed=options.seed,
        source=f"folder {directory}",
    )
    found = survey(paths)
    if options.image_size is None:
        found.require_one_size("pass image_size to crop and resize them")

    def change(image: Tensor) -> Tensor:
        return fit_square(image, options.image_size)

    def part(rows: Tensor, description: str) -> Samples:
        chosen = [paths[row] for row in rows.tolist()]
        return read_images(chosen, found.channels, change, options, description)

    return Dataset(
        name=directory.resolve().name,
        kind="image",
        train=part(train_rows, "reading training images"),
        test=part(test_rows, "reading test images"),
        train_labels=None if labels is None else labels[train_rows],
        test_labels=None if labels is None else labels[test_rows],
        value_range=(0.0, 1.0),
    )


def _list(directory: Path) -> tuple[list[Path], Tensor | None]:
    """Image files in a fixed order, and their labels where they lie in subfolders."""
    paths = sorted(image_paths(directory))
    if not paths:
        raise ValueError(
            f"{directory} holds no image ({', '.join(SUFFIXES)}); "
            f"give the folder that holds the images or their class folders"
        )
    groups = [path.relative_to(directory).parts[:-1][:1] for path in paths]
    if () not in groups:
        classes = {group: i for i, group in enumerate(sorted(set(groups)))}
        return paths, torch.tensor([classes[group] for group in groups])
    if any(groups):
        loose = paths[groups.index(())]
        raise ValueError(
            f"{directory} holds images both directly (such as {loose.name}) and in subfolders, "
            f"so their labels are unclear; move them all into subfolders, or none"
        )
    return paths, None
