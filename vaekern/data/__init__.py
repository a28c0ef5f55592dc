"""Data by one short name: files in their usual formats, and generated sets that need no file."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vaekern.data.celeba import read_celeba, read_celeba140, read_celeba160, read_celeba_hq
from vaekern.data.cifar import read_cifar10, read_cifar10_jpeg
from vaekern.data.dataset import Dataset
from vaekern.data.digits import read_digits
from vaekern.data.dsprites import read_dsprites
from vaekern.data.folder import read_folder
from vaekern.data.generated import Synthetic
from vaekern.data.idx import read_idx
from vaekern.data.manifolds import manifold, manifold_images, read_manifold, read_manifold_images
from vaekern.data.noise import PATTERNS, Noise, add_noise
from vaekern.data.npy import read_npy
from vaekern.data.pen_strokes import read_strokes, strokes
from vaekern.data.rows import Rows, Samples
from vaekern.data.source import ReadOptions
from vaekern.data.sprite_grid import read_soft_sprites, read_sprites, sprites
from vaekern.data.synthetic import read_synth_lin, read_synth_nonlin, synth_lin, synth_nonlin

__all__ = [
    "READERS",
    "Dataset",
    "Noise",
    "Reader",
    "Rows",
    "Samples",
    "Synthetic",
    "add_noise",
    "load",
    "manifold",
    "manifold_images",
    "specs",
    "sprites",
    "strokes",
    "synth_lin",
    "synth_nonlin",
]


class Reader(NamedTuple):
    """How one kind of source is written and read."""

    argument: str  # what stands after the name, as ":DIR"; in brackets what may be left out
    read: Callable[[str, ReadOptions], Dataset]
    description: str

    def spelling(self, name: str) -> str:
        """The spec as a user writes it, such as npy:FILE or synth-lin[:RATIO]."""
        return f"{name}{self.argument}"


def _read_noisy(argument: str, options: ReadOptions) -> Dataset:
    """Another set with noise on it; here, because it needs the table below."""
    pattern, _, rest = argument.partition(":")
    variance, _, spec = rest.partition(":")
    if pattern not in PATTERNS:
        near = difflib.get_close_matches(pattern, PATTERNS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"PATTERN of noisy:PATTERN:VARIANCE:SPEC must be one of {', '.join(PATTERNS)}, "
            f"got {pattern!r}{hint}"
        )
    try:
        number = float(variance)
    except ValueError:
        number = math.nan
    if math.isnan(number) or not spec:
        raise ValueError(
            f"spec must be written noisy:PATTERN:VARIANCE:SPEC, as in noisy:spatial:0.1:digits, "
            f"got noisy:{argument}"
        )
    # the noise is drawn for a set in memory
    clean = _read(spec, replace(options, stream=False))
    return add_noise(clean, pattern, number, seed=options.seed)


# One row per source: a new one is read, listed and suggested from the day its row is here.
READERS: dict[str, Reader] = {
    "digits": Reader("", read_digits, "scikit-learn's bundled handwritten digits, 1x8x8"),
    "idx": Reader(":DIR", read_idx, "MNIST, Fashion-MNIST and other IDX files, plain or gzipped"),
    "npy": Reader(":FILE", read_npy, ".npy or .npz, images or vectors"),
    "folder": Reader(":DIR", read_folder, "image files; subfolders are labels"),
    "cifar10": Reader(":DIR", read_cifar10, "CIFAR-10, binary or Python version"),
    "cifar10-jpeg": Reader(":DIR", read_cifar10_jpeg, "each image once through JPEG: Dai & Wipf"),
    "celeba": Reader(":DIR", read_celeba, "CelebA, cropped to 128x128, 64x64: Dai & Wipf"),
    "celeba140": Reader(":DIR", read_celeba140, "cropped to 140x140, 64x64: WAE, Takida et al."),
    "celeba160": Reader(":DIR", read_celeba160, "cropped to 160x160, 64x64: Lucic et al."),
    "celeba-hq": Reader(":DIR", read_celeba_hq, "CelebA-HQ, 128x128: Takida et al."),
    "synth-lin": Reader("[:RATIO]", read_synth_lin, "a stretched square in R^3, 50,000 points"),
    "synth-nonlin": Reader("", read_synth_nonlin, "a bent square in R^6, 50,000 points"),
    "manifold": Reader("[:R[:D]]", read_manifold, "R Gaussian dimensions, bent in R^D"),
    "manifold-images": Reader("[:R[:N]]", read_manifold_images, "the same as images, 1x24x24"),
    "sprites": Reader("[:N]", read_sprites, "the factors of dSprites, drawn anew, 1x64x64"),
    "soft-sprites": Reader("[:N]", read_soft_sprites, "sprites with smooth outlines"),
    "dsprites": Reader(":FILE", read_dsprites, "the dSprites file, with its factors"),
    "strokes": Reader("[:N]", read_strokes, "digits written by a generated pen, 1x28x28"),
    "noisy": Reader(":PATTERN:VARIANCE:SPEC", _read_noisy, "noise on a part of another image set"),
}

# Names of public sets that are read by the name of their format.
FORMATS = dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist", "qmnist"), "idx")


def load(
    spec: str,
    *,
    image_size: int | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    stream: bool | None = None,
) -> Dataset:
    """Read a data set into memory, or find out how its samples are read from disk.

    Args:
        spec: one of the names in ``READERS`` with what belongs to it: ``digits``, ``idx:DIR``,
            ``npy:FILE`` (.npy or .npz: uint8 images, float images in [0, 1], or [N, D] vectors),
            ``folder:DIR`` (image files), ``cifar10:DIR``, ``celeba:DIR``, ``synth-lin:1.5``,
            ``manifold-images:5``, ``sprites``, ``noisy:spatial:0.1:digits`` and others.
        image_size: side in pixels; images are cut to their largest centred square and resized.
            Needed for a folder whose images differ in size.
        test_fraction: share of the samples held out for testing where the source has no test set
            of its own; stratified where there are labels.
        seed: which samples are held out, and the noise of ``noisy``. The same seed gives the same
            split on every machine. What is generated does not depend on it.
        stream: True leaves the samples on disk, as :class:`Rows`: those of a .npy file (C order),
            of plain IDX files and of image files; None does so where as float32 they would take
            more than a quarter of the memory. They are the same to the last bit. Of an array on
            disk a thousand samples are checked here, and each when it is read.

    Returns:
        A :class:`Dataset`: images [N, C, H, W] in [0, 1] or vectors [N, D], float32.

    Raises:
        ValueError: an unknown spec, or data that is damaged, empty, not finite or not numbers.
        FileNotFoundError: the path does not exist, or a file beside it is missing.
        PermissionError: it may not be read.
        TypeError: an argument of the wrong type.

    Example:
        >>> digits = load("digits")
        >>> digits.train.shape, digits.test.shape, digits.sample_shape
        (torch.Size([1617, 1, 8, 8]), torch.Size([180, 1, 8, 8]), (1, 8, 8))
    """
    options = _options(image_size, test_fraction, seed, stream)
    if not isinstance(spec, str):
        raise TypeError(f"spec must be one of {_known()}, got {type(spec).__name__}")
    try:
        return _read(spec, options)
    except PermissionError as error:
        if error.errno is None:  # a reader's own sentence
            raise
        raise PermissionError(
            f"{error.filename} cannot be read ({error.strerror}); change its permissions, or copy "
            "it to where you may read it"
        ) from None


def specs() -> list[str]:
    """How each kind of source is written: digits, idx:DIR, and so on."""
    return [reader.spelling(name) for name, reader in READERS.items()]


def _read(spec: str, options: ReadOptions) -> Dataset:
    prefix, _, argument = spec.partition(":")
    reader = READERS.get(prefix)
    if reader is None:
        raise ValueError(f"spec must be one of {_known()}, got {spec!r}{_suggestion(spec)}")
    optional = reader.argument.startswith("[")
    if (argument and not reader.argument) or (not argument and reader.argument and not optional):
        raise ValueError(f"spec {spec!r} must be written {reader.spelling(prefix)}")
    dataset = reader.read(argument, options)
    if options.stream and not isinstance(dataset.train, Rows):
        remedy = "leave stream out" if prefix == "noisy" else "save its samples with numpy.save"
        options.without_stream(f"the source {prefix!r}", remedy)
    return dataset


def _known() -> str:
    return " | ".join(specs())


def _suggestion(spec: str) -> str:
    prefix, _, argument = spec.partition(":")
    path = Path(spec).expanduser()
    close = difflib.get_close_matches(prefix.lower(), [*FORMATS, *READERS], n=1, cutoff=0.65)
    close = [FORMATS.get(name, name) for name in close]
    if spec and path.is_dir():
        likely = f"folder:{spec} or idx:{spec}"
    elif spec and path.is_file():
        likely = f"npy:{spec}"
    elif close:
        reader = READERS[close[0]]
        likely = f"{close[0]}:{argument}" if argument and reader.argument else ""
        likely = likely or reader.spelling(close[0]).partition("[")[0]
    else:
        return ""
    return f"; did you mean {likely}?"


def _options(
    image_size: int | None, test_fraction: float, seed: int, stream: bool | None
) -> ReadOptions:
    if image_size is not None:
        if isinstance(image_size, bool) or not isinstance(image_size, int):
            raise TypeError(
                f"image_size must be a whole number of pixels or None, "
                f"got {type(image_size).__name__}"
            )
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    if isinstance(test_fraction, bool) or not isinstance(test_fraction, (int, float)):
        raise TypeError(
            f"test_fraction must be a number between 0 and 1, got {type(test_fraction).__name__}"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"test_fraction must lie between 0 and 1, both excluded, got {test_fraction}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0 to 2**63 - 1, got {seed}")
    if stream is not None and not isinstance(stream, bool):
        raise TypeError(f"stream must be True, False or None, got {stream!r}")
    return ReadOptions(image_size, float(test_fraction), seed, stream)
