"""CIFAR-10 in its binary and its Python version.

Binary: records of one label byte and 3x32x32 bytes, red, green and blue, rows from the top. Python:
pickled dictionaries of b"labels", a list, and b"data", an array [10000, 3072] in the same order.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaekern._optional import require
from vaekern.data.arrays import to_labels
from vaekern.data.dataset import Dataset
from vaekern.data.pickled import read_pickled_values
from vaekern.data.resize import fit_square
from vaekern.data.rows import ByteRows, Samples, scaled
from vaekern.data.source import ReadOptions, existing

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CLASSES = 10
TRAINING = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
JPEG_QUALITY = 75  # Pillow's and scipy.misc.imsave's, which Dai & Wipf's preprocessing calls

Batch = tuple[np.ndarray, np.ndarray]  # [n, 3, 32, 32] uint8, [n]


def read_cifar10(argument: str, options: ReadOptions) -> Dataset:
    """The five training batches, and the test batch as the test set."""
    return _read(argument, options, "cifar10")


def read_cifar10_jpeg(argument: str, options: ReadOptions) -> Dataset:
    """As :func:`read_cifar10`, every image once through JPEG, as Dai & Wipf trained and scored.

    Their preprocessing writes each image with ``scipy.misc.imsave`` to a .jpg file and reads it
    again; FIDs with and without that step differ.
    """
    return _read(argument, options, "cifar10-jpeg", change=_through_jpeg)


def _read(
    argument: str,
    options: ReadOptions,
    name: str,
    change: Callable[[np.ndarray], np.ndarray] = lambda images: images,
) -> Dataset:
    directory = existing(argument, directory=True)
    paths, read = _find(directory)
    batches = [read(path) for path in paths]
    for path, (images, _) in zip(paths, batches, strict=True):
        if len(images) != len(batches[0][0]):
            raise ValueError(
                f"{path} holds {len(images)} images, but {paths[0]} {len(batches[0][0])}; "
                f"all batches are equally large, so download the smaller one again"
            )
    test_images, test_labels = batches.pop()
    train = change(np.concatenate([images for images, _ in batches]))
    labels = np.concatenate([labels for _, labels in batches])
    return Dataset(
        name=name,
        kind="image",
        train=_samples(train, options),
        test=_samples(change(test_images), options),
        train_labels=to_labels(labels, len(train), str(directory)),
        test_labels=to_labels(test_labels, len(test_images), str(paths[-1])),
        value_range=(0.0, 1.0),
    )


def _samples(images: np.ndarray, options: ReadOptions) -> Samples:
    """As float32, or kept as bytes where that takes too much memory or was asked for."""
    levels = torch.from_numpy(images.copy())  # what was read may be read-only

    def change(batch: Tensor) -> Tensor:
        return fit_square(batch, options.image_size)

    size = options.image_size or SHAPE[1]
    if options.streams((len(levels), 3, size, size)):
        return ByteRows(levels, change)
    return change(scaled(levels))


def _find(directory: Path) -> tuple[list[Path], Callable[[Path], Batch]]:
    """The files of the version that is there, the test batch last, and what reads one."""
    places = (directory, directory / "cifar-10-batches-bin", directory / "cifar-10-batches-py")
    for place in places:
        for suffix, read in ((".bin", read_binary_batch), ("", read_python_batch)):
            paths = [place / f"{stem}{suffix}" for stem in (*TRAINING, TEST)]
            missing = [path for path in paths if not path.is_file()]
            if len(missing) == len(paths):
                continue
            if missing:
                raise FileNotFoundError(
                    f"{missing[0]} is missing beside the other batches of CIFAR-10; "
                    f"unpack the archive again"
                )
            return paths, read
    raise FileNotFoundError(
        f"{directory} holds neither {TRAINING[0]}.bin nor {TRAINING[0]}; give the directory that "
        f"CIFAR-10's binary or Python archive was unpacked into"
    )


def read_binary_batch(path: Path) -> Batch:
    """Images [n, 3, 32, 32] uint8 and labels [n] of one file of the binary version.

    Raises:
        ValueError: an empty or truncated file, or a label that is none of CIFAR-10's.
    """
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content) or len(content) % (1 + PIXELS):
        raise ValueError(
            f"{path} is truncated or no batch of CIFAR-10: its {len(content)} bytes are no whole "
            f"number of records of {1 + PIXELS} bytes; download it again"
        )
    records = content.reshape(-1, 1 + PIXELS)
    labels = _check_labels(records[:, 0], path)
    return records[:, 1:].reshape(-1, *SHAPE), labels


def read_python_batch(path: Path) -> Batch:
    """Images [n, 3, 32, 32] uint8 and labels [n] of one file of the Python version, not unpickled.

    Raises:
        ValueError: a damaged file, one that holds something else, or one that would run code.
    """
    values: Any = read_pickled_values(path)
    found = {}
    if isinstance(values, dict):
        # Python 3 writes the names as bytes, Python 2 as what is read as str
        found = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in values.items()}
    data, labels = found.get("data"), found.get("labels")
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != PIXELS
        or not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(type(label) is int for label in labels)
        or not labels
    ):
        raise ValueError(
            f"{path} is no batch of CIFAR-10: it must hold 'data', uint8 [N, {PIXELS}], and "
            f"'labels', a list of N whole numbers; download it again"
        )
    return data.reshape(-1, *SHAPE), _check_labels(np.array(labels), path)


def _check_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    bad = (labels < 0) | (labels >= CLASSES)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{path} is damaged or no batch of CIFAR-10: image {first} has the label "
            f"{labels[first]}, not 0 to {CLASSES - 1}; download it again"
        )
    return labels


def _through_jpeg(images: np.ndarray) -> np.ndarray:
    pillow = require("PIL.Image", "cifar10-jpeg", package="pillow")
    result = np.empty_like(images)
    for i, image in enumerate(images):
        file = io.BytesIO()
        pillow.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=JPEG_QUALITY)
        with pillow.open(file) as again:
            result[i] = np.asarray(again).transpose(2, 0, 1)
    return result
