"""The pictures a run leaves behind, as PNG files.

Every function checks its input, draws without pyplot's global state and without a screen, and
writes the file in one atomic step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaekern.diagnostics import EncoderVarianceSpectrum
from vaekern.evaluation import _tiles, _vectors
from vaekern.evaluation._canvas import (
    BLUE,
    MUTED,
    ORANGE,
    dress,
    legend,
    new_figure,
    numbered,
    save,
)
from vaekern.evaluation._checks import check_pictures
from vaekern.evaluation._curves import Record, curves_figure, is_number, stage_of


def reconstruction_grid(
    originals: Tensor,  # [N, C, H, W] in [0, 1], or [N, D]
    reconstructions: Tensor,  # the same shape
    path: str | Path,
) -> None:
    """Originals beside their reconstructions, with the mean squared error of those shown.

    Images: up to 40 pairs, each original straight above its reconstruction, every pixel a sharp
    square. Vectors: 2-D points joined to their reconstructions, otherwise one panel per dimension
    with the reconstruction over the original (at most 12).

    Raises:
        ValueError: shapes that differ, no samples, or neither images nor vectors.
        RunError: the file cannot be written.
    """
    check_pictures("originals", originals)
    check_pictures("reconstructions", reconstructions)
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"reconstructions must have the shape of originals, got {list(reconstructions.shape)} "
            f"and {list(originals.shape)}; pass the same samples in the same order"
        )
    if originals.ndim == 2:
        save(
            _vectors.reconstruction_figure(
                originals, reconstructions, f"Reconstructions, {_mse(originals, reconstructions)}"
            ),
            path,
        )
        return
    per_row = _tiles.columns(originals, 10)
    count = min(len(originals), 4 * per_row)
    per_row = math.ceil(count / math.ceil(count / per_row))  # rows of one length: 16 is 2 of 8
    rows = []
    for start in range(0, count, per_row):
        part = slice(start, min(start + per_row, count))
        rows.append(_tiles.Row(originals[part], "original", 14 if start else 0))
        rows.append(_tiles.Row(reconstructions[part], "reconstructed"))
    note = _mse(originals[:count], reconstructions[:count])
    save(_tiles.tile_figure(rows, title="Reconstructions", note=note), path)


def sample_grid(
    samples: Tensor,  # [N, C, H, W] in [0, 1], or [N, D]
    path: str | Path,
    title: str,
    *,
    data: Tensor | None = None,  # [M, D]
) -> None:
    """Generated samples.

    Images: up to 100 in a grid, every pixel a sharp square. Vectors: a scatter plot of 2-D samples,
    otherwise one histogram per dimension (at most 12); ``data`` is drawn behind them, so that one
    sees where the samples miss it. Images take no ``data``.

    Raises:
        ValueError: no samples, neither images nor vectors, or ``data`` that does not fit.
        RunError: the file cannot be written.
    """
    check_pictures("samples", samples)
    if data is not None and (samples.ndim != 2 or data.shape[1:] != samples.shape[1:]):
        raise ValueError(
            f"data must be vectors [M, D] beside samples [N, D], got {list(data.shape)} and "
            f"{list(samples.shape)}; leave it out for images"
        )
    if samples.ndim == 2:
        save(_vectors.sample_figure(samples, title, data), path)
        return
    count = min(len(samples), 100)
    per_row = _tiles.columns(samples, math.ceil(math.sqrt(count)))
    count = min(count, per_row * 10)
    rows = [
        _tiles.Row(samples[start : min(start + per_row, count)])
        for start in range(0, count, per_row)
    ]
    save(_tiles.tile_figure(rows, title=title), path)


def training_curves(records: Sequence[Record], path: str | Path) -> None:
    """Loss terms, sigma and active units over the training, one column per stage.

    Args:
        records: one mapping per line of ``metrics.jsonl``. Read are ``stage`` (1 or 2), ``epoch``
            or ``step``; ``loss``, ``reconstruction`` and ``kl`` in nats per sample; ``mse``, the
            squared error summed over a sample's dimensions; ``dims``, the number of those, which
            turns all four into values per dimension (without it the error is left out);
            ``sigma``, the decoder's standard deviation; ``active_units``; ``validation_loss``; and
            ``lr``, ``beta`` and ``capacity``, which are drawn where they move. What is absent or
            not finite is left out.
        path: the PNG file.

    Raises:
        ValueError: no record holds a loss.
        RunError: the file cannot be written.
    """
    stages = sorted({stage_of(record) for record in records if is_number(record.get("loss"))})
    if not stages:
        raise ValueError(
            f"records must hold at least one finite 'loss', got {len(records)} records without; "
            f"pass the lines of metrics.jsonl"
        )
    save(curves_figure(records, stages), path)


def encoder_variance_figure(spectrum: EncoderVarianceSpectrum, path: str | Path) -> None:
    """Mean encoder variance per latent dimension, sorted; active and passive apart.

    Stems start at the prior's variance, 1: the longer one is, the more nats its dimension carries.

    Args:
        spectrum: from :func:`vaekern.diagnostics.encoder_variance_spectrum`.
        path: the PNG file.

    Raises:
        RunError: the file cannot be written.
    """
    variance = spectrum.variance.detach().cpu().numpy()
    place = np.arange(1, len(variance) + 1)
    # zero, which float64 reaches only below e^-745, has no place on a log axis
    variance = np.maximum(variance, np.finfo(np.float64).tiny)
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.axhline(1, color=MUTED, linewidth=1)
    groups = (
        (slice(0, spectrum.active), BLUE, f"active: {spectrum.active}"),
        (slice(spectrum.active, None), ORANGE, f"passive: {spectrum.passive}"),
    )
    size = float(np.clip(1500 / len(variance), 8, 42))
    for part, colour, label in groups:
        if len(place[part]):
            axes.vlines(place[part], variance[part], 1, color=colour, linewidth=1.3, alpha=0.45)
            axes.scatter(place[part], variance[part], s=size, color=colour, label=label, zorder=3)
    lowest, highest = min(float(variance.min()), 0.1), max(float(variance.max()), 1.0)
    axes.set_ylim(lowest / 1.6, highest * 1.8)
    axes.text(
        0.995, 1.04, "prior", transform=axes.get_yaxis_transform(), ha="right", va="bottom",
        color=MUTED, fontsize=9,
    )  # fmt: skip
    dress(
        axes,
        title="Spectrum of encoder variances",
        x="latent dimension, sorted by variance",
        y="mean encoder variance (log scale)",
    )
    numbered(axes, len(variance))
    axes.grid(axis="x", visible=False)
    legend(axes, loc="lower right")
    save(figure, path)


def _mse(originals: Tensor, reconstructions: Tensor) -> str:
    error = originals.detach().double() - reconstructions.detach().double()
    return f"mean squared error {float(torch.mean(error**2)):.4g} per dimension"
