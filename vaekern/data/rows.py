"""Samples that stay on disk and are read when they are asked for."""

from __future__ import annotations

import math
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np
import torch
from torch import Tensor


class UnreadableSampleError(ValueError):
    """A sample on disk that is gone, damaged, not finite or outside its range."""


class Rows(ABC):
    """Samples [N, *sample_shape] on disk, where a tensor would not fit in memory.

    It has as much of a tensor's surface as training and evaluation use: the shape, ``len``, slices,
    rows by their numbers, and ``split``. Each gives a float32 tensor, newly read, equal to the
    last bit to the same rows of the tensor that a reader would have made of the whole set.

    A new kind is a subclass with :meth:`read`.

    Args:
        shape: [N, *sample_shape].
        workers: threads that are worth reading batches with: one where a batch is copied out of a
            file, more where it is decoded.
    """

    dtype = torch.float32

    def __init__(self, shape: Sequence[int], *, workers: int = 1):
        self.shape = torch.Size(shape)
        self.workers = workers

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """The samples with the numbers ``rows`` [n], in that order: [n, *sample_shape], float32.

        Callers take ``self[rows]``, which makes an error of this one an `UnreadableSampleError`.
        """

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes, that of the samples among them."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        try:
            return self.read(rows.cpu())
        except (ValueError, OSError) as error:
            raise UnreadableSampleError(str(error)) from error

    def split(self, size: int) -> Iterator[Tensor]:
        """All samples in order, ``size`` at a time."""
        return (self[rows] for rows in torch.arange(len(self)).split(size))

    def tensor_split(self, pieces: int) -> Iterator[Tensor]:
        """All samples in order, in pieces whose sizes differ by one at most."""
        return (self[rows] for rows in torch.arange(len(self)).tensor_split(pieces))

    def select(self, rows: Tensor) -> Rows:
        """Some of the samples; nothing is read."""
        return _Selected(self, rows)


class _Selected(Rows):
    def __init__(self, rows: Rows, chosen: Tensor):
        super().__init__((len(chosen), *rows.shape[1:]), workers=rows.workers)
        self._rows, self._chosen = rows, chosen

    def read(self, rows: Tensor) -> Tensor:
        return self._rows.read(self._chosen[rows])

    def select(self, rows: Tensor) -> Rows:
        return _Selected(self._rows, self._chosen[rows])


class FileRows(Rows):
    """Samples of one size, one after the other in a file.

    They are read, not mapped: a mapped page counts as this process's memory from its first use on,
    and a file that is cut short while it is mapped ends the process without a word.

    Args:
        file: a path, or a file that is open for reading; it is closed with the last reference.
        offset: bytes before the first sample.
        dtype: of the values.
        shape: [N, ...] as it is stored.
        prepare: [n, ...] as stored, and what to call it in an error -> [n, *sample_shape] float32.

    Example:
        >>> import tempfile
        >>> file = tempfile.TemporaryFile()
        >>> written = file.write(bytes(range(6)))
        >>> file.flush()
        >>> rows = FileRows(file, 0, np.dtype("u1"), (3, 2), lambda a, _: torch.from_numpy(a) / 2.0)
        >>> rows[torch.tensor([2, 0])]
        tensor([[2.0000, 2.5000],
                [0.0000, 0.5000]])
    """

    def __init__(
        self,
        file: str | Path | IO[bytes],
        offset: int,
        dtype: np.dtype,
        shape: Sequence[int],
        prepare: Callable[[np.ndarray, str], Tensor],
    ):
        self._file = Path(file).open("rb") if isinstance(file, str | Path) else file  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._offset, self._dtype, self._stored = offset, dtype, tuple(shape[1:])
        self._prepare = prepare
        self._bytes = math.prod(self._stored) * dtype.itemsize
        name = getattr(self._file, "name", None)
        self.name = name if isinstance(name, str) else "a temporary file"
        first = prepare(np.zeros((1, *self._stored), dtype), self.name)
        super().__init__((shape[0], *first.shape[1:]))

    def stored(self, rows: Tensor) -> np.ndarray:
        """The values as they are in the file."""
        found = np.empty((len(rows), *self._stored), self._dtype)
        whole = found.reshape(-1).view(np.uint8).data
        size, file = self._bytes, self._file.fileno()
        numbers = rows.tolist()
        if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1 and _ascend(rows):
            self._fill(file, whole, numbers[0])
            return found
        for i, row in enumerate(numbers):
            self._fill(file, whole[i * size : (i + 1) * size], row)
        return found

    def _fill(self, file: int, view: memoryview, row: int) -> None:
        done, place = 0, self._offset + row * self._bytes
        while done < len(view):  # one call reads 2 GB at most
            count = os.preadv(file, [view[done:]], place + done)
            if count == 0:
                raise ValueError(
                    f"{self.name} is truncated: it ends before sample {row + done // self._bytes}; "
                    "write or download it again"
                )
            done += count

    def read(self, rows: Tensor) -> Tensor:
        found = self.stored(rows)
        try:
            return self._prepare(found, self.name)
        except ValueError:
            for row, one in zip(rows.tolist(), found, strict=True):
                self._prepare(one[None], f"sample {row} of {self.name}")
            raise


