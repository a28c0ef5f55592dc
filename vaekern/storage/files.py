"""Writing that is never seen half done."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from vaekern.storage.errors import RunError

PREFIX = ".tmp-"


def write_atomically(path: Path, content: bytes | str, *, previous: Path | None = None) -> None:
    """Replace the file at `path` in one step: after a crash it holds the old content or the new.

    Args:
        path: the file.
        content: all of it.
        previous: where the old content stays, if it is to stay; what was there is replaced.

    Raises:
        RunError: the disk is full or the file cannot be written; what was there before is kept.
    """
    data = _encoded(content) if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the content
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(_explain(error, path, len(data))) from error
    finally:
        temporary.unlink(missing_ok=True)


def _encoded(text: str) -> bytes:
    """UTF-8; what a file's name has that is none of it (Linux takes any bytes) as \\udcff."""
    return text.encode(errors="backslashreplace")


def append(path: Path, text: str) -> None:
    """Add lines to a file: all of them, or none.

    Raises:
        RunError: the disk is full or the file cannot be written; its old content is kept.
    """
    data = _encoded(text)
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # checkpoints count on these lines
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, before)
        raise RunError(_explain(error, path, len(data))) from error


def remove_temporaries(directory: Path) -> None:
    """Remove what writers that were killed have left in a directory that no other writes to."""
    for each in directory.glob(f"{PREFIX}*"):
        each.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{PREFIX}{secrets.token_hex(4)}-{path.name}")


def _keep(path: Path, previous: Path) -> None:
    """Let `previous` be what `path` is; `path` stays as well, where the file system can do that."""
    temporary = _temporary(previous)
    try:
        os.link(path, temporary)
        os.replace(temporary, previous)
    except OSError:  # a file system without hard links
        os.replace(path, previous)
    finally:
        # Renaming one of two names of a file to the other leaves both.
        temporary.unlink(missing_ok=True)


def _explain(error: OSError, path: Path, size: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left on the disk to write {path} ({max(size / 1e6, 0.1):.1f} MB); what was "
            "saved before is kept: free some space and continue with --resume"
        )
    return f"cannot write {path} ({error.strerror}); give a --run directory that can be written"
