"""Pictures of the latent space, as PNG files: how codes lie, and which dimensions are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vaekern._optional import require
from vaekern.diagnostics import EncoderVarianceHistogram, LatentSpectrum
from vaekern.diagnostics._checks import check_samples
from vaekern.evaluation._canvas import (
    BLUE,
    CLASSES,
    GREEN,
    MUTED,
    ORANGE,
    dress,
    legend,
    new_figure,
    numbered,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TSNE_POINTS = 2000
PRIOR_SHARE = 0.25  # of them, at most
PERPLEXITY = 30.0


def latent_spectrum_figure(
    spectra: Mapping[str, LatentSpectrum], path: str | Path, *, normalized: bool = False
) -> None:
    """Singular values of samples of latents beside those of as many draws from N(0, I).

    Latents that follow the prior lie on its curve.

    Args:
        spectra: up to three, from :func:`vaekern.diagnostics.latent_spectrum`, each by its name,
            such as ``"q(z), stage 1"``.
        path: the PNG file.
        normalized: whether they were divided by sqrt(N), for the label.

    Raises:
        ValueError: no spectra, or more than three.
        RunError: the file cannot be written.

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models", figure 3.
    """
    colours = (BLUE, ORANGE, GREEN)
    if not 0 < len(spectra) <= len(colours):
        raise ValueError(f"spectra must hold one to three spectra, got {len(spectra)}")
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    highest = 0.0
    references: list[np.ndarray] = []
    for (name, spectrum), colour in zip(spectra.items(), colours, strict=False):
        values, reference = _array(spectrum.singular_values), _array(spectrum.reference)
        place = np.arange(1, len(values) + 1)
        axes.plot(
            place, values, "o-", color=colour, label=name, zorder=3, linewidth=1.4,
            markersize=_marker(len(values)),
        )  # fmt: skip
        # draws of one shape differ by noise alone: one line is enough
        if not any(
            len(b) == len(reference) and np.allclose(b, reference, rtol=0.2) for b in references
        ):
            references.append(reference)
        highest = max(highest, float(values.max()), float(reference.max()))
    for i, reference in enumerate(references):
        place = np.arange(1, len(reference) + 1)
        label = "" if i else "N(0, I)"
        line = "--" if len(reference) > 1 else "s"
        axes.plot(place, reference, line, color=MUTED, linewidth=1.4, label=label)
    axes.set_ylim(0, highest * 1.08)
    dress(
        axes,
        title="Spectrum of latent samples",
        x="place, largest first",
        y="singular value / √N" if normalized else "singular value",
    )
    numbered(axes, max(map(len, references)))
    legend(axes, loc="best")
    save(figure, path)


def encoder_variance_histogram_figure(
    histogram: EncoderVarianceHistogram, path: str | Path
) -> None:
    """How the eigenvalues of the encoder's covariance are spread: at 0 and at 1, or between.

    Args:
        histogram: from :func:`vaekern.diagnostics.encoder_variance_histogram`.
        path: the PNG file.

    Raises:
        RunError: the file cannot be written.

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models", figure 15.
    """
    counts, edges = _array(histogram.counts), _array(histogram.edges)
    width = edges[1] - edges[0]
    total = counts.sum() + histogram.above
    percent = 100 * counts / total
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    axes.bar(edges[:-1], percent, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.5)
    if histogram.above:
        axes.bar(
            [1 + width], [100 * histogram.above / total], width, align="edge", color=ORANGE,
            edgecolor="white", linewidth=0.5, label="above 1",
        )  # fmt: skip
        legend(axes, loc="upper center")
    axes.set_xlim(-width, 1 + 3 * width)
    axes.set_ylim(0, max(percent.max(), 100 * histogram.above / total) * 1.1)
    axes.text(
        1, 1.02, f"near 0: {histogram.manifold_dimension:.1f} dimensions of a sample",
        transform=axes.transAxes, ha="right", va="bottom", color=MUTED, fontsize=9,
    )  # fmt: skip
    dress(
        axes,
        title="Encoder variances of all samples",
        x="eigenvalue of the encoder's covariance",
        y="percent",
    )
    axes.grid(axis="x", visible=False)
    save(figure, path)


def codes_tsne(
    codes: Tensor,  # [N, d]
    path: str | Path,
    *,
    labels: Tensor | None = None,  # [N] int64
    prior: Tensor | None = None,  # [M, d]
    seed: int = 0,
) -> None:
    """t-SNE of codes, coloured by label, with draws from the prior in grey.

    Grey points between the groups are codes that the decoder meets in sampling and never met in
    training. Distances between groups, and their sizes, mean nothing in t-SNE.

    Args:
        codes: [N, d] codes; at most 2,000 points are drawn, every k-th of them.
        path: the PNG file.
        labels: [N] integers.
        prior: [M, d] draws from the prior, embedded together with the codes; a quarter of the
            points at most.
        seed: of the embedding, which starts from the principal components.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, fewer than 4 codes, or
            labels that are no integers.
        TypeError: codes or prior that are no floating-point tensor.
        ModuleNotFoundError: scikit-learn is not installed.
        RunError: the file cannot be written.

    Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE"; Takida et al. 2022,
    figures D.4, E.5 and J.6.
    """
    check_samples("codes", codes, at_least=4)
    if prior is not None:
        check_samples("prior", prior, beside=("codes", codes))
    if labels is not None and (labels.shape != codes.shape[:1] or labels.is_floating_point()):
        raise ValueError(
            f"labels must be one integer per code, [{len(codes)}], got {labels.dtype} "
            f"{list(labels.shape)}; leave them out where there are none"
        )
    drawn = 0 if prior is None else min(len(prior), int(TSNE_POINTS * PRIOR_SHARE))
    rows = _evenly(len(codes), TSNE_POINTS - drawn)
    points = [codes[rows.to(codes.device)]]
    if prior is not None:
        points.append(prior[_evenly(len(prior), drawn).to(prior.device)])
    place = _embed(torch.cat([part.detach().double().cpu() for part in points]), seed)
    figure = new_figure(7.6, 6.4)
    axes = figure.add_subplot()
    size = float(np.clip(9000 / len(place), 5, 30))
    if drawn:
        x, y = place[len(rows) :].T
        axes.scatter(x, y, s=size, color=MUTED, alpha=0.5, linewidth=0, label="prior")
    of_code = place[: len(rows)]
    if labels is None:
        label = "codes" if drawn else ""
        x, y = of_code.T
        axes.scatter(x, y, s=size, color=BLUE, alpha=0.8, linewidth=0, label=label)
    else:
        _scatter_classes(axes, of_code, labels[rows.to(labels.device)].cpu().numpy(), size)
    dress(axes, title="t-SNE of the latent space")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)  # the axes of t-SNE have no meaning
    axes.set_aspect("equal", adjustable="datalim")
    if axes.get_legend_handles_labels()[0]:
        legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=(30 / size) ** 0.5)
    save(figure, path)


def _scatter_classes(axes: Axes, place: np.ndarray, labels: np.ndarray, size: float) -> None:
    """One colour per class; more classes than colours share a continuous map and a bar."""
    known = np.unique(labels)
    if len(known) > len(CLASSES):
        dots = axes.scatter(place[:, 0], place[:, 1], s=size, c=labels, cmap="viridis", linewidth=0)
        bar = axes.figure.colorbar(dots, ax=axes, label="label", shrink=0.6)
        bar.outline.set_visible(False)
        return
    for label, colour in zip(known, CLASSES, strict=False):
        x, y = place[labels == label].T
        axes.scatter(x, y, s=size, color=colour, alpha=0.85, linewidth=0, label=str(label))


def _embed(points: Tensor, seed: int) -> np.ndarray:
    manifold = require("sklearn.manifold", "drawing t-SNE", package="scikit-learn")
    # scikit-learn wants fewer neighbours than points, and a third of them have a meaning
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    # a one-dimensional code has only one principal component
    init = "pca" if points.shape[1] > 1 else "random"
    embedding = manifold.TSNE(2, perplexity=perplexity, init=init, random_state=seed)
    place: np.ndarray = embedding.fit_transform(points.numpy())
    return place


def _evenly(count: int, most: int) -> Tensor:
    """At most ``most`` rows of ``count``, evenly spaced."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


def _marker(count: int) -> float:
    return float(np.clip(120 / count, 0, 5)) if count <= 128 else 0.0


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().double().cpu().numpy()
    return array
