"""TensorBoard, where it is installed: the numbers of metrics.jsonl and the final pictures."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
# A record's place, which the others are drawn over.
PLACE = ("stage", "step")


@functools.cache  # an import that fails is tried again each time
def _writer_class() -> Any:
    """torch's SummaryWriter; None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    except Exception as error:  # packages that do not fit together, which are no reason to stop
        reason = " ".join(str(error).split())
        warnings.warn(
            f"tensorboard is installed but cannot be used ({reason}); the run goes on without it",
            stacklevel=2,
        )
        return None
    return SummaryWriter


class Board:
    """Writes RUN/tensorboard for ``tensorboard --logdir RUN``; without the package, nothing.

    The stages are two of TensorBoard's runs, so that their curves lie over one another, and tags
    are the keys of metrics.jsonl. What an earlier process wrote beyond the checkpoint, and this one
    trains again, is hidden.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path):
        self._folder = run / FOLDER
        self._writers: dict[str, Any] = {}

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records of metrics.jsonl, over the steps of their stage."""
        for record in records:
            writer = self._writer(f"stage{record['stage']}", record["step"])
            if writer is None:
                return
            for key, value in record.items():
                if key not in PLACE and isinstance(value, (int, float)):
                    writer.add_scalar(key, value, record["step"])

    def add_pictures(self, figures: Path) -> None:
        """Add every PNG file of a directory, by its name."""
        writer = self._writer("figures", 0)
        if writer is None:
            return
        import numpy as np
        from PIL import Image

        for path in sorted(figures.glob("*.png")):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image(path.stem, pixels, 0, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, name: str, step: int) -> Any:
        if name not in self._writers:
            make = _writer_class()
            if make is None:
                return None
            self._writers[name] = make(str(self._folder / name), purge_step=step)
        return self._writers[name]
