"""Pictures of what the decoder does around a code: tiles and values are those that were passed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern.diagnostics import DirectionalVariance, LatentTraversals
from vaekern.evaluation import (
    directional_variance_figure,
    latent_traversals_figure,
    orthogonality_figure,
    perturbed_codes_figure,
    singular_value_gaps_figure,
)

pytest.importorskip("matplotlib")


def traversals(images: torch.Tensor) -> LatentTraversals:
    rows, columns = images.shape[:2]
    return LatentTraversals(
        images,
        torch.arange(rows) + 5,
        torch.linspace(-3, 3, columns),
        0.01 * (1 + torch.arange(rows)),
        torch.arange(rows) + 0.25,
    )


def at(figure, text) -> tuple[float, float]:
    """Where a text is anchored, in pixels (row, column)."""
    width, height = figure.get_size_inches() * figure.dpi
    return (1 - text.get_position()[1]) * height, text.get_position()[0] * width


def test_traversals_stand_in_rows_beside_their_labels_and_below_their_values(
    tmp_path: Path, drawn: list, unlike, read_page
):
    images = unlike(20, 3, 8, 8).unflatten(0, (4, 5))
    latent_traversals_figure(traversals(images), tmp_path / "a.png")
    page, figure = read_page(tmp_path / "a.png"), drawn[0]
    corners = [[page.find(image, 9) for image in row] for row in images]
    assert all(len(found) == 1 for row in corners for found in row)
    place = np.array(corners)[:, :, 0]  # [4, 5, 2]
    assert (place[:, :, 0] == place[:, :1, 0]).all()
    assert (place[:, :, 1] == place[:1, :, 1]).all()
    assert (np.diff(place[:, 0, 0]) == 75).all()
    assert (np.diff(place[0, :, 1]) == 75).all()
    texts = {text.get_text(): at(figure, text) for text in figure.texts}
    for row in range(4):
        label = f"z{row + 5}: σ² {0.01 * (1 + row):.2g}\nKL {row}.25 nats"
        assert texts[label][0] == pytest.approx(place[row, 0, 0] + 36)
    for column, head in enumerate(["z = -3", "-1.5", "0", "1.5", "3"]):
        assert texts[head][1] == pytest.approx(place[0, column, 1] + 36)
        assert texts[head][0] < place[0, 0, 0]


def test_long_labels_do_not_run_into_tiles(tmp_path: Path, read_page):
    images = torch.zeros(2, 3, 1, 8, 8)
    few = traversals(images)._replace(variance=torch.tensor([1.234e-5, 0.0123]))
    many = few._replace(dimension=torch.tensor([1000, 1001]))
    for i, shown in enumerate((few, many)):
        latent_traversals_figure(shown, tmp_path / f"{i}.png")
        page = read_page(tmp_path / f"{i}.png").pixels
        left = int(np.argwhere((page == 0).all(2).sum(0) > 140)[0, 0])  # of the first column
        assert (page[70:, left - 3 : left] == 255).all()
        assert (page[70:, :left] < 200).any()


def test_large_images_keep_the_page_small_and_both_ends(tmp_path: Path, drawn: list, read_page):
    images = torch.zeros(12, 11, 1, 256, 256)
    latent_traversals_figure(traversals(images), tmp_path / "a.png")
    height, width = read_page(tmp_path / "a.png").pixels.shape[:2]
    assert width < 1300
    assert height < 1700
    heads = [text.get_text() for text in drawn[0].texts]
    assert {"z = -3", "3"} < set(heads)


def test_traversals_of_vectors_are_curves_on_one_scale(tmp_path: Path, drawn: list):
    images = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    latent_traversals_figure(traversals(images), tmp_path / "a.png")
    figure = drawn[0]
    assert [a.get_title("left") for a in figure.axes] == [
        f"z{r + 5}: σ² {0.01 * (r + 1):.2g}\nKL {r}.25 nats" for r in range(3)
    ]
    for axes, row in zip(figure.axes, images, strict=True):
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        for line, curve in zip(axes.lines, row.T, strict=True):
            assert np.allclose(line.get_xdata(), np.linspace(-3, 3, 7))
            assert np.allclose(line.get_ydata(), curve)
    assert [t.get_text() for t in figure.legends[0].texts] == ["1", "2", "3", "4"]
    # a diverged decoder and many dimensions still get a picture
    latent_traversals_figure(traversals(torch.full((1, 3, 30), math.nan)), tmp_path / "b.png")
    assert not drawn[1].legends


def directions(images: torch.Tensor | None, d: int = 3) -> DirectionalVariance:
    return DirectionalVariance(
        torch.tensor([[9.0, 8.0, 7.0], [0.5, 0.25, 0.0]])[:, torch.arange(d) % 3],
        torch.tensor([[0.1, 0.2, 0.3], [0.01, 0.02, 1.0]])[:, torch.arange(d) % 3],
        torch.eye(d).expand(2, d, d),
        images,
    )


def test_directions_show_one_sample_with_its_values(tmp_path: Path, drawn: list, unlike, read_page):
    images = unlike(2 * 3 * 4, 1, 8, 8).unflatten(0, (2, 3, 4))
    directional_variance_figure(directions(images), tmp_path / "a.png", sample=1)
    page = read_page(tmp_path / "a.png")
    assert not page.find(images[0, 0, 0], 9)
    tops = []
    for row in images[1]:
        found = [page.find(image, 9) for image in row]
        assert all(len(corners) == 1 for corners in found)
        assert [corners[0][1] - found[0][0][1] for corners in found] == [0, 75, 150, 225]
        tops.append(found[0][0][0])
    texts = {text.get_text(): at(drawn[0], text)[0] for text in drawn[0].texts}
    labels = ["λ 0.01\nvar 0.5", "λ 0.02\nvar 0.25", "λ 1\nvar 0"]
    assert [texts[label] for label in labels] == pytest.approx([top + 36 for top in tops])
    # many directions: evenly spread, with both ends
    images = torch.zeros(2, 40, 2, 1, 8, 8)
    images[:, 0], images[:, -1] = 0.25, 0.75
    directional_variance_figure(directions(images, 40), tmp_path / "b.png")
    page = read_page(tmp_path / "b.png")
    for level in (0.25, 0.75):
        assert len(page.find(torch.full((1, 8, 8), level), 9)) == 2
    assert "12 of 40 directions" in [text.get_text() for text in drawn[1].texts]


@pytest.mark.parametrize("images", [None, torch.zeros(2, 3, 4, 6)])
def test_directions_without_images_are_points(tmp_path: Path, drawn: list, images):
    result = directions(images)
    directional_variance_figure(result, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    assert np.allclose(points[:, 0], result.eigenvalue.flatten())
    assert np.allclose(points[:5, 1], result.variance.flatten()[:5])
    assert 0 < points[5, 1] < 1e-6  # zero, on a log axis
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_neighbours_stand_beside_their_original(tmp_path: Path, drawn: list, unlike, read_page):
    pictures = unlike(2 + 2 + 3 * 2 * 4, 3, 8, 8)
    originals, decoded = pictures[:2], pictures[2:4]
    images = pictures[4:].unflatten(0, (3, 2, 4))
    variances = (0.001, 0.1, 1)
    perturbed_codes_figure(originals, decoded, images, variances, tmp_path / "a.png")
    page = read_page(tmp_path / "a.png")

    def corner(image: torch.Tensor) -> tuple[int, int]:
        (found,) = page.find(image, 9)
        return found

    texts = [(text.get_text(), at(drawn[0], text)[0]) for text in drawn[0].texts]
    for n in range(2):
        top, left = corner(originals[n])
        assert corner(decoded[n]) == (top, left + 75)
        for s, variance in enumerate(variances):
            for k in range(4):
                row, column = corner(images[s, n, k])
                assert row == top + 75 * s
                assert column > left + 75 * (2 + k)  # apart from the first two
            assert (f"s² = {variance:g}", pytest.approx(row + 36)) in texts


def test_orthogonality_has_a_panel_for_each_set_of_dimensions(tmp_path: Path, drawn: list):
    full, active = torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([0.5, 0.5])
    random, random_active = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0, 2.0])
    orthogonality_figure(
        full, tmp_path / "a.png", active=active, random=random, random_active=random_active
    )
    panels = drawn[0].axes
    shown = ((full, random), (active, random_active))
    for axes, (model, baseline) in zip(panels, shown, strict=True):
        texts = [text.get_text() for text in axes.get_legend().texts]
        assert texts == [
            f"random rotations, mean {baseline.mean():.3g}",
            f"decoder, mean {model.mean():.3g}",
        ]
        for values, steps, mean in zip(
            (baseline, model), axes.patches, axes.collections, strict=True
        ):
            share, edges, _ = steps.get_data()
            expected, _ = np.histogram(values, edges)
            assert np.allclose(share, 100 * expected / len(values))
            assert share.sum() == pytest.approx(100)
            assert mean.get_segments()[0][:, 0].tolist() == pytest.approx(
                [values.mean().item()] * 2
            )
        assert axes.get_xlim() == panels[0].get_xlim()  # panels compare
    orthogonality_figure(torch.zeros(3), tmp_path / "b.png")
    assert len(drawn[1].axes) == 1


def test_gaps_show_median_and_spread(tmp_path: Path, drawn: list):
    gaps = torch.linspace(0, 1, 101)[:, None] * torch.tensor([1.0, 0.5])
    singular_value_gaps_figure(gaps, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    bars, dots = axes.collections
    assert np.allclose(dots.get_offsets(), [[1, 0.5], [2, 0.25]])
    assert np.allclose([s[:, 1] for s in bars.get_segments()], [[0.05, 0.95], [0.025, 0.475]])
    singular_value_gaps_figure(torch.zeros(3, 1), tmp_path / "b.png")


IMAGES, VECTORS = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda p: latent_traversals_figure(traversals(torch.zeros(2, 3, 2, 8, 8)), p), "C 1 or 3"),
        (lambda p: directional_variance_figure(directions(None), p, sample=2), "below 2"),
        (lambda p: perturbed_codes_figure(VECTORS, VECTORS, VECTORS, (1,), p), "expected_gap"),
        (
            lambda p: perturbed_codes_figure(IMAGES, IMAGES, IMAGES, (1,), p),
            r"\[S, N, K, C, H, W\]",
        ),
        (
            lambda p: perturbed_codes_figure(IMAGES, IMAGES[:1], IMAGES[None, :, None], (1,), p),
            r"got \[1, 1, 8, 8\]",
        ),
        (lambda p: orthogonality_figure(torch.zeros(0), p), "at least one"),
        (
            lambda p: orthogonality_figure(torch.zeros(3), p, random=torch.tensor([math.nan])),
            "random must be finite",
        ),
        (lambda p: singular_value_gaps_figure(torch.zeros(3), p), r"\[3\]"),
    ],
)
def test_bad_input_leaves_no_file(tmp_path: Path, call, word: str):
    with pytest.raises(ValueError, match=word):
        call(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
