"""Pictures of the latent space: what is drawn is what was passed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern.diagnostics import LatentSpectrum, encoder_variance_histogram
from vaekern.evaluation import (
    codes_tsne,
    encoder_variance_histogram_figure,
    latent_figures,
    latent_spectrum_figure,
)

pytest.importorskip("matplotlib")


def legend_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().texts]


def test_spectra_share_the_line_of_the_prior(tmp_path: Path, drawn: list):
    normal = torch.tensor([5.0, 4.0, 3.0])
    z, u = torch.tensor([9.0, 4.0, 1.0]), torch.tensor([5.1, 4.1, 2.9])
    spectra = {"z": LatentSpectrum(z, normal), "u": LatentSpectrum(u, normal * 1.05)}
    latent_spectrum_figure(spectra, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert legend_of(axes) == ["z", "u", "N(0, I)"]
    for line, values in zip(axes.lines, (z, u, normal), strict=True):
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert np.allclose(line.get_ydata(), values)
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 9
    # another number of samples has another line
    spectra["u"] = LatentSpectrum(u * 3, normal * 3)
    latent_spectrum_figure(spectra, tmp_path / "a.png")
    assert len(drawn[1].axes[0].lines) == 4


def test_histogram_of_eigenvalues_is_in_percent(tmp_path: Path, drawn: list):
    logvar = torch.tensor([[0.01, 0.02, 0.9, 0.95], [0.03, 0.9, 0.9, 1.5]]).log()
    encoder_variance_histogram_figure(
        encoder_variance_histogram(logvar, bins=4), tmp_path / "a.png"
    )
    axes = drawn[0].axes[0]
    bars = {(round(bar.get_x(), 6), bar.get_height()) for bar in axes.patches}
    assert bars == {(0.0, 37.5), (0.25, 0.0), (0.5, 0.0), (0.75, 50.0), (1.25, 12.5)}
    assert legend_of(axes) == ["above 1"]
    assert "1.5 dimensions" in axes.texts[0].get_text()
    assert axes.get_ylim()[1] > 50


def groups(count: int, dims: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of three distant classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, dims) * 30
    return centres[labels] + torch.randn(count, dims, generator=generator), labels


def dots_of(axes) -> dict[str, np.ndarray]:
    return {c.get_label(): np.asarray(c.get_offsets()) for c in axes.collections}


def assert_grouped(parts: dict[str, np.ndarray]) -> None:
    """Every dot lies nearer to the centre of its own group than to any other."""
    centres = np.stack([dots.mean(0) for dots in parts.values()])
    for i, dots in enumerate(parts.values()):
        distance = np.linalg.norm(dots[:, None] - centres, axis=2)
        assert (distance.argmin(1) == i).all()


def test_tsne_keeps_groups_together_and_draws_the_prior_in_grey(tmp_path: Path, drawn: list):
    codes, labels = groups(60)
    prior = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    codes_tsne(codes, tmp_path / "a.png", labels=labels + 7, prior=prior)
    parts = dots_of(drawn[0].axes[0])
    assert list(parts) == legend_of(drawn[0].axes[0]) == ["prior", "7", "8", "9"]
    assert [len(dots) for dots in parts.values()] == [20] * 4
    assert_grouped(parts)


def test_tsne_draws_a_bounded_number_of_points(
    tmp_path: Path, drawn: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(latent_figures, "TSNE_POINTS", 60)
    codes, labels = groups(200)
    prior = torch.randn(70, 5, generator=torch.Generator().manual_seed(1))
    codes_tsne(codes, tmp_path / "a.png", labels=labels, prior=prior)
    parts = dots_of(drawn[0].axes[0])
    assert len(parts["prior"]) == 15
    assert sum(map(len, parts.values())) == 60
    assert set(parts) == {"prior", "0", "1", "2"}
    assert_grouped(parts)


def test_tsne_of_many_classes_of_few_codes_and_of_one_dimension(tmp_path: Path, drawn: list):
    codes, _ = groups(24, 4)
    codes_tsne(codes, tmp_path / "a.png", labels=torch.arange(24))
    dots = drawn[0].axes[0].collections[0]
    assert dots.get_array().tolist() == list(range(24))
    assert len(drawn[0].axes) == 2  # the bar of colours
    for seed in (0, 0, 1):  # one dimension has no second principal component: a random start
        codes_tsne(codes[:4, :1], tmp_path / "b.png", seed=seed)
    assert drawn[1].axes[0].get_legend() is None
    once, twice, other = (np.asarray(f.axes[0].collections[0].get_offsets()) for f in drawn[1:])
    assert len(once) == 4
    assert np.array_equal(once, twice)
    assert not np.array_equal(once, other)


CODES = torch.randn(9, 2)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda p: latent_spectrum_figure({}, p), ValueError, "one to three"),
        (lambda p: codes_tsne(CODES[:3], p), ValueError, "at least 4"),
        (lambda p: codes_tsne(CODES * math.nan, p), ValueError, "finite"),
        (lambda p: codes_tsne(CODES, p, labels=torch.zeros(9)), ValueError, "float32"),
        (lambda p: codes_tsne(CODES, p, labels=torch.arange(8)), ValueError, r"\[8\]"),
        (lambda p: codes_tsne(CODES, p, prior=torch.zeros(9, 3)), ValueError, "3 and 2"),
    ],
)
def test_bad_input_leaves_no_file(tmp_path: Path, call, error, word: str):
    with pytest.raises(error, match=word):
        call(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
