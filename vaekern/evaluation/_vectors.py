"""Pictures of vectors: a scatter plot of two dimensions, one panel per dimension of more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vaekern.evaluation._canvas import (
    BLUE,
    CLASSES,
    DPI,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    dress,
    legend,
    new_figure,
    title_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 12
BINS = 40


def sample_figure(samples: Tensor, title: str, data: Tensor | None) -> Figure:
    """Samples, over the data where it is given."""
    drawn = _array(samples)
    real = None if data is None else _array(data)
    if drawn.shape[1] == 2:
        figure = new_figure(6, 6)
        axes = figure.add_subplot()
        if real is not None:
            axes.scatter(*real.T, **dots(len(real)), color=MUTED, label="data")
        axes.scatter(*drawn.T, **dots(len(drawn)), color=BLUE, label="samples")
        axes.set_aspect("equal", adjustable="datalim")
        lines = title_lines(title, 5 * DPI)  # the axes are narrower than the figure
        dress(axes, title="\n".join(lines), x="dimension 1", y="dimension 2")
        if real is not None:
            legend(axes, loc="upper right")
        return figure
    figure, panels = _panels(drawn.shape[1], title)
    for i, axes in enumerate(panels):
        column = drawn[:, i][np.isfinite(drawn[:, i])]
        behind = column[:0] if real is None else real[:, i]
        both = np.concatenate([column, behind])
        if not len(both):
            continue  # a diverged run: nothing to count
        # the same bins for both, so that heights compare
        edges = np.histogram_bin_edges(both, bins=BINS).tolist()
        if len(behind):
            axes.hist(behind, edges, density=True, color=FAINT, edgecolor="none", label="data")
        axes.hist(
            column, edges, density=True, histtype="step", color=BLUE, linewidth=1.4, label="samples"
        )
        dress(axes, x=f"dimension {i + 1}", y="density" if _leftmost(axes) else "")
    if real is not None:
        legend(panels[0], loc="upper right")
    return figure


def reconstruction_figure(originals: Tensor, reconstructions: Tensor, title: str) -> Figure:
    """Two dimensions: each original joined to its reconstruction. Else one against the other."""
    real, drawn = _array(originals), _array(reconstructions)
    if real.shape[1] == 2:
        from matplotlib.collections import LineCollection

        figure = new_figure(6, 6)
        axes = figure.add_subplot()
        pairs = list(np.stack([real, drawn], 1))
        axes.add_collection(LineCollection(pairs, colors=MUTED, linewidths=0.6, zorder=1))
        axes.scatter(*real.T, **dots(len(real)), color=INK, label="original", zorder=2)
        axes.scatter(*drawn.T, **dots(len(drawn)), color=ORANGE, label="reconstruction", zorder=3)
        axes.set_aspect("equal", adjustable="datalim")
        dress(axes, title=title, x="dimension 1", y="dimension 2")
        legend(axes, loc="upper right")
        return figure
    figure, panels = _panels(real.shape[1], title)
    for i, axes in enumerate(panels):
        axes.axline((float(real[:, i].mean()),) * 2, slope=1, color=MUTED, linewidth=0.8)
        axes.scatter(real[:, i], drawn[:, i], **dots(len(real)), color=BLUE)
        dress(axes, title=f"dimension {i + 1}", x="original")
        if _leftmost(axes):
            axes.set_ylabel("reconstruction", color=INK, fontsize=10)
    return figure


def traversal_figure(samples: Tensor, values: Tensor, names: Sequence[str], title: str) -> Figure:
    """[R, C, D] decoded at C values of R latent dimensions: a panel for each, D curves in it."""
    drawn, place = _array(samples), _array(values)
    dims = drawn.shape[2]
    named = dims <= len(CLASSES)
    figure, panels = _panels(len(drawn), title)
    # one range for all, so that a latent dimension without effect shows flat lines
    inside = drawn[np.isfinite(drawn)]
    low, high = (inside.min(), inside.max()) if len(inside) else (0, 1)
    margin = 0.06 * (high - low) or 0.5
    for axes, name, curves in zip(panels, names, drawn, strict=True):
        for i, curve in enumerate(curves.T):
            colour = CLASSES[i] if named else BLUE
            width, alpha = (1.4, 1.0) if named else (0.7, 0.5)
            axes.plot(place, curve, color=colour, label=str(i + 1), linewidth=width, alpha=alpha)
        axes.set_ylim(low - margin, high + margin)
        dress(axes, title=name, x="z", y="decoded" if _leftmost(axes) else "")
    if named:
        handles = panels[0].lines
        figure.legend(
            handles=handles, title="data dimension", loc="outside right upper", frameon=False,
            fontsize=9, title_fontsize=9, labelcolor=INK, handlelength=1.6,
        )  # fmt: skip
    return figure


def _panels(dims: int, title: str) -> tuple[Figure, list[Axes]]:
    shown = min(dims, PANELS)
    columns = min(4, shown)
    rows = math.ceil(shown / columns)
    if shown < dims:
        title = f"{title} (the first {shown} of {dims} dimensions)"
    width = max(5.0, 3.0 * columns)
    lines = title_lines(title, 0.98 * width * DPI)
    figure = new_figure(width, 2.6 * rows + 0.3 + 0.2 * len(lines))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(shown)]


def _leftmost(axes: Axes) -> bool:
    spec = axes.get_subplotspec()
    return spec is not None and spec.is_first_col()


def dots(count: int) -> dict[str, Any]:
    """Many points are drawn small and pale, so that density shows."""
    return {
        "s": float(np.clip(4000 / max(count, 1), 3, 18)),
        "alpha": float(np.clip(600 / max(count, 1), 0.25, 0.9)),
        "linewidth": 0,
    }


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().float().cpu().numpy()
    return array
