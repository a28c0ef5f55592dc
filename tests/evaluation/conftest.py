"""Pictures read back: as matplotlib figures before they are written, and as pixels after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@dataclass(frozen=True)
class Page:
    """A picture's pixels."""

    pixels: np.ndarray  # [H, W, 3] uint8

    def find(self, image: torch.Tensor, factor: int) -> list[tuple[int, int]]:
        """Corners (row, column) at which [C, H, W] in [0, 1] stands, pixel for pixel."""
        scaled = (image * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
        tile = scaled.repeat(factor, 0).repeat(factor, 1)
        first = (self.pixels[..., 0] == tile[0, 0, 0]) & (self.pixels[..., 1] == tile[0, 0, 1])
        height, width = tile.shape[:2]
        return [
            (int(r), int(c))
            for r, c in np.argwhere(first)
            if np.array_equal(self.pixels[r : r + height, c : c + width], tile)
        ]


@pytest.fixture
def read_page() -> Callable[[Path], Page]:
    image = pytest.importorskip("PIL.Image")
    return lambda path: Page(np.asarray(image.open(path).convert("RGB")))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, for a look at their axes."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    seen: list[Any] = []
    original = figure.savefig

    def keep(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(figure, "savefig", keep)
    return seen


@pytest.fixture
def unlike() -> Callable[..., torch.Tensor]:
    """Images of 256 levels, no two alike."""

    def make(count: int, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(1, 255, (count, *shape), generator=generator).float() / 255

    return make
