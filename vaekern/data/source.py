"""What a reader is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReadOptions:
    """The options of :func:`vaekern.data.load`, already validated."""

    image_size: int | None
    test_fraction: float
    seed: int

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
