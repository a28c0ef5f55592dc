"""Arrays saved by numpy: .npy and .npz. Nothing in them is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vaekern.data.arrays import loaded_shape, on_disk, to_labels, to_samples
from vaekern.data.dataset import Dataset, Kind, split_dataset
from vaekern.data.resize import fit_square
from vaekern.data.rows import Samples
from vaekern.data.source import ReadOptions, existing

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK"
# numpy's words
OBJECTS = ("Object arrays", "Python objects")


class Names(NamedTuple):
    """Names of the arrays in an .npz file; all but the first may be absent from the file."""

    train: str
    train_labels: str
    test: str
    test_labels: str


# One row per convention, tried in order.
CONVENTIONS = (
    Names("x_train", "y_train", "x_test", "y_test"),
    Names("train_images", "train_labels", "test_images", "test_labels"),
    Names("train", "train_labels", "test", "test_labels"),
    Names("x", "y", "x_test", "y_test"),
    Names("images", "labels", "test_images", "test_labels"),
    Names("data", "labels", "test_data", "test_labels"),
    Names("imgs", "labels", "test_imgs", "test_labels"),
)


def read_npy(argument: str, options: ReadOptions) -> Dataset:
    """One array, or an .npz with samples and perhaps labels and a test set.

    Where there is no test set, ``test_fraction`` of the samples becomes one.
    """
    path = existing(argument, directory=False)
    arrays = read_arrays(path, lambda names: _roles(names, path))
    kind, train, train_labels = _part(arrays, "train", "train_labels", path, options)
    if "test" not in arrays:
        return split_dataset(
            path.stem,
            kind,
            train,
            train_labels,
            test_fraction=options.test_fraction,
            seed=options.seed,
            source=str(path),
        )
    test_kind, test, test_labels = _part(arrays, "test", "test_labels", path, options)
    if test_kind != kind:
        raise ValueError(
            f"{path} holds {kind}s to train on and {test_kind}s to test on; "
            f"save both with the same axes"
        )
    return Dataset(
        name=path.stem,
        kind=kind,
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        value_range=(0.0, 1.0) if kind == "image" else None,
    )


class Stored(NamedTuple):
    """An array, and what to call it in an error."""

    array: np.ndarray
    source: str


def _part(
    arrays: dict[str, Stored], samples: str, labels: str, path: Path, options: ReadOptions
) -> tuple[Kind, Samples, Tensor | None]:
    array, source = arrays[samples]
    streamed = isinstance(array, np.memmap) and array.flags.c_contiguous
    if streamed and options.streams(loaded_shape(array.shape, options)):
        assert isinstance(array, np.memmap)
        return *on_disk(path, array.offset, array.dtype, array.shape, options), None
    options.without_stream(source, "save the samples alone, with numpy.save, in C order")
    kind, values = to_samples(array, source)
    if kind == "image":
        values = fit_square(values, options.image_size)
    else:
        options.without_image_size(source)
    if labels not in arrays:
        return kind, values, None
    return kind, values, to_labels(arrays[labels].array, len(values), arrays[labels].source)


def read_arrays(path: Path, roles: Callable[[list[str]], dict[str, str]]) -> dict[str, Stored]:
    """The arrays of a file by the role they play.

    Args:
        path: a .npy file, whose array is mapped and has the role "train"; or an .npz.
        roles: the names in an .npz -> {role: name}; others are not read.

    Raises:
        ValueError: a damaged file, one of another kind, or one that only pickle can read.
    """
    with path.open("rb") as file:
        magic = file.read(len(NPY_MAGIC))
    try:
        if magic == NPY_MAGIC:
            # mapping checks the announced size against the file's before anything is allocated
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            _check_end(mapped, path)
            return {"train": Stored(mapped, str(path))}
        if magic[: len(ZIP_MAGIC)] == ZIP_MAGIC:
            # opened here, because numpy leaves the file open when the archive is damaged
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                chosen = roles(list(archive.files))
                return {role: _array(archive, name, path) for role, name in chosen.items()}
    except UnfitError:
        raise
    except Exception as error:  # numpy's and zipfile's parsers have a dozen kinds of them
        if isinstance(error, PermissionError):
            raise
        if isinstance(error, ValueError) and any(words in str(error) for words in OBJECTS):
            raise ValueError(
                f"{path} holds an object array, which only pickle can read, and pickled data may "
                f"run code; save it as a plain array of numbers, for example with "
                f"array.astype('float32')"
            ) from None
        raise ValueError(_damaged(path, error)) from None
    raise ValueError(
        f"{path} is not a .npy or .npz file (it starts with {magic.hex(' ') or 'nothing'}); "
        f"write it with numpy.save or numpy.savez"
    )


def _array(archive: Mapping[str, np.ndarray], name: str, path: Path) -> Stored:
    found = archive[name]
    if not isinstance(found, np.ndarray):  # numpy gives the bytes of what is no .npy
        raise UnfitError(
            f"{name} in {path} is not an array; write the file with numpy.savez, or give the data "
            f"that it holds"
        )
    return Stored(found, f"{name} of {path}")


def _check_end(mapped: np.ndarray, path: Path) -> None:
    """Refuse a file that goes on after its array."""
    offset = getattr(mapped, "offset", None)
    more = 0 if offset is None else path.stat().st_size - offset - mapped.nbytes
    if more > 0:
        raise UnfitError(
            f"{path} must end with its array {list(mapped.shape)}, but goes on for {more} bytes; "
            f"save the samples as one array"
        )


class UnfitError(ValueError):
    """A file that is whole, and not what is wanted."""


def _roles(names: list[str], path: Path) -> dict[str, str]:
    if len(names) == 1:
        return {"train": names[0]}
    for convention in CONVENTIONS:
        if convention.train in names:
            return {r: n for r, n in convention._asdict().items() if n in names}
    known = ", ".join(dict.fromkeys(convention.train for convention in CONVENTIONS))
    raise UnfitError(
        f"{path} holds arrays named {', '.join(sorted(names)) or 'nothing at all'}; "
        f"name the samples one of {known}, or save one array only"
    )


def _damaged(path: Path, error: BaseException) -> str:
    size = path.stat().st_size
    reason = str(error).rstrip(".") or type(error).__name__
    return (
        f"{path} is truncated or damaged ({size} bytes found; {reason}); write or download it again"
    )
