"""Pictures of what the decoder does around a code, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vaekern.diagnostics import DirectionalVariance, LatentTraversals
from vaekern.evaluation import _tiles, _vectors
from vaekern.evaluation._canvas import BLUE, dress, new_figure, save
from vaekern.evaluation._checks import check_pictures

ROWS = 12


def latent_traversals_figure(traversals: LatentTraversals, path: str | Path) -> None:
    """One row per latent dimension, moved through the prior's range; the most used come first.

    Images: up to 12 rows of sharp tiles (fewer where they are large), labelled with mean encoder
    variance and KL. Vectors: one panel per latent dimension, with each dimension of the data as a
    curve over z_j; a dimension that the decoder ignores gives flat lines.

    Args:
        traversals: from :func:`vaekern.diagnostics.latent_traversals`.
        path: the PNG file.

    Raises:
        ValueError: the decoded samples are neither images nor vectors.
        RunError: the file cannot be written.
    """
    images = traversals.images
    check_pictures("traversals.images", images.flatten(0, 1))
    most = ROWS if images.ndim == 3 else _tiles.rows_that_fit(images, ROWS)
    images = images[:most]
    names = [
        f"z{j}: σ² {variance:.2g}\nKL {kl:.2f} nats"
        for j, variance, kl in zip(
            traversals.dimension.tolist(),
            traversals.variance.tolist(),
            traversals.kl.tolist(),
            strict=True,
        )
    ][:most]
    title = "Latent traversals"
    if images.ndim == 3:
        save(_vectors.traversal_figure(images, traversals.value, names, title), path)
        return
    shown = _spread(images.shape[1], _tiles.columns(images[0], images.shape[1]))
    rows = [_tiles.Row(row[shown], name) for row, name in zip(images, names, strict=True)]
    heads = [f"{value:.2g}" for value in traversals.value[shown].tolist()]
    heads[0] = f"z = {heads[0]}"
    save(_tiles.tile_figure(rows, title=title, heads=heads), path)


def directional_variance_figure(
    result: DirectionalVariance, path: str | Path, *, sample: int = 0
) -> None:
    """What moving a code along each eigen-direction of the encoder's covariance does.

    With decoded images: one row per direction of one sample (12 at most, fewer of large images,
    evenly spread), smallest
    eigenvalue first. Without them, and for vectors: the variance over the eigenvalue for all
    samples and directions, both on logarithmic axes.

    Args:
        result: from :func:`vaekern.diagnostics.directional_variance`, with ``return_images=True``
            for tiles.
        path: the PNG file.
        sample: which of the B samples the tiles show.

    Raises:
        ValueError: no such sample.
        RunError: the file cannot be written.

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models", figures 2 and 14.
    """
    count = len(result.variance)
    if not -count <= sample < count:
        raise ValueError(f"sample must be below {count}, the number of samples, got {sample}")
    if result.images is None or result.images.ndim == 4:
        _scatter_directions(result, path)
        return
    images = result.images[sample]
    check_pictures("result.images", images.flatten(0, 1))
    places = _spread(len(images), _tiles.rows_that_fit(images, ROWS))
    shown = _spread(images.shape[1], _tiles.columns(images[0], images.shape[1]))
    rows = [
        _tiles.Row(
            images[place, shown],
            f"λ {float(result.eigenvalue[sample, place]):.2g}\n"
            f"var {float(result.variance[sample, place]):.2g}",
        )
        for place in places
    ]
    note = f"{len(rows)} of {len(images)} directions" if len(rows) < len(images) else ""
    title = "Codes moved along the directions of the encoder's covariance"
    save(_tiles.tile_figure(rows, title=title, note=note), path)


def _scatter_directions(result: DirectionalVariance, path: str | Path) -> None:
    eigenvalue, variance = (
        v.detach().double().cpu().flatten().numpy() for v in (result.eigenvalue, result.variance)
    )
    # zero has no place on a log axis
    floor = float(variance.max()) * 1e-9 or 1e-12
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log")
    dots = _vectors.dots(len(variance))
    axes.scatter(
        np.maximum(eigenvalue, np.finfo(np.float64).tiny), np.maximum(variance, floor),
        color=BLUE, **dots,
    )  # fmt: skip
    dress(
        axes,
        title="Decoded variance along the encoder's directions",
        x="eigenvalue of the encoder's covariance (log scale)",
        y="variance, mean over dimensions (log scale)",
    )
    save(figure, path)


def perturbed_codes_figure(
    originals: Tensor,  # [N, C, H, W] in [0, 1]
    reconstructions: Tensor,  # the same shape
    images: Tensor,  # [S, N, K, C, H, W]
    variances: Sequence[float],
    path: str | Path,
) -> None:
    """Originals, their reconstructions, and the decoded neighbours of their codes.

    One block per original, one row per variance s^2 in it; at most 16 rows, fewer of large
    images.

    Args:
        originals: [N, C, H, W] in [0, 1].
        reconstructions: decoded encoder means, of the same shape.
        images: [S, N, K, C, H, W] from :func:`vaekern.diagnostics.perturbed_codes`.
        variances: the S values of s^2.
        path: the PNG file.

    Raises:
        ValueError: shapes that do not fit, or samples that are no images.
        RunError: the file cannot be written.

    Source: Takida et al. 2022, figure D.3.
    """
    check_pictures("originals", originals)
    if originals.ndim != 4:
        raise ValueError(
            f"originals must be images [N, C, H, W], got {list(originals.shape)}; for vectors "
            "look at vaekern.diagnostics.expected_gap"
        )
    wanted = (len(variances), len(originals))
    fits = (
        images.ndim == 6 and images.shape[:2] == wanted and images.shape[3:] == originals.shape[1:]
    )
    if reconstructions.shape != originals.shape or not fits:
        raise ValueError(
            f"reconstructions and images must belong to originals {list(originals.shape)} and "
            f"{len(variances)} variances, got {list(reconstructions.shape)} and "
            f"{list(images.shape)}; images are [S, N, K, C, H, W]"
        )
    originals, reconstructions, images = (
        t.detach().float().cpu() for t in (originals, reconstructions, images)
    )
    per_row = max(1, _tiles.columns(originals, 2 + images.shape[2]) - 2)
    blank = torch.ones_like(originals[0])
    rows = []
    blocks = max(1, _tiles.rows_that_fit(originals, 16) // len(variances))
    for n in range(min(len(originals), blocks)):
        for s, variance in enumerate(variances):
            pair = [blank, blank] if s else [originals[n], reconstructions[n]]
            tiles = torch.cat([torch.stack(pair), images[s, n, :per_row]])
            rows.append(_tiles.Row(tiles, f"s² = {variance:g}", 14 if n and not s else 0))
    heads = ["input", "decoded"]
    save(
        _tiles.tile_figure(rows, title="Decoded neighbours of codes", heads=heads, breaks=(2,)),
        path,
    )


def interpolation_figure(
    first: Tensor,  # [N, C, H, W] in [0, 1]
    strips: Tensor,  # [N, S, C, H, W]
    second: Tensor,  # the shape of first
    path: str | Path,
) -> None:
    """One row for each pair: the first image, the decoded way to the second, and the second.

    At most 12 rows, fewer of large images; where the way has more images than fit, they are evenly
    spread.

    Args:
        first: [N, C, H, W] in [0, 1].
        strips: [N, S, C, H, W] from :func:`vaekern.models.interpolation_strips`.
        second: [N, C, H, W].
        path: the PNG file.

    Raises:
        ValueError: shapes that do not fit, or samples that are no images.
        RunError: the file cannot be written.

    Source: Takida et al. 2022, figure J.9.
    """
    check_pictures("first", first)
    if first.ndim != 4:
        raise ValueError(f"first must be images [N, C, H, W], got {list(first.shape)}")
    fits = strips.ndim == 5 and strips[:, 0].shape == first.shape
    if second.shape != first.shape or not fits:
        raise ValueError(
            f"strips and second must belong to first {list(first.shape)}, got "
            f"{list(strips.shape)} and {list(second.shape)}; strips are [N, S, C, H, W]"
        )
    first, strips, second = (t.detach().float().cpu() for t in (first, strips, second))
    count = strips.shape[1]
    shown = _spread(count, max(2, _tiles.columns(first, count + 2) - 2))
    rows = [
        _tiles.Row(torch.cat([first[n, None], strips[n, shown], second[n, None]]))
        for n in range(_tiles.rows_that_fit(first, min(ROWS, len(first))))
    ]
    ratios = [f"{place / (count - 1):.2g}" for place in shown]
    heads = ["input", *ratios, "input"]
    title = "Between two codes"
    breaks = (1, len(shown) + 1)
    save(_tiles.tile_figure(rows, title=title, heads=heads, breaks=breaks), path)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spread, with both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