def _ascend(rows: Tensor) -> bool:
    return bool((rows.diff() == 1).all())


class ByteRows(Rows):
    """Images in memory as bytes, a quarter of what they take as float32.

    Args:
        images: [N, C, H, W] uint8.
        change: of batches [n, C, H, W] in [0, 1], such as a resize.

    Example:
        >>> ByteRows(torch.arange(2, dtype=torch.uint8).mul(51).view(2, 1, 1, 1))[:].flatten()
        tensor([0.0000, 0.2000])
    """

    def __init__(self, images: Tensor, change: Callable[[Tensor], Tensor] = lambda images: images):
        self._images, self._change = images, change
        super().__init__((len(images), *change(scaled(images[:1])).shape[1:]))

    def read(self, rows: Tensor) -> Tensor:
        return self._change(scaled(self._images[rows]))


def scaled(images: Tensor) -> Tensor:
    """uint8 levels as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


class Decoded(Rows):
    """Samples that each are a file of their own.

    Args:
        paths: N files.
        decode: a file -> [1, *sample_shape], float32. It is called from several threads.
    """

    def __init__(self, paths: Sequence[Path], decode: Callable[[Path], Tensor]):
        self._paths, self._decode = list(paths), decode
        shape = (len(self._paths), *decode(self._paths[0]).shape[1:])
        super().__init__(shape, workers=max(1, min(4, os.cpu_count() or 1)))

    def read(self, rows: Tensor) -> Tensor:
        found = torch.empty(len(rows), *self.shape[1:])
        for sample, row in zip(found, rows.tolist(), strict=True):
            decoded = self._decode(self._paths[row])
            if decoded.shape[1:] != self.shape[1:]:
                raise ValueError(
                    f"{self._paths[row]} must have shape {list(self.shape[1:])} like the first "
                    f"image, got {list(decoded.shape[1:])}; pass image_size to crop and resize them"
                )
            sample.copy_(decoded[0])
        return found


#: What a data set's samples are held in.
Samples = Tensor | Rows


@overload
def take(samples: Tensor, rows: Tensor) -> Tensor: ...
@overload
def take(samples: Rows, rows: Tensor) -> Rows: ...
@overload
def take(samples: Samples, rows: Tensor) -> Samples: ...
def take(samples: Samples, rows: Tensor) -> Samples:
    """Some of the samples, held as they were: in memory, or on disk with nothing read."""
    return samples.select(rows) if isinstance(samples, Rows) else samples[rows]


def in_memory(samples: Samples, most: int) -> Tensor:
    """The samples as a tensor; of those on disk, ``most`` that lie evenly among all.

    Example:
        >>> in_memory(torch.arange(3.0), 2)
        tensor([0., 1., 2.])
    """
    return samples[spread(len(samples), most)] if isinstance(samples, Rows) else samples


def at_most(samples: Samples, most: int) -> Samples:
    """As :func:`in_memory`, but what is on disk stays there."""
    return samples.select(spread(len(samples), most)) if isinstance(samples, Rows) else samples


def spread(count: int, most: int) -> Tensor:
    """Rows of ``count``, all of them or ``most`` at even distances.

    Example:
        >>> spread(10, 4).tolist(), spread(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    return torch.arange(min(count, most)) * count // max(1, min(count, most))
