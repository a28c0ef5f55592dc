"""The look that all figures share, and how they reach the disk."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaekern._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Distinct in greyscale and to colour-blind readers.
BLUE, ORANGE, GREEN = "#2b6cb0", "#dd7a1f", "#2f8f6b"
INK, MUTED, FAINT = "#1f2933", "#7b8794", "#d9dee4"
# For classes; none of them is grey.
CLASSES = (
    BLUE, ORANGE, GREEN, "#c2334d", "#7e57b5", "#8c5a3c", "#d76fb0", "#b3a21b", "#3fb3c4", INK,
)  # fmt: skip
DPI = 120
TITLE_LETTER = 10.5  # pixels of width in a title


def title_lines(title: str, width: float) -> list[str]:
    """A title as lines that fit into so many pixels."""
    letters = max(1, int(width / TITLE_LETTER))
    return textwrap.wrap(title, letters, break_on_hyphens=False) or [""]


def new_figure(width: float, height: float, *, automatic: bool = True) -> Figure:
    """A white figure of that many inches, outside pyplot's global list and on no screen.

    ``automatic`` lets matplotlib place axes and labels so that nothing overlaps.
    """
    figure_module = require("matplotlib.figure", "drawing figures")
    backend = require("matplotlib.backends.backend_agg", "drawing figures")
    layout = require("matplotlib.layout_engine", "drawing figures").ConstrainedLayoutEngine(
        w_pad=0.14,
        h_pad=0.14,  # inches of white at the edges and between panels
    )
    figure: Figure = figure_module.Figure(
        figsize=(width, height),
        dpi=DPI,
        facecolor="white",
        layout=layout if automatic else None,
    )
    backend.FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Titles, axis labels and a quiet frame."""
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=8)
    axes.set_xlabel(x, color=INK, fontsize=10)
    axes.set_ylabel(y, color=INK, fontsize=10)
    axes.tick_params(colors=INK, labelsize=9, length=3, which="both")
    axes.tick_params(which="minor", labelsize=8, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.grid(color=FAINT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def whole_numbers(axis: Axis) -> None:
    """Ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def numbered(axes: Axes, count: int) -> None:
    """An x axis for the places 1 to ``count``."""
    axes.set_xlim(0.2, count + 0.8)
    whole_numbers(axes.xaxis)


def legend(axes: Axes, **options: Any) -> None:
    """A legend without a box."""
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.6, **options)


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG in one atomic step, so that a reader never meets half a picture.

    Raises:
        RunError: the disk is full or the file cannot be written.
    """
    from vaekern.storage.files import write_atomically

    content = io.BytesIO()
    # The figure's own size in pixels: no trimming, so that pixels of tiles stay whole.
    figure.savefig(content, format="png", dpi=DPI)
    write_atomically(Path(path), content.getvalue())
