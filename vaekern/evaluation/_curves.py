"""The panels of the training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaekern.evaluation._canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    dress,
    legend,
    new_figure,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

SMOOTH_ABOVE = 300  # records; longer curves are drawn as a running mean over the pale original
SCHEDULES = (
    ("lr", "learning rate", INK),
    ("beta", "beta", ORANGE),
    ("capacity", "capacity in nats", BLUE),
)
TERMS = (("loss", "loss", INK), ("reconstruction", "reconstruction", BLUE), ("kl", "KL", ORANGE))


def curves_figure(records: Sequence[Record], stages: Sequence[int]) -> Figure:
    """One column per stage: loss terms, sigma; active units and schedules where there are any."""
    of_stage = {stage: [r for r in records if stage_of(r) == stage] for stage in stages}
    with_units = any(_has(part, "active_units") for part in of_stage.values())
    with_schedules = any(_moving(part) for part in of_stage.values())
    heights = [1.25, 1.0] + [0.7] * with_units + [0.7] * with_schedules
    figure = new_figure(1.2 + 5.0 * len(stages), 2.5 * sum(heights) + 0.4)
    grid = figure.add_gridspec(len(heights), len(stages), height_ratios=heights)
    for column, stage in enumerate(stages):
        part = of_stage[stage]
        key = "epoch" if _has(part, "epoch") else "step"
        panels = [figure.add_subplot(grid[row, column]) for row in range(len(heights))]
        first = column == 0
        _draw_terms(panels[0], part, key, f"Stage {stage}: loss terms", first)
        _draw_sigma(panels[1], part, key, f"Stage {stage}: decoder sigma", first)
        if with_units:
            _draw_units(panels[2], part, key, f"Stage {stage}: active latent dimensions", first)
        if with_schedules:
            _draw_schedules(panels[-1], part, key, f"Stage {stage}: schedules", first)
        for axes in panels:
            axes.margins(x=0.01)
        panels[-1].set_xlabel(key, color=INK, fontsize=10)
    return figure


def stage_of(record: Record) -> int:
    """1 where a record does not say."""
    return int(record.get("stage", 1))


def _draw_terms(axes: Axes, records: Sequence[Record], key: str, title: str, first: bool) -> None:
    dims = _dims(records)
    levels = []
    for name, label, colour in TERMS:
        x, y = _series(records, name, key)
        if y.size:
            y = y / (dims or 1)
            _curve(axes, x, y, colour, label)
            levels.append(y)
    x, y = _series(records, "validation_loss", key)
    if y.size:
        levels.append(y / (dims or 1))
        _curve(axes, x, levels[-1], MUTED, "validation", dashed=True)
    low, high = _visible_range(levels)
    axes.set_ylim(low, high)
    unit = next((str(r["unit"]) for r in records if "unit" in r), "nats")
    unit += " per sample" if dims is None else " per dimension"
    dress(axes, title=title, y=unit if first else "")
    legend(axes, loc="upper right", ncols=len(levels))


def _draw_sigma(axes: Axes, records: Sequence[Record], key: str, title: str, first: bool) -> None:
    axes.set_yscale("log")
    dims = _dims(records)
    x, y = _series(records, "mse", key)
    x, y = x[y > 0], y[y > 0]
    if y.size and dims:
        _curve(axes, x, np.sqrt(y / dims), MUTED, "root mean squared error", dashed=True)
    x, y = _series(records, "sigma", key)
    x, y = x[y > 0], y[y > 0]
    if y.size:
        _curve(axes, x, y, GREEN, "sigma")
    dress(axes, title=title, y="sigma (log scale)" if first else "")
    _plain_log_labels(axes)
    if axes.lines:
        legend(axes, loc="upper right")


def _draw_units(axes: Axes, records: Sequence[Record], key: str, title: str, first: bool) -> None:
    x, y = _series(records, "active_units", key)
    if y.size:
        axes.step(x, y, where="post", color=BLUE, linewidth=1.5)
        axes.set_ylim(0, max(float(y.max()) * 1.15, 1))
    dress(axes, title=title, y="dimensions" if first else "")
    whole_numbers(axes.yaxis)


def _moving(records: Sequence[Record]) -> list[str]:
    """The schedules that are not constant."""
    return [name for name, _, _ in SCHEDULES if len(set(_series(records, name, "epoch")[1])) > 1]


def _draw_schedules(
    axes: Axes, records: Sequence[Record], key: str, title: str, first: bool
) -> None:
    moving = _moving(records)
    for name, label, colour in SCHEDULES:
        if name in moving:
            x, y = _series(records, name, key)
            label = f"{label} (1 is {y.max():.3g})"
            axes.plot(x, y / y.max(), color=colour, linewidth=1.5, label=label)
    axes.set_ylim(0, 1.45)  # room for the legend above the curves
    dress(axes, title=title, y="of its largest value" if first else "")
    if axes.lines:
        legend(axes, loc="upper right", ncols=2)


def _curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str, *, dashed: bool = False
) -> None:
    style = "--" if dashed else "-"
    if len(y) > SMOOTH_ABOVE:
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.25)
        width = len(y) // 100
        # the mean over what exists at the ends, where a full window does not fit
        weights = np.convolve(np.ones_like(y), np.ones(width), mode="same")
        y = np.convolve(y, np.ones(width), mode="same") / weights
    marker = "o" if len(y) == 1 else None
    axes.plot(x, y, style, color=colour, linewidth=1.5, label=label, marker=marker, markersize=4)


def _visible_range(levels: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits that let the first, steep steps leave the picture and keep all that comes after."""
    after = [y[len(y) // 20 :] for y in levels]
    low, high = min(float(y.min()) for y in after), max(float(y.max()) for y in after)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + 4 * margin  # room for the legend above the curves


def _plain_log_labels(axes: Axes) -> None:
    """0.05 instead of 5 x 10^-2, and labels between powers of ten where the range is short."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = axes.get_ylim()
    low, high = low / 1.1, high * 1.35  # room for the legend
    axes.set_ylim(low, high)

    def plain(value: float, _: object = None) -> str:
        return f"{value:g}"

    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    decades = math.log10(high / low)
    shown = {1.0, 2.0, 3.0, 5.0, 7.0} if decades < 1 else {2.0, 5.0} if decades < 2.2 else set()

    def minor(value: float, _: object = None) -> str:
        leading = value / 10 ** math.floor(math.log10(value) + 1e-9)
        return plain(value) if round(leading, 6) in shown else ""

    axes.yaxis.set_minor_formatter(FuncFormatter(minor) if shown else NullFormatter())


def _series(records: Sequence[Record], name: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the records that hold both as finite numbers; their place stands in for no x."""
    if not _has(records, key):
        pairs = [(i, r[name]) for i, r in enumerate(records) if is_number(r.get(name))]
    else:
        pairs = [
            (r[key], r[name]) for r in records if is_number(r.get(key)) and is_number(r.get(name))
        ]
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def _has(records: Sequence[Record], name: str) -> bool:
    return any(is_number(record.get(name)) for record in records)


def _dims(records: Sequence[Record]) -> float | None:
    return next((r["dims"] for r in records if is_number(r.get("dims")) and r["dims"] > 0), None)


def is_number(value: object) -> bool:
    """A finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
