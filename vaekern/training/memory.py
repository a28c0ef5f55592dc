"""Out of memory, said in one sentence."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vaekern.storage.errors import RunError

# What torch's allocators and the libraries below it say in a plain RuntimeError.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


@contextmanager
def out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """Turn any library's way of running out of memory into a `RunError` with what `explain` says.

    Raises:
        RunError: there was not enough memory. Everything else passes through.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise RunError(explain()) from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return not isinstance(error, RunError) and any(sign in str(error) for sign in SIGNS)
