"""Writing that is never seen half done."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from vaekern.storage.errors import RunError

PREFIX = ".tmp-"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the file at `path` in one step: after a crash it holds the old content or the new.

    Raises:
        RunError: the disk is full or the file cannot be written; what was there before is kept.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the content
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(_explain(error, path, len(data))) from error
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Add lines to a file.

    Raises:
        RunError: the disk is full or the file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RunError(_explain(error, path, len(text))) from error


def _explain(error: OSError, path: Path, size: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left on the disk to write {path} ({max(size / 1e6, 0.1):.1f} MB); what was "
            "saved before is kept: free some space and continue with --resume"
        )
    return f"cannot write {path} ({error.strerror}); give a --run directory that can be written"
