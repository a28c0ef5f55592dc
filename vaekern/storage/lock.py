"""One process at a time in a directory."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from vaekern.storage.errors import RunError

try:
    import fcntl
except ImportError:  # Windows has none: there nothing is locked
    fcntl = None  # type: ignore[assignment]


class Lock:
    """A lock that ends with its process, however that ends.

    The operating system holds it, not the file: what a killed process leaves behind is a file that
    nobody has locked, and the next process takes it over. A file system without locks has none.

    Args:
        path: the lock file, in a directory that exists by the time of `acquire`.
        what: what is locked, as the message names it.
        flag: of the command, that chooses another directory.
    """

    def __init__(self, path: Path, what: str, flag: str = "--run"):
        self.path = path
        self.what = what
        self.flag = flag
        self._file: int | None = None
        self._process = os.getpid()

    def acquire(self) -> None:
        """Take the lock; nothing happens where it is held by this object already.

        Raises:
            RunError: another process, or another object of this one, holds it.
        """
        if self._file is not None or fcntl is None:
            return
        while True:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise RunError(
                    f"cannot write {self.path} ({error.strerror}); "
                    f"give a {self.flag} directory that can be written"
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    self._file = file  # no locks on this file system
                    return
                holder = os.read(file, 200).decode(errors="replace").strip()
                os.close(file)
                raise RunError(
                    f"{self.what} is in use by {holder or 'another process'}; wait until that ends "
                    f"or stop it, or choose another directory with {self.flag} DIR"
                ) from None
            if self._is_current(file):
                break
            os.close(file)  # the holder before removed this file just after it was opened here
        self._file = file
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def release(self) -> None:
        """Give the lock back, if it is held, and remove its file."""
        if self._file is None:
            return
        if self._is_current(self._file):
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __del__(self) -> None:
        if self._process == os.getpid():  # a fork's copy ends nothing
            self.release()
