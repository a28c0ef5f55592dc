"""From a numpy array of unknown origin to checked float32 samples: used by every array reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaekern.data.dataset import Kind
from vaekern.data.resize import fit_square
from vaekern.data.rows import FileRows, Rows, spread
from vaekern.data.source import ReadOptions

# Above this, neighbouring integers become the same float32.
LARGEST_EXACT_INTEGER = 2**24
# Images scaled by careful code still overshoot [0, 1] by a few roundings; more is another scale.
RANGE_SLACK = 1e-5
# Of samples that stay on disk so many are looked at before training starts, and each when it is
# read.
CHECKED = 1000


def to_samples(
    array: np.ndarray, source: str, *, part: bool = False, rows: Tensor | None = None
) -> tuple[Kind, Tensor]:
    """Recognise [N, D] vectors and [N, H, W], [N, C, H, W] or [N, H, W, C] images (C = 1 or 3).

    Where both channel positions fit, the second axis holds the channels.

    Args:
        array: the samples.
        source: what to call them in an error.
        part: these are some of a set's samples, and say nothing about all of them.
        rows: their numbers in the set.

    Returns:
        The kind, and float32 samples: [N, D], or [N, C, H, W] in [0, 1].
    """
    shape = list(array.shape)
    if array.dtype.hasobject or array.dtype.kind not in "buif":
        raise ValueError(
            f"{source} must hold real numbers, got dtype {array.dtype}; save it as uint8 or float32"
        )
    if array.size == 0:
        raise ValueError(f"{source} is empty (shape {shape}); supply at least 2 samples")
    if array.ndim == 2:
        return "vector", _vectors(array, source, rows)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] in (1, 3):
        pass
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    else:
        raise ValueError(
            f"{source} must have shape [N, D] (vectors), [N, H, W], [N, C, H, W] or [N, H, W, C] "
            f"with C 1 or 3 (images), got {shape}; reshape it"
        )
    return "image", _images(array, source, part, rows)


def loaded_shape(shape: Sequence[int], options: ReadOptions) -> tuple[int, ...]:
    """The shape in which an array is trained on: that of images after `image_size`."""
    count, *rest = shape
    if options.image_size is None or len(rest) < 2:
        return tuple(shape)
    channels = 1 if len(rest) == 2 else rest[0] if rest[0] in (1, 3) else rest[-1]
    return count, channels, options.image_size, options.image_size


def on_disk(
    path: Path,
    offset: int,
    dtype: np.dtype,
    shape: Sequence[int],
    options: ReadOptions,
) -> tuple[Kind, Rows]:
    """:func:`to_samples` for an array in a file, of which only some samples are read now."""

    def prepare(stored: np.ndarray, source: str) -> Tensor:
        kind, samples = to_samples(stored, source, part=True)
        return fit_square(samples, options.image_size) if kind == "image" else samples

    if 0 in shape:
        to_samples(np.empty(shape, dtype), str(path))  # says that it is empty
    rows = FileRows(path, offset, dtype, shape, prepare)
    looked_at = spread(len(rows), CHECKED)
    kind, _ = to_samples(rows.stored(looked_at), str(path), rows=looked_at)
    if kind == "vector":
        options.without_image_size(str(path))
    return kind, rows


def to_labels(array: np.ndarray, count: int, source: str) -> Tensor:
    """Integer labels [N] or [N, 1] as int64 [N]."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "bui" or array.ndim != 1 or len(array) != count:
        raise ValueError(
            f"{source} must hold one integer label for each of the {count} samples, "
            f"got {array.dtype} with shape {list(array.shape)}; give one for each, or leave the "
            f"labels out"
        )
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(
            f"{source} holds label {array.max()}, too large for int64; number the classes from 0"
        )
    return torch.from_numpy(array.astype(np.int64))


def _vectors(array: np.ndarray, source: str, rows: Tensor | None) -> Tensor:
    if array.dtype.kind in "ui":
        # compared as Python integers: abs() of the smallest int64 would overflow
        low, high = int(array.min()), int(array.max())
        if max(-low, high) > LARGEST_EXACT_INTEGER:
            raise ValueError(
                f"{source} holds integers from {low} to {high}, but float32 is exact only up to "
                f"{LARGEST_EXACT_INTEGER}; rescale them and save them as float32"
            )
    return _finite_float32(array, source, rows)


def _images(array: np.ndarray, source: str, part: bool, rows: Tensor | None) -> Tensor:
    if array.dtype.kind in "ui":
        if array.dtype != np.uint8:
            raise ValueError(
                f"{source} holds images as {array.dtype}, whose white level is unknown; save them "
                f"as uint8 (0 to 255) or as float32 in [0, 1]"
            )
        if not part and array.max() == 1:
            raise ValueError(
                f"{source} holds uint8 images of only 0 and 1, which uint8's scale of 0 to 255 "
                f"makes black; save them with .astype(bool), or multiply them by 255"
            )
        # np.divide with an explicit dtype makes one float32 array and no float64 one
        return torch.from_numpy(np.ascontiguousarray(np.divide(array, 255, dtype=np.float32)))
    images = _finite_float32(array, source, rows)
    low, high = float(images.min()), float(images.max())
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        raise ValueError(
            f"{source} holds float images from {low:g} to {high:g}, but images must lie in [0, 1]; "
            f"rescale them, or reshape them to [N, D] to train on them as unbounded vectors"
        )
    return images.clamp_(0, 1)


def _finite_float32(array: np.ndarray, source: str, rows: Tensor | None) -> Tensor:
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below, as inf
        # a copy, so that the caller's array and a memory-mapped file are never written to
        samples = torch.from_numpy(np.array(array, dtype=np.float32, order="C", copy=True))
    bad = ~torch.isfinite(samples)
    if bad.any():
        first = tuple(torch.nonzero(bad)[0].tolist())
        sample = first[0] if rows is None else int(rows[first[0]])
        place = "" if len(samples) == 1 else f", in sample {sample},"
        looked_at = "" if rows is None or not place else " that were looked at"
        raise ValueError(
            f"{source} must be finite in float32, but {int(bad.sum())} of {samples.numel()} values"
            f"{looked_at} are not; the first{place} is {array[first]}; remove those samples or "
            f"fill the gaps"
        )
    return samples
