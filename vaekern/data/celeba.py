"""CelebA and CelebA-HQ, cropped as the papers crop them.

A directory holds the aligned images, in img_align_celeba/ or directly, and perhaps
list_eval_partition.txt, the split that comes with the data: lines of a file name and 0 (training),
1 (validation) or 2 (test).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaekern.data.dataset import Dataset, split_indices
from vaekern.data.image_files import SUFFIXES, image_paths, read_images, survey
from vaekern.data.resize import fit_square
from vaekern.data.rows import Samples
from vaekern.data.source import ReadOptions, existing

SIZE = (178, 218)  # width and height of an aligned image
SIDE, HQ_SIDE = 64, 128
PARTITION = "list_eval_partition.txt"
# The split by position in the sorted names: training, validation and test.
POSITIONS = (162_770, 19_867, 19_962)


@dataclass(frozen=True)
class Crop:
    """Rows and columns of an aligned image that are kept, before they are resized."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    def __call__(self, image: Tensor) -> Tensor:
        (top, bottom), (left, right) = self.rows, self.columns
        return image[..., top:bottom, left:right]


# One row per crop in the papers.
FACE128 = Crop((45, 173), (25, 153))  # Dai & Wipf, all tables but Table 3
CENTRE140 = Crop((39, 179), (19, 159))  # WAE, Dai & Wipf's Table 3, Takida et al.
CENTRE160 = Crop((29, 189), (9, 169))  # Lucic et al., whose GANs Dai & Wipf quote


def read_celeba(argument: str, options: ReadOptions) -> Dataset:
    """Rows 45 to 173, columns 25 to 153, resized to 64x64: Dai & Wipf."""
    return _read(argument, options, "celeba", FACE128)


def read_celeba140(argument: str, options: ReadOptions) -> Dataset:
    """The central 140x140, resized to 64x64: WAE, Dai & Wipf's Table 3, Takida et al."""
    return _read(argument, options, "celeba140", CENTRE140)


def read_celeba160(argument: str, options: ReadOptions) -> Dataset:
    """The central 160x160, resized to 64x64: Lucic et al."""
    return _read(argument, options, "celeba160", CENTRE160)


def read_celeba_hq(argument: str, options: ReadOptions) -> Dataset:
    """Square images, uncropped, resized to 128x128: Takida et al.

    They come without a split, so that ``test_fraction`` of them is held out.
    """
    directory = existing(argument, directory=True)
    paths = _images(directory)
    found = survey(paths)
    if found.size[0] != found.size[1]:
        raise ValueError(
            f"{found.first} must be square, got {found.size[0]}x{found.size[1]} pixels; "
            f"give the folder of CelebA-HQ's images, or use celeba:DIR for the aligned ones"
        )
    found.require_one_size("give the folder that holds CelebA-HQ's images alone")
    train, test = split_indices(
        len(paths),
        None,
        test_fraction=options.test_fraction,
        seed=options.seed,
        source=f"folder {directory}",
    )
    size = options.image_size or HQ_SIDE
    return _dataset("celeba-hq", paths, train, test, None, size, options)


def _read(argument: str, options: ReadOptions, name: str, crop: Crop) -> Dataset:
    directory = existing(argument, directory=True)
    paths = _images(directory)
    train, test = _split(paths, directory)
    survey(paths).require_size(
        SIZE, "give CelebA's aligned images as they are published, or use folder:DIR"
    )
    return _dataset(name, paths, train, test, crop, options.image_size or SIDE, options)


def _dataset(
    name: str,
    paths: list[Path],
    train: Tensor,
    test: Tensor,
    crop: Crop | None,
    size: int,
    options: ReadOptions,
) -> Dataset:
    """Images in whole grey levels, which the papers' preprocessing stores."""

    def change(image: Tensor) -> Tensor:
        return fit_square(image if crop is None else crop(image), size)

    def part(rows: Tensor, description: str) -> Samples:
        chosen = [paths[row] for row in rows.tolist()]
        return read_images(chosen, 3, change, options, description, whole_levels=True)

    return Dataset(
        name=name,
        kind="image",
        train=part(train, "reading training images"),
        test=part(test, "reading test images"),
        value_range=(0.0, 1.0),
    )


def _images(directory: Path) -> list[Path]:
    """Image files in the order of their names: as numbers where they are numbers."""
    aligned = directory / "img_align_celeba"
    place = aligned if aligned.is_dir() else directory
    paths = list(image_paths(place, deep=False))
    if not paths:
        raise ValueError(
            f"{place} holds no image ({', '.join(SUFFIXES)}); give the directory that holds "
            f"img_align_celeba, or the images themselves"
        )
    return sorted(paths, key=lambda path: (path.stem.zfill(20), path.name))


def _split(paths: list[Path], directory: Path) -> tuple[Tensor, Tensor]:
    """Rows for training and testing; the validation images belong to neither.

    By list_eval_partition.txt where it lies in the directory or beside it. Else by position in the
    sorted names, in the shares of the published split: with all 202,599 images it is that split.
    Dai & Wipf split by position, too, but in the order in which a directory lists its files.
    """
    remedy = "supply more images"
    for place in (directory, directory.parent):
        if (place / PARTITION).is_file():
            groups = _partition(place / PARTITION, paths)
            remedy = f"{place / PARTITION} must name some for each; download it again"
            break
    else:
        total = sum(POSITIONS)
        count = len(paths)
        ends = (count * POSITIONS[0] // total, count * (POSITIONS[0] + POSITIONS[1]) // total)
        places = torch.arange(count)
        groups = (places >= ends[0]).long() + (places >= ends[1]).long()
    train, test = (torch.nonzero(groups == group).flatten() for group in (0, 2))
    if not len(train) or not len(test):
        raise ValueError(
            f"{directory} leaves {len(train)} images for training and {len(test)} for testing of "
            f"{len(paths)}, but needs at least one each; {remedy}"
        )
    return train, test


def _partition(file: Path, paths: list[Path]) -> Tensor:
    """0, 1 or 2 for each image."""
    groups: dict[str, int] = {}
    for number, line in enumerate(
        file.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise ValueError(
                f"line {number} of {file} must be a file name and 0, 1 or 2, got {line[:80]!r}; "
                f"download it again"
            )
        if words[0] in groups:
            raise ValueError(
                f"line {number} of {file} lists {words[0]} a second time; download it again"
            )
        groups[words[0]] = int(words[1])
    unknown = next((path for path in paths if path.name not in groups), None)
    if unknown is not None:
        raise ValueError(
            f"{file} does not list {unknown.name}, which lies in {unknown.parent}; "
            f"download the list again, or remove the image"
        )
    names = {path.name for path in paths}
    missing = next((name for name in groups if name not in names), None)
    if missing is not None:
        raise FileNotFoundError(
            f"{paths[0].parent / missing} is missing, but {file} lists it ({len(groups)} images, "
            f"{len(paths)} found); unpack the archive again, or remove the list to split the "
            f"images by their position"
        )
    return torch.tensor([groups[path.name] for path in paths])
