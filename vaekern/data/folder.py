"""A folder of image files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaekern._optional import require
from vaekern.data.dataset import Dataset, split_indices
from vaekern.data.resize import fit_square
from vaekern.data.source import ReadOptions, existing

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Pillow's modes with 8 bits a channel or fewer; it would clip 16-bit and float pixels silently.
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa")


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
    channels, height, width = _survey(paths, options.image_size)

    def part(rows: Tensor, description: str) -> Tensor:
        images = torch.empty(len(rows), channels, height, width)
        for i, row in enumerate(_progress(rows.tolist(), description)):
            images[i] = fit_square(_decode(paths[row], channels), options.image_size)[0]
        return images

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
    paths = sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(name.startswith(".") for name in path.relative_to(directory).parts)
        and path.is_file()
    )
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


def _survey(paths: Sequence[Path], image_size: int | None) -> tuple[int, int, int]:
    """Channels, height and width, from the headers only, so that a bad folder fails early."""
    grey = True
    first: tuple[int, int] | None = None
    for path in _progress(paths, "checking images"):
        with _open(path) as image:
            mode, size = image.mode, image.size
        if mode not in GREY_MODES + COLOUR_MODES:
            raise ValueError(
                f"{path} has {mode} pixels (16-bit or float), whose white level is unknown; "
                f"convert it to 8 bits a channel, or save the images as one float .npy in [0, 1]"
            )
        grey = grey and mode in GREY_MODES
        if first is None:
            first = size
        elif image_size is None and size != first:
            raise ValueError(
                f"images must have one size, but {paths[0]} has {first[0]}x{first[1]} pixels and "
                f"{path} {size[0]}x{size[1]}; pass image_size to crop and resize them"
            )
    assert first is not None
    width, height = first if image_size is None else (image_size, image_size)
    return (1 if grey else 3), height, width


def _decode(path: Path, channels: int) -> Tensor:  # [1, C, H, W] in [0, 1]
    with _open(path) as image:
        try:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _corrupt(path, error) from None
    scaled = torch.from_numpy(pixels.astype(np.float32)) / 255
    return scaled.reshape(1, *pixels.shape[:2], channels).permute(0, 3, 1, 2)


def _open(path: Path) -> Any:
    image = require("PIL.Image", "reading image files", package="pillow")
    try:
        return image.open(path)
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise _corrupt(path, error) from None


def _corrupt(path: Path, error: Exception) -> ValueError:
    reason = str(error).rstrip(".") or type(error).__name__
    return ValueError(f"{path} cannot be read as an image ({reason}); replace or remove it")


def _progress(items: Sequence[Any], description: str) -> Iterable[Any]:
    tqdm = require("tqdm", "reading image folders")
    # disable=None: silent where the output is not a terminal
    bar: Iterable[Any] = tqdm.tqdm(items, desc=description, unit="image", disable=None, leave=False)
    return bar
