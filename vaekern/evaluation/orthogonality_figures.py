"""Pictures of how far a decoder's latent axes are from orthogonal, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vaekern.evaluation._canvas import BLUE, FAINT, MUTED, dress, legend, new_figure, numbered, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40


def orthogonality_figure(
    full: Tensor,  # [B]
    path: str | Path,
    *,
    active: Tensor | None = None,  # [B]
    random: Tensor | None = None,  # [R]
    random_active: Tensor | None = None,  # [R]
) -> None:
    """Distances to orthogonality of the samples beside those of random rotations.

    Args:
        full: [B] distances of all d dimensions.
        path: the PNG file.
        active: [B] distances of the k active dimensions; a panel of its own.
        random: [R] distances of random rotations of d dimensions, to compare ``full`` with.
        random_active: [R] distances of random rotations of k dimensions.

    Raises:
        ValueError: no distances, or values that are not finite.
        RunError: the file cannot be written.

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    equation 29 and table 2.
    """
    panels = [("all dimensions", full, random)]
    if active is not None:
        panels.append(("active dimensions", active, random_active))
    arrays = {
        name: (_distances("full" if i == 0 else "active", model), _baseline(baseline))
        for i, (name, model, baseline) in enumerate(panels)
    }
    everything = np.concatenate([a for pair in arrays.values() for a in pair])
    edges = np.linspace(0, float(everything.max()) * 1.03 or 1, BINS + 1)
    figure = new_figure(7.2, 0.6 + 2.9 * len(panels))
    for i, (name, (model, baseline)) in enumerate(arrays.items()):
        axes = figure.add_subplot(len(panels), 1, i + 1)
        if len(baseline):
            _percent(axes, baseline, edges, MUTED, "random rotations", filled=FAINT)
        _percent(axes, model, edges, BLUE, "decoder")
        axes.set_xlim(edges[0], edges[-1])
        last = i == len(panels) - 1
        dress(
            axes,
            title=f"Distance to orthogonality, {name}",
            x="distance to the nearest signed permutation" if last else "",
            y="percent",
        )
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
        legend(axes, loc="upper left", ncols=2)
    save(figure, path)


def _percent(
    axes: Axes,
    values: np.ndarray,
    edges: np.ndarray,
    colour: str,
    label: str,
    *,
    filled: str | None = None,
) -> None:
    """A histogram in percent, and the mean as a line down to the axis."""
    share = 100 * np.histogram(values, edges)[0] / len(values)
    axes.stairs(
        share, edges, fill=filled is not None, linewidth=1.4, edgecolor=colour,
        facecolor=filled or "none", label=f"{label}, mean {values.mean():.3g}",
    )  # fmt: skip
    axes.vlines(
        float(values.mean()), 0, float(share.max()), color=colour, linewidth=1.2, linestyle="--"
    )


def _distances(name: str, values: Tensor) -> np.ndarray:
    if values.ndim != 1 or not len(values) or not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"{name} must be finite distances [B], at least one, got {list(values.shape)}; pass a "
            "field of distance_to_orthogonality"
        )
    array: np.ndarray = values.detach().double().cpu().numpy()
    return array


def _baseline(values: Tensor | None) -> np.ndarray:
    return np.empty(0) if values is None else _distances("random", values)


def singular_value_gaps_figure(
    gaps: Tensor,  # [B, d - 1]
    path: str | Path,
) -> None:
    """Relative gaps between neighbouring singular values of the decoder's Jacobian.

    Where a gap is small, the two singular vectors are hardly determined, and their distance to
    orthogonality says little.

    Args:
        gaps: [B, d - 1] from ``distance_to_orthogonality``, largest singular values first.
        path: the PNG file.

    Raises:
        ValueError: a shape other than [B, d - 1], or values that are not finite.
        RunError: the file cannot be written.
    """
    if gaps.ndim != 2 or not gaps.numel() or not bool(torch.isfinite(gaps).all()):
        raise ValueError(
            f"gaps must be finite [B, d - 1], got {list(gaps.shape)}; pass a field of "
            "distance_to_orthogonality"
        )
    low, middle, high = np.quantile(gaps.detach().double().cpu().numpy(), [0.05, 0.5, 0.95], axis=0)
    place = np.arange(1, gaps.shape[1] + 1)
    width = float(np.clip(200 / len(place), 0.7, 3))
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    axes.vlines(
        place, low, high, color=BLUE, linewidth=width, alpha=0.35, label="5 to 95 % of samples"
    )
    axes.scatter(place, middle, s=float(np.clip(1500 / len(place), 8, 42)), color=BLUE, zorder=3,
                 label="median")  # fmt: skip
    axes.set_ylim(0, float(high.max()) * 1.15 or 1)
    dress(
        axes,
        title="Relative gaps between singular values",
        x="gap after singular value",
        y="relative gap",
    )
    numbered(axes, len(place))
    legend(axes, loc="best")
    save(figure, path)
