"""Generated sets: their dimension, their factors, and what the pictures show in numbers."""

from __future__ import annotations

import dataclasses
import doctest
import math

import pytest
import torch

from vaekern import data
from vaekern.data import (
    arrays,
    generated,
    manifold,
    manifold_images,
    manifolds,
    noise,
    pen_strokes,
    rows,
    sprite_grid,
    sprites,
    strokes,
    synth_lin,
    synthetic,
    words,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(call, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert ". " not in text
    assert text[-1] != "."
    return text


# ----------------------------------------------------------------------- manifolds


@pytest.mark.parametrize(("r", "d"), [(1, 2), (2, 20), (5, 8), (10, 64), (3, 3)])
def test_manifold_has_its_dimension(r: int, d: int):
    x, u = manifold(4000, r, d, generator=seeded())
    assert u.shape == (4000, r)
    assert u.mean().abs() < 0.05
    assert u.var(0).sub(1).abs().max() < 0.15
    # u is a linear function of x on the manifold: injective
    affine = torch.cat([x, torch.ones(4000, 1)], 1).double()
    solution = torch.linalg.lstsq(affine, u.double(), driver="gelsd").solution
    assert (affine @ solution - u).abs().max() < 1e-4
    # min(r, d - r) further directions: the manifold is bent into them
    spectrum = torch.linalg.svdvals(x.double() - x.double().mean(0))
    assert int((spectrum > 1e-4 * spectrum[0]).sum()) == r + min(r, d - r)


def test_manifold_is_one_smooth_surface():
    x, u = manifold(3000, 2, 10, generator=seeded())
    other = manifold(3000, 2, 10, generator=seeded(1))
    distance, nearest = torch.cdist(u, other.factors).min(1)
    # the Jacobian's largest singular value is at most 1 + 1.5 |W|, where |W| <= sqrt(p) = sqrt(2)
    assert ((x - other.x[nearest]).norm(dim=1) <= (1 + 1.5 * 2**0.5) * distance + 1e-5).all()
    elsewhere = manifold(3000, 2, 10, generator=seeded(), embedding_seed=1)
    assert torch.equal(elsewhere.factors, u)
    assert (elsewhere.x - x).abs().max() > 0.5


@pytest.mark.parametrize("r", [1, 2, 5, 10])
def test_manifold_images_show_their_coordinates(r: int):
    """Each coordinate is read back from the centre of mass of its spot."""
    n, size = 200, 48
    x, u = manifold_images(n, r, size=size, generator=seeded())
    assert x.shape == (n, 1, size, size)
    assert x.min() >= 0
    assert 0.9 < x.max() <= 1
    cells = (r + 1) // 2
    columns = math.ceil(math.sqrt(cells))
    down = math.ceil(cells / columns)
    side = size / columns
    ticks = torch.arange(size) + 0.5
    for k in range(cells):
        top = round(size / 2 + (k // columns - down / 2) * side)
        left = round((k % columns) * side)
        cell = x[:, 0, top : top + int(side), left : left + int(side)].double()
        mass = cell.sum((1, 2))
        across = (cell.sum(1) * ticks[left : left + int(side)]).sum(1) / mass
        along = (cell.sum(2) * ticks[top : top + int(side)]).sum(1) / mass
        wanted = 0.16 * side * torch.erf(math.sqrt(2) * u.double())
        middle_x, middle_y = left + side / 2, top + side / 2
        # a spot ends 2.8 deviations of 0.12 cells from its cell: what is cut off there pulls by
        # 0.0009 cells, what a neighbour sends in, 0.2 % of a spot half a cell away, by 0.001 each
        assert (across - middle_x - wanted[:, 2 * k]).abs().max() < 0.004 * side
        if 2 * k + 1 < r:
            assert (along - middle_y - wanted[:, 2 * k + 1]).abs().max() < 0.004 * side
        else:
            assert (along - middle_y).abs().max() < 0.004 * side


def test_manifolds_by_name():
    vectors = data.load("manifold:3:7")
    assert (vectors.name, vectors.kind) == ("manifold-3-7", "vector")
    assert vectors.train.shape == (45_000, 7)
    assert vectors.factor_names == ("u_1", "u_2", "u_3")
    assert data.load("manifold").sample_shape == (20,)
    assert data.load("manifold::30").sample_shape == (30,)
    images = data.load("manifold-images:2:50", image_size=16)
    assert (images.name, images.sample_shape) == ("manifold-images-2", (1, 16, 16))
    assert (len(images.train), len(images.test)) == (45, 5)
    made = manifold_images(50, 2, size=16, generator=seeded())
    place = (made.factors == images.test_factors[0]).all(1).nonzero().item()
    assert torch.equal(made.x[place], images.test[0])


def test_manifold_mistakes():
    assert "n must be at least 1" in error(lambda: manifold(0))
    assert "r must be at least 1" in error(lambda: manifold(5, 0))
    assert "at least r = 5" in error(lambda: manifold(5, 5, 4))
    error(lambda: manifold(5, 2.0), TypeError)
    assert "size must be at least 18 pixels" in error(lambda: manifold_images(5, 10, size=17))
    assert "R of spec manifold[:R][:D] must be a whole number" in error(
        lambda: data.load("manifold:two")
    )
    assert "must be written manifold[:R][:D]" in error(lambda: data.load("manifold:1:2:3"))
    assert "image_size" in error(lambda: data.load("manifold", image_size=8))


# ---------------------------------------------------------------------- scale ratio


@pytest.mark.parametrize("ratio", [1.0, 1.2, 1.5])
def test_scale_ratio_of_synth_lin_by_name(ratio: float):
    dataset = data.load(f"synth-lin:{ratio}")
    made = synth_lin(50_000, ratio, generator=seeded()).x
    together = torch.cat([dataset.train, dataset.test])
    assert torch.equal(together.sort(0).values, made.sort(0).values)
    spectrum = torch.linalg.svdvals(made - made.mean(0))
    assert float(spectrum[0] / spectrum[1]) == pytest.approx(ratio, rel=0.01)
    assert "RATIO" in error(lambda: data.load("synth-lin:wide"))
    assert "scale_ratio must be positive" in error(lambda: data.load("synth-lin:0"))


# -------------------------------------------------------------------------- sprites


def test_sprites_are_where_and_how_large_their_factors_say():
    x, factors = sprites(3000, generator=seeded())
    assert x.unique().tolist() == [0, 1]
    shape, scale, _, across, along = factors.unbind(1)
    ticks = torch.arange(64) + 0.5
    area = x.sum((1, 2, 3))
    middle_x = (x.sum((1, 2)) * ticks).sum(1) / area
    middle_y = (x.sum((1, 3)) * ticks).sum(1) / area
    # others' centre of mass is their middle up to the pixels' edges; a heart's is above it, by 0.26
    # of its radius of 8.55 pixels
    for kind, slack in ((0, 0.2), (1, 0.35), (2, 2.6)):
        some = shape == kind
        assert (middle_x - 16.5 - 31 * across)[some].abs().max() < slack
        assert (middle_y - 16.5 - 31 * along)[some].abs().max() < slack
    expected = {
        0: 4 * 81.0,  # a square of side 18
        1: math.pi * 1.4 * 0.7 * 81,
        2: 3.6615 * 0.95**2 * 81,  # the area within the heart's curve is 3.6615
    }
    for kind, whole in expected.items():
        some = shape == kind
        # counted in pixels: the smallest ellipses have 62 of them and an outline of 31
        relative = area[some] / (whole * scale[some] ** 2)
        assert (relative - 1).abs().max() < 0.15
        assert (relative.mean() - 1).abs() < 0.01


def test_sprites_turn():
    """The heart stands upright at 0, and the long axis of the ellipse turns by the orientation."""
    points = torch.tensor([[2, 5, k, 10, 10] for k in (0, 39)])
    strides = torch.tensor([6 * 40 * 1024, 40 * 1024, 1024, 32, 1])
    upright, again = sprite_grid._stamped((points * strides).sum(1), sprite_grid._stamps(False))
    assert torch.equal(upright, again)  # 0 and 2 pi
    heart = upright[0]
    assert torch.equal(heart[:, 14:39], heart[:, 14:39].flip(1))  # about x = 26.5
    counts = heart.sum(1)
    filled = counts.nonzero().flatten()
    assert counts[filled[:5]].sum() > counts[filled[-5:]].sum()  # lobes above, tip below
    ellipses = (torch.tensor([[1, 5, k, 10, 10] for k in range(40)]) * strides).sum(1)
    factors = sprite_grid._factors(ellipses)
    images = sprite_grid._stamped(ellipses, sprite_grid._stamps(True))[:, 0]
    ticks = torch.arange(64) + 0.5 - 26.5
    mass = images.sum((1, 2))
    xx = (images.sum(1) * ticks**2).sum(1) / mass
    yy = (images.sum(2) * ticks**2).sum(1) / mass
    xy = torch.einsum("nyx,y,x->n", images, ticks, ticks) / mass
    # the long axis of the second moments; pixel rows go down, and so does the positive turn
    direction = 0.5 * torch.atan2(2 * xy, xx - yy)
    wanted = factors[:, 2]
    gap = (direction - wanted + math.pi / 2) % math.pi - math.pi / 2
    assert gap.abs().max() < 0.02


def test_soft_sprites_are_the_same_outlines():
    hard, soft = sprites(400, generator=seeded()), sprites(400, antialias=True, generator=seeded())
    assert torch.equal(hard.factors, soft.factors)
    assert ((soft.x * 16) == (soft.x * 16).round()).all()
    between = (soft.x > 0) & (soft.x < 1)
    assert 0.005 < between.float().mean() < 0.03
    inside = soft.x == 1
    assert (hard.x[inside] == 1).all()
    assert (hard.x[soft.x == 0] == 0).all()


def test_the_grid_of_sprites():
    every = sprite_grid._factors(torch.arange(sprite_grid.ALL))
    # the places that the factors stand for count through the grid, the last factor fastest
    steps = (every.double() - torch.tensor([0, 0.5, 0, 0, 0])) * torch.tensor(
        [1, 10, 39 / (2 * math.pi), 31, 31], dtype=torch.float64
    )
    assert (steps - steps.round()).abs().max() < 1e-5
    strides = torch.tensor([6 * 40 * 1024, 40 * 1024, 1024, 32, 1], dtype=torch.float64)
    assert torch.equal((steps.round() @ strides).long(), torch.arange(3 * 6 * 40 * 32 * 32))
    assert every.amin(0).tolist() == [0, 0.5, 0, 0, 0]
    assert every.amax(0).tolist() == pytest.approx([2, 1, 2 * math.pi, 1, 1])
    chosen = sprites(500, generator=seeded()).factors
    assert len(chosen.unique(dim=0)) == 500  # different points


def test_sprites_by_name():
    dataset = data.load("sprites:600")
    assert dataset.sample_shape == (1, 64, 64)
    assert dataset.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert dataset.factor_is_class == [True, False, False, False, False]
    assert torch.equal(dataset.train_labels, dataset.train_factors[:, 0].long())
    made = sprites(600, generator=seeded())
    place = (made.factors == dataset.test_factors[3]).all(1).nonzero().item()
    assert torch.equal(made.x[place], dataset.test[3])
    rows = data.load("sprites:600", stream=True, image_size=32)
    assert isinstance(rows.train, data.Rows)
    assert torch.equal(rows.train[:], data.load("sprites:600", image_size=32).train)
    # the whole grid takes no memory where it is drawn batch by batch
    assert len(data.load("sprites:737280", stream=True).train) == 663_552
    assert data.load("soft-sprites:50").name == "soft-sprites"
    assert "n must be at most 737280" in error(lambda: data.load("sprites:737281"))
    assert "N of spec sprites[:N]" in error(lambda: data.load("sprites:many"))


# -------------------------------------------------------------------------- strokes


def test_strokes_are_ten_classes_that_can_be_told_apart():
    x, factors = strokes(3000, generator=seeded())
    assert x.shape == (3000, 1, 28, 28)
    assert x.min() >= 0
    assert x.max() == 1
    digit = factors[:, 0].long()
    assert digit.bincount().tolist() == [300] * 10
    flat = x.flatten(1)
    nearest = torch.cdist(flat[2500:], flat[:2500]).argmin(1)
    assert (digit[nearest] == digit[2500:]).float().mean() > 0.9
    # nothing is cut off: digits of 18 pixels, scaled by 1.1, bent and moved by 2
    assert x[:, :, [0, -1]].sum() + x[:, :, :, [0, -1]].sum() == 0
    assert len(x.flatten(1).unique(dim=0)) == 3000


def test_a_stroke_is_as_thick_as_its_pen():
    x, factors = strokes(2000, generator=seeded())
    ones = factors[:, 0] == 1
    pen, height = factors[ones, 5], factors[ones, 4]
    # rows through the stem of a 1, tilted and slanted by angles the row sees as a longer cut
    lower = x[ones, 0, 15:19].sum(2).mean(1)
    # and dots up to 0.55 pixels apart, between which an edge of radius 1.2 falls back by 0.03 on
    # either side, 4 % of the thinnest pen
    assert (lower / pen).min() > 0.93
    assert (lower / pen).max() < 1.25
    assert height.aminmax().min > 0.85


def test_strokes_by_name():
    dataset = data.load("strokes:200")
    assert dataset.factor_names[0] == "digit"
    assert dataset.factor_is_class == [True] + [False] * 5
    assert torch.equal(dataset.test_labels, dataset.test_factors[:, 0].long())
    assert dataset.test_labels.bincount().tolist() == [2] * 10
    again = data.load("strokes:200", seed=4)
    together = [torch.cat([each.train, each.test]).flatten(1) for each in (dataset, again)]
    assert torch.equal(together[0].sort(0).values, together[1].sort(0).values)
    assert data.load("strokes:20", image_size=14).sample_shape == (1, 14, 14)


# ---------------------------------------------------------------------------- noise


@pytest.mark.parametrize("pattern", noise.PATTERNS)
def test_noise_is_where_the_pattern_says_and_as_strong(pattern: str):
    clean, noisy = data.load("digits"), data.load(f"noisy:{pattern}:0.1:digits")
    assert noisy.name == f"digits-{pattern}-0.1"
    assert noisy.value_range == (0.0, 1.0)
    for split in ("train", "test"):
        added = getattr(noisy, split) - getattr(clean, split)
        labels = getattr(clean, f"{split}_labels")
        upper = torch.zeros(1, 8, 8, dtype=torch.bool)
        upper[:, :4] = True
        where = torch.ones_like(added, dtype=torch.bool)
        if "spatial" in pattern:
            where &= upper
        if "conditional" in pattern:
            where &= (labels < 5)[:, None, None, None]
        assert (added[~where] == 0).all()
        assert (added[where] != 0).float().mean() > 0.999
        variance = added[where].double().square().mean()
        # a variance of n normal draws has the relative deviation sqrt(2 / n)
        n = int(where.sum())
        assert abs(float(variance) / 0.1 - 1) < 5 * math.sqrt(2 / n)
        assert abs(float(added[where].double().mean())) < 5 * math.sqrt(0.1 / n)
        found = noisy.noise.means(added.square(), split)
        share = {"S": float((labels < 5).float().mean())}
        for name, value in found.items():
            is_noisy = noisy.noise.is_noisy(name)
            if is_noisy is False:
                assert value == 0
            elif is_noisy is True:
                assert value == pytest.approx(0.1, rel=0.2)
            else:
                assert 0.02 < value < 0.08
        assert found["all"] == pytest.approx(
            share["S"] * found["S"] + (1 - share["S"]) * found["B"]
        )
    # once for a data set: not the same on both splits, the same at the next load
    assert torch.equal(noisy.train, data.load(f"noisy:{pattern}:0.1:digits").train)
    assert not torch.equal(
        (noisy.train - clean.train)[:100, :, :4], (noisy.test - clean.test)[:100, :, :4]
    )


def test_means_of_each_covariance():
    """The variance of each objective's shape lands in its partitions."""
    small = torch.tensor([True, True, False])
    upper = torch.tensor([[[True, True], [False, False]]])
    found = noise.Noise("spatial", 0.1, upper, small, small)
    full = torch.arange(12.0).view(3, 1, 2, 2)
    assert found.means(full) == {
        "all": 5.5,
        "U": 4.5,
        "L": 6.5,
        "S": 3.5,
        "B": 9.5,
        "SU": 2.5,
        "SL": 4.5,
        "BU": 8.5,
        "BL": 10.5,
    }
    assert found.means(torch.tensor(0.3))["BL"] == pytest.approx(0.3)
    assert found.means(full[0])["SU"] == found.means(full[0])["U"] == 0.5
    assert found.means(torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1))["S"] == 1.5
    assert "[3, 1, 2, 2], got [3]" in error(lambda: found.means(torch.ones(3)))
    assert "did you mean" in error(lambda: found.is_noisy("SUU"))


def test_noise_of_another_number_of_classes_and_without_labels():
    soft = data.load("noisy:conditional:0.01:sprites:90")
    # of three shapes the lower half is the first: squares
    assert torch.equal(soft.noise.train_small, soft.train_labels < 1)
    images = data.load("manifold-images:2:40")
    # without labels by the first factor, halved at its median in training
    by_factor = noise.add_noise(images, "conditional", 0.1)
    small = images.train_factors[:, 0] < images.train_factors[:, 0].median()
    assert torch.equal(by_factor.noise.train_small, small)
    changed = (by_factor.train != images.train).flatten(1).any(1)
    assert torch.equal(changed, small)
    bare = dataclasses.replace(images, train_factors=None, test_factors=None)
    assert "has none" in error(lambda: noise.add_noise(bare, "conditional", 0.1))
    assert noise.add_noise(bare, "spatial", 0.1).noise.train_small.all()
    one = dataclasses.replace(
        images, train_labels=torch.zeros(36).long(), test_labels=torch.zeros(4).long()
    )
    assert "has one" in error(lambda: noise.add_noise(one, "conditional", 0.1))
    noisy = noise.add_noise(images, "uniform", 0.1)
    assert "noise already" in error(lambda: noise.add_noise(noisy, "uniform", 0.1))
    zero = noise.add_noise(images, "uniform", 0)
    assert torch.equal(zero.train, images.train)


def test_noise_mistakes():
    assert "did you mean spatial?" in error(lambda: data.load("noisy:spatal:0.1:digits"))
    assert "noisy:spatial:0.1:digits" in error(lambda: data.load("noisy:spatial:digits"))
    assert "noisy:PATTERN:VARIANCE:SPEC" in error(lambda: data.load("noisy:spatial:0.1"))
    assert "did you mean digits?" in error(lambda: data.load("noisy:spatial:0.1:digts"))
    assert "holds vectors" in error(lambda: data.load("noisy:spatial:0.1:synth-lin"))
    assert "must be written noisy:PATTERN:VARIANCE:SPEC" in error(lambda: data.load("noisy"))
    assert "stream" in error(lambda: data.load("noisy:spatial:0.1:sprites:50", stream=True))
    digits = data.load("digits")
    assert "variance must be finite" in error(lambda: noise.add_noise(digits, "uniform", -1.0))
    assert "at most" in error(lambda: data.load("noisy:uniform:1e300:digits"))
    assert data.load("noisy:uniform:1E-2:digits").noise.variance == 0.01
    for word in ("1.2.3", ".", "nan"):
        text = error(lambda word=word: data.load(f"noisy:uniform:{word}:digits"))
        assert "noisy:PATTERN:VARIANCE:SPEC" in text
    assert "finite in float32" in error(lambda: data.load("synth-lin:1e300"))
    assert "leave stream out" in error(lambda: data.load("noisy:spatial:0.1:digits", stream=True))
    error(lambda: noise.add_noise(digits, "uniform", "0.1"), TypeError)
    on_disk = data.load("sprites:50", stream=True)
    assert "stream=False" in error(lambda: noise.add_noise(on_disk, "uniform", 0.1))


@pytest.mark.parametrize(
    "module",
    [arrays, generated, manifolds, noise, pen_strokes, rows, sprite_grid, synthetic, words, data],
)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0
