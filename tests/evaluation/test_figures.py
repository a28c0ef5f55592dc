"""Pictures, read back as pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern.diagnostics import encoder_variance_spectrum
from vaekern.evaluation import (
    encoder_variance_figure,
    reconstruction_grid,
    sample_grid,
    training_curves,
)
from vaekern.training import RunError

pytest.importorskip("matplotlib")
pytest.importorskip("PIL.Image")


def test_each_reconstruction_stands_sharp_and_straight_below_its_original(
    tmp_path: Path, unlike, read_page
):
    images = unlike(24, 1, 8, 8)
    originals, reconstructions = images[:12], images[12:]
    reconstruction_grid(originals, reconstructions, tmp_path / "a.png")
    page = read_page(tmp_path / "a.png")
    for original, reconstruction in zip(originals, reconstructions, strict=True):
        above, below = page.find(original, 9), page.find(reconstruction, 9)
        assert len(above) == len(below) == 1
        assert below[0] == (above[0][0] + 75, above[0][1])


def test_sample_grid_in_colour_keeps_order_and_clamps(tmp_path: Path, unlike, read_page):
    samples = unlike(4, 3, 32, 32)
    sample_grid(samples * 3 - 1, tmp_path / "a.png", "Samples")  # beyond both ends of the range
    page = read_page(tmp_path / "a.png")
    corners = [page.find((s * 3 - 1).clamp(0, 1), 2) for s in samples]
    assert all(len(found) == 1 for found in corners)
    (a,), (b,), (c,), (d,) = corners
    assert a[0] == b[0] < c[0] == d[0]
    assert a[1] == c[1] < b[1] == d[1]


def test_labels_do_not_run_into_tiles(tmp_path: Path, read_page):
    reconstruction_grid(torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8), tmp_path / "a.png")
    page = read_page(tmp_path / "a.png").pixels
    black = (page == 0).all(2)
    left = int(np.argwhere(black.sum(0) > 70)[0, 0])  # the first column of tiles
    assert (page[50:, left - 6 : left] == 255).all()
    assert (page[50:, :left] < 200).any()  # and there is a label


def test_large_images_and_many_of_them_keep_the_page_small(tmp_path: Path, read_page):
    sample_grid(torch.rand(24, 3, 256, 256), tmp_path / "a.png", "Samples")
    height, width = read_page(tmp_path / "a.png").pixels.shape[:2]
    assert width < 1300
    assert height < 1700


def test_a_diverged_run_still_gets_its_pictures(tmp_path: Path):
    nan = torch.full((4, 1, 8, 8), math.nan)
    sample_grid(nan, tmp_path / "a.png", "Samples")
    reconstruction_grid(torch.zeros(4, 1, 8, 8), nan, tmp_path / "b.png")
    sample_grid(torch.full((4, 3), math.nan), tmp_path / "c.png", "Samples")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("dims", [1, 2, 5, 20])
def test_vectors_get_pictures_too(tmp_path: Path, drawn: list, dims: int):
    x = torch.randn(50, dims, generator=torch.Generator().manual_seed(0))
    sample_grid(x, tmp_path / "a.png", "Samples from the prior", data=x + 1)
    reconstruction_grid(x, x * 0.5, tmp_path / "b.png")
    samples, reconstructions = drawn
    panels = 1 if dims == 2 else min(dims, 12)
    assert len(samples.axes) == len(reconstructions.axes) == panels
    axes = reconstructions.axes[0]
    points = [c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 50]
    if dims == 2:
        assert np.allclose(points[0], x)
        assert np.allclose(points[1], x * 0.5)
        assert {t.get_text() for t in axes.get_legend().texts} == {"original", "reconstruction"}
    else:
        assert np.allclose(points[0], torch.stack([x[:, 0], x[:, 0] * 0.5], 1))
        labels = {t.get_text() for t in samples.axes[0].get_legend().texts}
        assert labels == {"data", "samples"}
    if dims == 20:
        assert "first 12 of 20" in samples.get_suptitle()


def records(stage: int, dims: int, count: int = 40) -> list[dict]:
    return [
        {
            "stage": stage,
            "epoch": e,
            "step": 10 * e,
            "loss": dims * (5 / e - 1),
            "reconstruction": dims * (4 / e - 2),
            "kl": dims * (1 / e + 1),
            "mse": dims * (0.3 / e) ** 2,
            "sigma": 0.25 / e,
            "active_units": 7,
            "dims": dims,
        }
        for e in range(1, count + 1)
    ]


def test_training_curves_draw_both_stages_per_dimension(tmp_path: Path, drawn: list):
    training_curves(records(1, 64) + records(2, 16), tmp_path / "a.png")
    axes = drawn[0].axes
    assert [a.get_title("left") for a in axes] == [
        f"Stage {s}: {what}"
        for s in (1, 2)
        for what in ("loss terms", "decoder sigma", "active latent dimensions")
    ]
    epochs = np.arange(1, 41)
    for terms, sigma, units in (axes[:3], axes[3:]):
        lines = {line.get_label(): line for line in terms.lines}
        assert list(lines) == ["loss", "reconstruction", "KL"]
        assert np.allclose(lines["loss"].get_ydata(), 5 / epochs - 1)
        assert np.allclose(lines["KL"].get_ydata(), 1 / epochs + 1)
        curves = {line.get_label(): line.get_ydata() for line in sigma.lines}
        assert np.allclose(curves["sigma"], 0.25 / epochs)
        assert np.allclose(curves["root mean squared error"], 0.3 / epochs)
        assert sigma.get_yscale() == "log"
        assert units.lines[0].get_ydata().tolist() == [7] * 40
    assert axes[0].get_ylabel() == "nats per dimension"
    assert axes[2].get_xlabel() == "epoch"


def test_training_curves_draw_schedules_that_move(tmp_path: Path, drawn: list):
    first, second = records(1, 64), records(2, 16)
    for place, record in enumerate(first):
        record |= {"lr": 1e-3 * 0.5 ** (place // 20), "beta": 4 * min(place / 10, 1)}
        record |= {"validation_loss": 128.0 + place}
    training_curves(first + [record | {"lr": 1e-3} for record in second], tmp_path / "a.png")
    terms, _, _, moving, *_, constant = drawn[0].axes
    validation = {line.get_label(): line for line in terms.lines}["validation"]
    assert np.allclose(validation.get_ydata(), 2 + np.arange(40) / 64)
    assert moving.get_title("left") == "Stage 1: schedules"
    curves = {line.get_label(): line.get_ydata() for line in moving.lines}
    assert list(curves) == ["learning rate (1 is 0.001)", "beta (1 is 4)"]
    assert np.allclose(curves["learning rate (1 is 0.001)"], [1.0] * 20 + [0.5] * 20)
    assert np.allclose(curves["beta (1 is 4)"], np.minimum(np.arange(40) / 10, 1))
    assert constant.get_title("left") == "Stage 2: schedules"
    assert not constant.lines


def test_training_curves_leave_out_what_is_missing(tmp_path: Path, drawn: list):
    rows = [{"step": i, "loss": float(i), "sigma": None, "kl": math.nan} for i in range(5)]
    rows[3]["loss"] = math.inf
    training_curves(rows, tmp_path / "a.png")
    terms, sigma = drawn[0].axes
    assert [line.get_label() for line in terms.lines] == ["loss"]
    assert terms.lines[0].get_xdata().tolist() == [0, 1, 2, 4]
    assert terms.get_ylabel() == "nats per sample"
    assert sigma.get_xlabel() == "step"
    training_curves([{"loss": 1.0}], tmp_path / "b.png")  # one point is a point


def test_long_noisy_curves_are_smoothed_over_the_pale_original(tmp_path: Path, drawn: list):
    noise = np.random.default_rng(0).normal(size=2000)
    training_curves(
        [{"step": i, "loss": float(v)} for i, v in enumerate(noise)], tmp_path / "a.png"
    )
    pale, smooth = drawn[0].axes[0].lines
    assert np.array_equal(pale.get_ydata(), noise)
    assert len(smooth.get_ydata()) == 2000
    assert smooth.get_ydata().std() < 0.35
    # a mean over what exists at the ends, not over zeros beyond them
    training_curves([{"step": i, "loss": 3.0} for i in range(1000)], tmp_path / "b.png")
    assert np.allclose(drawn[1].axes[0].lines[1].get_ydata(), 3)


def test_encoder_variance_figure(tmp_path: Path, drawn: list):
    logvar = torch.tensor([[0.0, -5.0, -7.0, 0.1]])
    encoder_variance_figure(encoder_variance_spectrum(logvar), tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert axes.get_yscale() == "log"
    assert {t.get_text() for t in axes.get_legend().texts} == {"active: 2", "passive: 2"}
    dots = [c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 2]
    drawn = np.concatenate(dots)
    assert np.allclose(drawn[:, 1], np.exp([-7.0, -5.0, 0.0, 0.1]))
    assert drawn[:, 0].tolist() == [1, 2, 3, 4]
    # underflow and one dimension do not break the log axis
    encoder_variance_figure(
        encoder_variance_spectrum(torch.full((1, 1), -2000.0)), tmp_path / "b.png"
    )


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda p: sample_grid(torch.zeros(3), p, ""), ValueError, r"\[3\]"),
        (lambda p: sample_grid(torch.zeros(3, 2, 8, 8), p, ""), ValueError, r"\[3, 2, 8, 8\]"),
        (lambda p: sample_grid(torch.zeros(0, 2), p, ""), ValueError, "at least one"),
        (lambda p: sample_grid([1], p, ""), TypeError, "list"),
        (
            lambda p: sample_grid(torch.zeros(3, 2), p, "", data=torch.zeros(3, 3)),
            ValueError,
            "data",
        ),
        (
            lambda p: reconstruction_grid(torch.zeros(3, 2), torch.zeros(4, 2), p),
            ValueError,
            r"\[4, 2\] and \[3, 2\]",
        ),
        (lambda p: training_curves([], p), ValueError, "records"),
        (lambda p: training_curves([{"loss": math.nan}], p), ValueError, "finite 'loss'"),
    ],
)
def test_bad_input_leaves_no_file(tmp_path: Path, call, error, word: str):
    with pytest.raises(error, match=word):
        call(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    sample_grid(torch.zeros(1, 1, 8, 8), path, "before")
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(RunError, match="no space left"):
            sample_grid(torch.ones(1, 1, 8, 8), path, "after")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_global_figures_are_left(tmp_path: Path):
    import matplotlib._pylab_helpers as helpers

    sample_grid(torch.zeros(1, 1, 8, 8), tmp_path / "a.png", "Samples")
    assert not helpers.Gcf.figs


@pytest.mark.parametrize("samples", [(64, 1, 8, 8), (1, 1, 8, 8), (50, 2), (50, 1), (50, 3)])
def test_long_titles_end_within_the_page(samples: tuple[int, ...], tmp_path: Path, read_page):
    title = "digits: samples from 10 Gaussians fitted to the codes of the training images"
    sample_grid(torch.zeros(samples), tmp_path / "a.png", title)
    page = read_page(tmp_path / "a.png").pixels
    assert (page[:40] < 128).any()  # there is a title
    assert (page[:, -4:] == 255).all()  # and nothing runs out of the page
