"""MNIST-style IDX files: MNIST, Fashion-MNIST, KMNIST and their kin.

An IDX file is two zero bytes, a type byte, the number of axes, one big-endian uint32 per axis, and
the values in row-major big-endian order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from torch import Tensor

from vaekern.data.arrays import loaded_shape, on_disk, to_labels, to_samples
from vaekern.data.dataset import Dataset, Kind, split_dataset
from vaekern.data.resize import fit_square
from vaekern.data.rows import Samples
from vaekern.data.source import ReadOptions, existing

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 1 << 20


def read_idx(argument: str, options: ReadOptions) -> Dataset:
    """A directory of IDX files with the standard names, plain or gzipped.

    ``t10k-*`` is the test set. Where it is missing, ``test_fraction`` of the training images is.
    """
    directory = existing(argument, directory=True)
    train_path = _find(directory, "train-images", 3)
    if train_path is None:
        raise FileNotFoundError(
            f"{directory} has none of {', '.join(_names('train-images', 3))}; "
            f"give the directory that holds the IDX files"
        )
    test_path = _find(directory, "t10k-images", 3)
    _check_complete(directory, test_path)
    train, train_labels = _read_pair(directory, "train", train_path, options)
    name = directory.resolve().name
    if test_path is None:
        return split_dataset(
            name,
            "image",
            train,
            train_labels,
            test_fraction=options.test_fraction,
            seed=options.seed,
            source=str(train_path),
        )
    test, test_labels = _read_pair(directory, "t10k", test_path, options)
    return Dataset(
        name=name,
        kind="image",
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        value_range=(0.0, 1.0),
    )


def _check_complete(directory: Path, test_path: Path | None) -> None:
    """Refuse a set of which a file is missing that others show to belong to it."""
    train_labels, test_labels = (_find(directory, f"{p}-labels", 1) for p in ("train", "t10k"))
    missing, there = None, None
    if test_labels is not None and test_path is None:
        missing, there = _names("t10k-images", 3)[0], test_labels
    elif test_labels is not None and train_labels is None:
        missing, there = _names("train-labels", 1)[0], test_labels
    if missing is not None and there is not None:
        raise FileNotFoundError(
            f"{directory / missing} is missing, though {there.name} is there; download it again, "
            f"or remove {there.name} to do without"
        )


def read_idx_file(path: Path) -> np.ndarray:
    """One IDX file as an array in the machine's byte order.

    Raises:
        ValueError: wrong magic, unknown type, damaged gzip, or a length that differs from what the
            header announces. Nothing is allocated from the header's word alone.
    """
    with path.open("rb") as raw:
        stream = _plain(raw)
        dtype, shape = _header(stream, path)
        expected = math.prod(shape) * dtype.itemsize
        values = _read(stream, expected + 1, path)  # one more byte shows that the file is too long
    _check_length(path, shape, dtype, len(values))
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _plain(raw: IO[bytes]) -> IO[bytes]:
    """The file's content, unzipped where it is zipped."""
    zipped = raw.read(2) == GZIP_MAGIC
    raw.seek(0)
    # GzipFile reads like a file; its type is not an IO[bytes] to the type checker
    return cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw


def _header(stream: IO[bytes], path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and the shape of the values that follow."""
    magic = _read(stream, 4, path)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or magic[3] == 0:
        raise ValueError(
            f"{path} is not an IDX file: it must start with 00 00, a type byte (08 for uint8) "
            f"and the number of axes, but starts with {magic.hex(' ') or 'nothing'}; download or "
            f"copy it again"
        )
    header = _read(stream, 4 * magic[3], path)
    expected_header = 4 + 4 * magic[3]
    if len(header) < 4 * magic[3]:
        raise ValueError(
            f"{path} is truncated: its header needs {expected_header} bytes, "
            f"found {4 + len(header)}; download or copy it again"
        )
    return np.dtype(DTYPES[magic[2]]), struct.unpack(f">{magic[3]}I", header)


def _check_length(path: Path, shape: tuple[int, ...], dtype: np.dtype, count: int) -> None:
    """Refuse a file whose values take another number of bytes than its header announces."""
    expected = math.prod(shape) * dtype.itemsize
    if count != expected:
        fault = "truncated" if count < expected else "too long"
        found = f"{count}" if count < expected else f"at least {count}"
        raise ValueError(
            f"{path} is {fault}: its header announces {list(shape)}, which takes {expected} bytes "
            f"of values, found {found}; download or copy it again"
        )


def _read(stream: IO[bytes], limit: int, path: Path) -> bytes:
    """Up to ``limit`` bytes; fewer where the file ends early."""
    parts = bytearray()
    try:
        while len(parts) < limit and (part := stream.read(min(CHUNK, limit - len(parts)))):
            parts += part
    except EOFError:
        raise ValueError(
            f"{path} is truncated: its gzip stream has no end; download or copy it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is a damaged gzip file ({error}); download or copy it again"
        ) from None
    return bytes(parts)


def _names(stem: str, axes: int) -> list[str]:
    plain = [f"{stem}-idx{axes}-ubyte", f"{stem}.idx{axes}-ubyte"]
    return [*plain, *(f"{name}.gz" for name in plain)]


def _find(directory: Path, stem: str, axes: int) -> Path | None:
    return next((p for name in _names(stem, axes) if (p := directory / name).is_file()), None)


def _read_pair(
    directory: Path, part: str, path: Path, options: ReadOptions
) -> tuple[Samples, Tensor | None]:
    """Images and, where their file is there, labels of one part."""
    kind, images = _read_images(path, options)
    if kind != "image":
        raise ValueError(
            f"{path} must hold images [N, H, W], got vectors {list(images.shape)}; "
            f"save vectors as .npy and load them with npy:FILE"
        )
    labels_path = _find(directory, f"{part}-labels", 1)
    if labels_path is None:
        return images, None
    return images, to_labels(read_idx_file(labels_path), len(images), str(labels_path))


def _read_images(path: Path, options: ReadOptions) -> tuple[Kind, Samples]:
    with path.open("rb") as raw:
        stream = _plain(raw)
        dtype, shape = _header(stream, path)
        offset = raw.tell()
    if stream is not raw:
        options.without_stream(str(path), "unpack it with gunzip")
    elif options.streams(loaded_shape(shape, options)):
        _check_length(path, shape, dtype, path.stat().st_size - offset)
        return on_disk(path, offset, dtype, shape, options)
    kind, images = to_samples(read_idx_file(path), str(path))
    return kind, fit_square(images, options.image_size) if kind == "image" else images
