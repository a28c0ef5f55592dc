"""Many small images as one picture, every pixel of theirs a whole number of ours."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vaekern.evaluation._canvas import DPI, INK, MUTED, new_figure, title_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 72  # pixels a tile should have on the page, reached by repeating whole pixels
WIDEST = 1200  # pixels of tiles in a row
HIGHEST = 1600  # pixels of tiles in a column, where a figure has many rows
MARGIN = 24
GAP = 3
TITLE_HEIGHT = 46
TITLE_LINE = 21  # pixels that each further line of a title takes
HEAD_HEIGHT = 22
LABEL_WIDTH = 116
LETTER = 8.5  # pixels of width in a label
BREAK = 14  # between groups of columns


@dataclass(frozen=True)
class Row:
    """One row of tiles."""

    images: Tensor  # [n, C, H, W]
    label: str = ""
    space_above: int = 0


def zoom(images: Tensor) -> int:
    """How often each pixel is repeated in both directions."""
    return max(1, round(TILE / max(images.shape[-2:])))


def columns(images: Tensor, wanted: int) -> int:
    """How many tiles fit in a row, up to ``wanted``."""
    return max(1, min(wanted, WIDEST // (images.shape[-1] * zoom(images))))


def rows_that_fit(images: Tensor, wanted: int) -> int:
    """How many rows of tiles fit on a page, up to ``wanted``."""
    return max(1, min(wanted, HIGHEST // (images.shape[-2] * zoom(images))))


def tile_figure(
    rows: list[Row],
    *,
    title: str,
    note: str = "",
    heads: Sequence[str] = (),
    breaks: Collection[int] = (),
) -> Figure:
    """Rows of tiles under a title; labels stand to the left of their rows.

    ``heads`` stand above the columns; before the columns in ``breaks`` there is more space.
    """
    factor = zoom(rows[0].images)
    height, width = (side * factor for side in rows[0].images.shape[-2:])
    most = max(len(row.images) for row in rows)
    label_width = 0
    if any(row.label for row in rows):
        letters = max(len(line) for row in rows for line in row.label.split("\n"))
        label_width = max(LABEL_WIDTH, round(LETTER * letters) + GAP)
    starts = [i * (width + GAP) + BREAK * sum(b <= i for b in breaks) for i in range(most)]
    grid_width = starts[-1] + width
    page_width = max(2 * MARGIN + label_width + grid_width, 420)
    left = MARGIN + label_width
    if not label_width:
        left = (page_width - grid_width) // 2  # a narrow grid sits in the middle
    lines = title_lines(title, page_width - 2 * MARGIN)
    above = TITLE_HEIGHT + TITLE_LINE * (len(lines) - 1)
    top = above + (HEAD_HEIGHT if heads else 0)
    page = np.full(
        (
            top + sum(row.space_above + height + GAP for row in rows) - GAP + MARGIN,
            page_width,
            3,
        ),
        255,
        dtype=np.uint8,
    )
    labels: list[tuple[float, str]] = []
    for row in rows:
        top += row.space_above
        for column, pixels in enumerate(_pixels(row.images, factor)):
            start = left + starts[column]
            page[top : top + height, start : start + width] = pixels
        labels.append((top + height / 2, row.label))
        top += height + GAP

    figure = new_figure(page.shape[1] / DPI, page.shape[0] / DPI, automatic=False)
    # One image pixel per figure pixel: figimage does not resample at all.
    figure.figimage(page, origin="upper")
    total = page.shape[0]
    edge = MARGIN / page.shape[1]
    figure.text(
        edge, 1 - 16 / total, "\n".join(lines), ha="left", va="top", color=INK, fontsize=11,
        fontweight="bold",
    )  # fmt: skip
    if note:
        right = (left + grid_width) / page.shape[1]
        figure.text(right, 1 - 17 / total, note, ha="right", va="top", color=MUTED, fontsize=9)
    for start, head in zip(starts, heads, strict=False):
        middle = (left + start + width / 2) / page.shape[1]
        figure.text(
            middle, 1 - (above + HEAD_HEIGHT - 5) / total, head, ha="center", va="bottom",
            color=INK, fontsize=9,
        )  # fmt: skip
    for centre, label in labels:
        figure.text(edge, 1 - centre / total, label, ha="left", va="center", color=INK, fontsize=9)
    return figure


def _pixels(images: Tensor, factor: int) -> np.ndarray:
    """[n, H * factor, W * factor, 3]; one channel is grey, and pixels are never blended."""
    # What is not a number is drawn black: a diverged run still gets its picture.
    shown = torch.nan_to_num(images.detach().float().cpu(), nan=0.0).clamp(0, 1)
    shown = shown.expand(-1, 3, -1, -1) if shown.shape[1] == 1 else shown
    pixels = (shown * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)
