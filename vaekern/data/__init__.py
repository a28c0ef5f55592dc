"""Data by one short name: digits, idx:DIR, npy:FILE, folder:DIR, or the synthetic sets."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vaekern.data.dataset import Dataset
from vaekern.data.digits import read_digits
from vaekern.data.folder import read_folder
from vaekern.data.idx import read_idx
from vaekern.data.npy import read_npy
from vaekern.data.rows import Rows, Samples
from vaekern.data.source import ReadOptions
from vaekern.data.synthetic import (
    Synthetic,
    read_synth_lin,
    read_synth_nonlin,
    synth_lin,
    synth_nonlin,
)

__all__ = [
    "READERS",
    "Dataset",
    "Reader",
    "Rows",
    "Samples",
    "Synthetic",
    "load",
    "synth_lin",
    "synth_nonlin",
]


class Reader(NamedTuple):
    """How one kind of source is written and read."""

    argument: str  # what stands after the colon; empty where nothing does
    read: Callable[[str, ReadOptions], Dataset]
    description: str


# One row per source: a new one is read, listed and suggested from the day its row is here.
READERS: dict[str, Reader] = {
    "digits": Reader("", read_digits, "scikit-learn's bundled handwritten digits, 1x8x8"),
    "idx": Reader("DIR", read_idx, "MNIST-style IDX files, plain or gzipped"),
    "npy": Reader("FILE", read_npy, ".npy or .npz, images or vectors"),
    "folder": Reader("DIR", read_folder, "image files; subfolders are labels"),
    "synth-lin": Reader("", read_synth_lin, "a stretched square in 3 dimensions, 50,000 points"),
    "synth-nonlin": Reader("", read_synth_nonlin, "a bent square in 6 dimensions, 50,000 points"),
}


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
        spec: ``digits``, ``idx:DIR`` (MNIST-style IDX files), ``npy:FILE`` (.npy or .npz: uint8
            images, float images in [0, 1], or [N, D] vectors), ``folder:DIR`` (image files),
            ``synth-lin`` or ``synth-nonlin`` (see :func:`synth_lin` and :func:`synth_nonlin`).
        image_size: side in pixels; images are cut to their largest centred square and resized.
            Needed for a folder whose images differ in size.
        test_fraction: share of the samples held out for testing where the source has no test set
            of its own; stratified where there are labels.
        seed: which samples are held out. The same seed gives the same split on every machine.
        stream: True leaves the samples of a .npy file (C order) or of plain IDX files on disk, as
            :class:`Rows`; None does so where as float32 they would take more than a quarter of the
            memory. They are the same to the last bit. Of those on disk a thousand are checked
            here, and each when it is read.

    Returns:
        A :class:`Dataset`: images [N, C, H, W] in [0, 1] or vectors [N, D], float32.

    Raises:
        ValueError: an unknown spec, or data that is damaged, empty, not finite or not numbers.
        FileNotFoundError: the path does not exist.
        TypeError: an argument of the wrong type.

    Example:
        >>> digits = load("digits")
        >>> digits.train.shape, digits.test.shape, digits.sample_shape
        (torch.Size([1617, 1, 8, 8]), torch.Size([180, 1, 8, 8]), (1, 8, 8))
    """
    options = _options(image_size, test_fraction, seed, stream)
    if not isinstance(spec, str):
        raise TypeError(f"spec must be one of {_known()}, got {type(spec).__name__}")
    prefix, _, argument = spec.partition(":")
    reader = READERS.get(prefix)
    if reader is None:
        raise ValueError(f"spec must be one of {_known()}, got {spec!r}{_suggestion(spec)}")
    if bool(argument) != bool(reader.argument):
        wanted = f"{prefix}:{reader.argument}" if reader.argument else prefix
        raise ValueError(f"spec {spec!r} must be written {wanted}")
    dataset = reader.read(argument, options)
    if stream and not isinstance(dataset.train, Rows):
        options.without_stream(f"the source {prefix!r}", "save its samples with numpy.save")
    return dataset


def _known() -> str:
    return " | ".join(f"{k}:{r.argument}" if r.argument else k for k, r in READERS.items())


def _suggestion(spec: str) -> str:
    prefix, _, argument = spec.partition(":")
    path = Path(spec).expanduser()
    close = difflib.get_close_matches(prefix.lower(), READERS, n=1, cutoff=0.5)
    if spec and path.is_dir():
        likely = f"folder:{spec} or idx:{spec}"
    elif spec and path.is_file():
        likely = f"npy:{spec}"
    elif close:
        wanted = READERS[close[0]].argument
        likely = f"{close[0]}:{argument or wanted}" if wanted else close[0]
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
