"""Files that each hold one image: what every reader of such files shares."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaekern._optional import require
from vaekern.data.rows import ByteRows, Decoded, Samples, scaled
from vaekern.data.source import ReadOptions

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Pillow's modes with 8 bits a channel or fewer; it would clip 16-bit and float pixels silently.
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa")


def image_paths(folder: Path, *, deep: bool = True, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The image files in a folder, and where ``deep`` in its folders; links are followed.

    Hidden files and folders, and other kinds of file, are passed over; a link back up ends there.

    Raises:
        ValueError: a link to nothing.
        PermissionError: a folder that may not be read.
    """
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if deep:
                yield from image_paths(path, above=(*above, real))
        elif path.suffix.lower() in SUFFIXES:
            if not path.is_file():
                raise ValueError(
                    f"{path} is a link to {os.readlink(path)}, where there is no file; mend or "
                    f"remove it"
                )
            yield path


class Survey(NamedTuple):
    """What the headers of image files say."""

    channels: int  # 1 where every image is greyscale, else 3
    first: Path
    size: tuple[int, int]  # width and height of the first
    other: Path | None  # the first of another size
    other_size: tuple[int, int] | None

    def require_one_size(self, remedy: str) -> None:
        """Refuse images of different sizes."""
        if self.other_size is not None:
            raise ValueError(
                f"images must have one size, but {self.first} has {_pixels(self.size)} pixels and "
                f"{self.other} {_pixels(self.other_size)}; {remedy}"
            )

    def require_size(self, size: tuple[int, int], remedy: str) -> None:
        """Refuse images of any other (width, height)."""
        wrong, found = (self.first, self.size) if self.size != size else self[3:]
        if wrong is not None and found is not None:
            raise ValueError(
                f"{wrong} must have {_pixels(size)} pixels, got {_pixels(found)}; {remedy}"
            )


def survey(paths: Sequence[Path]) -> Survey:
    """Read the headers only, so that a bad folder fails early.

    Raises:
        ValueError: a file that is no image, or one with more than 8 bits a channel.
    """
    grey = True
    sizes: dict[tuple[int, int], Path] = {}
    for path in _progress(paths, "checking images"):
        with _open(path) as image:
            mode, size = image.mode, image.size
            # of colour PNGs with 16 bits a channel Pillow reads the upper 8
            wide = any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        if wide or mode not in GREY_MODES + COLOUR_MODES:
            raise ValueError(
                f"{path} has {mode} pixels (16-bit or float), whose white level is unknown; "
                f"convert it to 8 bits a channel, or save the images as one float .npy in [0, 1]"
            )
        grey = grey and mode in GREY_MODES
        sizes.setdefault(size, path)
    (size, first), (other_size, other) = [*sizes.items(), (None, None)][:2]
    assert size is not None
    assert first is not None
    return Survey(1 if grey else 3, first, size, other, other_size)


def read_images(
    paths: Sequence[Path],
    channels: int,
    change: Callable[[Tensor], Tensor],  # [1, C, h, w] -> [1, C, H, W], in [0, 1]
    options: ReadOptions,
    description: str,
    *,
    whole_levels: bool = False,
) -> Samples:  # [N, C, H, W]
    """Every image, cropped and resized by ``change``, which gives all of them one shape.

    With ``whole_levels`` they are rounded to the 256 grey levels of a byte, as image files have
    them. Such images are kept as bytes where float32 would take too much memory, and decoded from
    their files at each use only where bytes would, too.
    """

    def decode_levels(path: Path) -> Tensor:
        return change(_decode(path, channels)).mul(255).round().byte()

    def decode(path: Path) -> Tensor:
        return scaled(decode_levels(path)) if whole_levels else change(_decode(path, channels))

    first = decode(paths[0])
    shape = (len(paths), *first.shape[1:])
    if not options.streams(shape):
        result = first.new_empty(shape)
        for image, path in zip(result, _progress(paths, description), strict=True):
            image.copy_(decode(path)[0])
        return result
    if options.stream or not whole_levels or options.too_large(math.prod(shape)):
        return Decoded(paths, decode)
    levels = torch.empty(shape, dtype=torch.uint8)
    for image, path in zip(levels, _progress(paths, description), strict=True):
        image.copy_(decode_levels(path)[0])
    return ByteRows(levels)


def _decode(path: Path, channels: int) -> Tensor:  # [1, C, H, W] in [0, 1]
    with _open(path) as image:
        try:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _corrupt(path, error) from None
    levels = torch.from_numpy(pixels.copy()).reshape(1, *pixels.shape[:2], channels)
    return scaled(levels.permute(0, 3, 1, 2))


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


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
