"""The picture of an experiment. A new kind of picture is a new row of `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaekern.evaluation import _tiles
from vaekern.evaluation._canvas import (
    BLUE,
    CLASSES,
    INK,
    MUTED,
    ORANGE,
    dress,
    legend,
    new_figure,
    save,
)
from vaekern.experiments.experiment import Column, Row
from vaekern.experiments.finished import Finished
from vaekern.experiments.plan import Plan
from vaekern.experiments.results import Results
from vaekern.models import samplers
from vaekern.models.samplers.base import encode_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

#: False where there is nothing to draw.
Draw = Callable[[Plan, Results, Path], bool]

ACROSS = 3  # panels
STRIPS = 2  # interpolations drawn for each system


def dots(plan: Plan, results: Results, path: Path) -> bool:
    """One panel for each column: each row's mean, its standard deviation, and the paper's."""
    columns, rows = _columns(plan, results), list(results.rows)
    down, across = _grid(len(columns))
    figure = new_figure(2.2 + 3.1 * across, down * (1.1 + 0.26 * len(rows)))
    for index, column in enumerate(columns):
        axes = figure.add_subplot(down, across, index + 1)
        _dots(axes, rows, column, results, named=index % across == 0)
    if results.paper is not None:
        here = axes.plot([], [], "o", color=BLUE, label="here")
        paper = axes.plot([], [], "D", color=ORANGE, markerfacecolor="white", label="paper")
        figure.legend(handles=[*here, *paper], loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)
    return True


def _dots(
    axes: Axes, rows: Sequence[Row], column: Column, results: Results, *, named: bool
) -> None:
    for place, row in enumerate(rows):
        own, paper = results.spread(row, column), results.of_paper(row.name, column)
        if own is not None:
            axes.errorbar(
                own.mean, place, xerr=own.std or None, fmt="o", color=BLUE, markersize=5, capsize=2
            )
        if paper is not None:
            axes.errorbar(
                paper.mean,
                place + 0.22,
                xerr=paper.std or None,
                fmt="D",
                color=ORANGE,
                markersize=4,
                markerfacecolor="white",
                capsize=2,
            )
    dress(axes, title=results.heading(column))
    if column.log:
        axes.set_xscale("log")
        _plain(axes.xaxis)
    else:
        axes.locator_params(axis="x", nbins=4)  # the longest numbers side by side
    axes.set_yticks(range(len(rows)), [row.label for row in rows] if named else [""] * len(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)


def curves(plan: Plan, results: Results, path: Path) -> bool:
    """One panel for each column: a curve for each group of rows over their `value`."""
    columns = _columns(plan, results)
    groups = list(dict.fromkeys(row.group for row in results.rows if row.value is not None))
    down, across = _grid(len(columns))
    named = len(groups) > 1 or results.paper is not None
    figure = new_figure(1.0 + 3.6 * across, 0.3 + 2.9 * down + 0.35 * named)
    for index, column in enumerate(columns):
        axes = figure.add_subplot(down, across, index + 1)
        for group, colour in zip(groups, CLASSES, strict=False):
            _curve(axes, [r for r in results.rows if r.group == group], column, results, colour)
        dress(axes, title=results.heading(column), x=plan.experiment.axis)
        _scale(axes, plan, column, [r.value for r in results.rows if r.value is not None])
    if named:  # below all panels, where it covers no curve
        lines, labels = axes.get_legend_handles_labels()
        if results.paper is not None:
            lines, labels = [*lines, *axes.plot([], [], ":", color=INK)], [*labels, "paper"]
        figure.legend(
            lines, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False
        )
    save(figure, path)
    return True


def _scale(axes: Axes, plan: Plan, column: Column, places: Sequence[float]) -> None:
    if plan.experiment.log_axis:
        axes.set_xscale("log")
        if len(set(places)) <= 8:  # the places themselves rather than powers of ten
            axes.set_xticks(sorted(set(places)), [f"{each:.3g}" for each in sorted(set(places))])
            axes.set_xticks([], minor=True)
    if column.log:
        axes.set_yscale("log")
        _plain(axes.yaxis)


def _curve(axes: Axes, rows: Sequence[Row], column: Column, results: Results, colour: str) -> None:
    placed = [(row.value, results.spread(row, column), row) for row in rows]
    own = [(x, s) for x, s, _ in placed if x is not None and s is not None]
    label = rows[0].group or "here"
    if own:
        x = [place for place, _ in own]
        mean = [s.mean for _, s in own]
        axes.plot(x, mean, "o-", color=colour, markersize=4, linewidth=1.4, label=label)
        low = [s.mean - (s.std or 0) for _, s in own]
        high = [s.mean + (s.std or 0) for _, s in own]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    paper = [(x, results.of_paper(row.name, column)) for x, _, row in placed if x is not None]
    theirs = [(x, s.mean, s.std or 0.0) for x, s in paper if s is not None]
    if theirs:
        x, mean, std = map(list, zip(*theirs, strict=True))
        axes.plot(x, mean, ":", color=colour, linewidth=1.2)
        if any(std):
            axes.errorbar(x, mean, yerr=std, fmt="none", color=colour, capsize=2, alpha=0.6)


def scatter(plan: Plan, results: Results, path: Path) -> bool:
    """Each run a point: the second of the experiment's columns over the first."""
    columns = _columns(plan, results)
    if len(columns) < 2:
        return False
    x, y = columns[:2]
    figure = new_figure(5.6, 4.2)
    axes = figure.add_subplot()
    groups = list(dict.fromkeys(row.group for row in results.rows))
    for group, colour in zip(groups, (*CLASSES, MUTED), strict=False):
        pairs = [
            (a, b)
            for row in results.rows
            if row.group == group
            for seed in results.seeds
            if (a := results.value(row, x, seed)) is not None
            and (b := results.value(row, y, seed)) is not None
        ]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), "o", color=colour, markersize=5, label=group)
    dress(axes, x=results.heading(x), y=results.heading(y))
    legend(axes)
    save(figure, path)
    return True


def interpolation_strips(plan: Plan, results: Results, path: Path) -> bool:
    """What each system decodes on the way from one test image to another, two strips for each."""
    seed = plan.seeds[0]
    strips = []
    for row in results.rows:
        if (row.name, seed) not in results.values:
            continue
        run = Finished(plan.config(row, seed))
        codes = encode_means(run.subject.vae, run.data.test[: 2 * STRIPS])
        images = samplers.interpolation_strips(run.subject.vae, codes[::2], codes[1::2])
        names = [row.label, *[""] * (STRIPS - 1)]
        strips += [_tiles.Row(strip.cpu(), name) for strip, name in zip(images, names, strict=True)]
    if not strips:
        return False
    save(_tiles.tile_figure(strips, title="Interpolations"), path)
    return True


def _grid(panels: int) -> tuple[int, int]:
    """(down, across): full rows where there are such."""
    across = 2 if panels == 4 else min(ACROSS, panels)
    return -(-panels // across), across


def _plain(axis: Axis) -> None:
    """A logarithmic axis with numbers as they are written, and some within every decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    several = low > 0 and high / low > 100
    axis.set_major_locator(LogLocator(subs=(1,) if several else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _columns(plan: Plan, results: Results) -> list[Column]:
    present = results.present()
    chosen = [c for c in present if c.name in plan.experiment.figure_columns]
    return chosen or present


#: By name.
FIGURES: dict[str, Draw] = {
    "dots": dots,
    "curves": curves,
    "scatter": scatter,
    "interpolation_strips": interpolation_strips,
}
