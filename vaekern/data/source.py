"""What a reader is given."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Samples that would take more than this share of the machine's memory stay on disk. While they are
# split, resized and copied to a device there are up to three copies of them.
SHARE_OF_MEMORY = 0.25


@dataclass(frozen=True)
class ReadOptions:
    """The options of :func:`vaekern.data.load`, already validated."""

    image_size: int | None
    test_fraction: float
    seed: int
    stream: bool | None = None  # None leaves it to the size

    def streams(self, shape: Sequence[int]) -> bool:
        """Whether samples [N, *sample_shape] stay on disk, to be read batch by batch."""
        return self.too_large(4 * math.prod(shape)) if self.stream is None else self.stream

    def too_large(self, size: int) -> bool:
        """Whether so many bytes are more than samples may take of the memory."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return size > SHARE_OF_MEMORY * memory

    def without_stream(self, source: str, remedy: str) -> None:
        """Refuse to stream what can only be read whole."""
        if self.stream:
            raise ValueError(
                f"stream must be false or left out for {source}, got true, which cannot be read in "
                f"parts; {remedy}"
            )

    def without_image_size(self, source: str) -> None:
        """Refuse ``image_size`` for data that is not images."""
        if self.image_size is not None:
            raise ValueError(
                f"image_size={self.image_size} applies to images, but {source} holds vectors; "
                f"leave image_size out"
            )


def existing(argument: str, *, directory: bool) -> Path:
    """The path a spec names, which must exist and be a directory or a file."""
    path = Path(argument).expanduser()
    wanted = "a directory" if directory else "a file"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the path of {wanted}")
    if path.is_dir() != directory:
        other = "a file" if directory else "a directory"
        raise ValueError(f"{path} is {other}; give the path of {wanted}")
    return path
