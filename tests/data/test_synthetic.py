"""The embedded unit squares: their geometry, and what --data makes of them."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

from vaekern import data
from vaekern.data import synth_lin, synth_nonlin, synthetic


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_synth_lin_is_a_stretched_and_turned_square():
    for ratio in (1.0, 2.0, 5.0):
        x, factors = synth_lin(1000, ratio, generator=seeded())
        assert x.dtype == factors.dtype == torch.float32
        assert 0 <= factors.min() < 0.01 < 0.99 < factors.max() <= 1
        embedding = torch.linalg.lstsq(factors.double(), x.double()).solution.T
        # linear without an offset, up to the rounding of both to float32
        assert (x - factors @ embedding.T.float()).abs().max() < 1e-5
        gram = embedding.T @ embedding
        expected = torch.diag(torch.tensor([ratio**2, 1.0], dtype=torch.float64))
        torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-5)


def test_the_turn_is_45_degrees_about_the_axis():
    R = synthetic._turn()
    torch.testing.assert_close(R @ R.T, torch.eye(3).double())
    axis = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(R @ axis, axis)
    assert float(R.trace()) == pytest.approx(1 + 2 * math.cos(math.pi / 4))
    # right-handed: v, R v and the axis in this order
    v = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    assert torch.linalg.cross(v, R @ v) @ axis > 0


def test_synth_nonlin_is_one_curved_embedding():
    x, factors = synth_nonlin(2000, generator=seeded())
    again, other = synth_nonlin(2000, generator=seeded()), synth_nonlin(2000, generator=seeded(1))
    assert torch.equal(again.x, x)
    assert not torch.equal(other.factors, factors)
    # the embedding is the same one: near neighbours among the factors are near in x
    distance, nearest = torch.cdist(factors, other.factors).min(1)
    assert ((x - other.x[nearest]).norm(dim=1) < 5 * distance + 1e-5).all()
    elsewhere = synth_nonlin(2000, generator=seeded(), embedding_seed=1)
    assert torch.equal(elsewhere.factors, factors)
    assert (elsewhere.x - x).abs().max() > 0.1
    # no plane contains it, yet two coordinates determine it
    affine = torch.cat([factors, torch.ones(2000, 1)], 1)
    residual = x - affine @ torch.linalg.lstsq(affine, x).solution
    assert residual.abs().max() > 0.01
    # affine, quadratic, cubic, ...: a smooth function of the factors
    powers = torch.stack([a**i * b**j for i in range(7) for j in range(7 - i)
                          for a, b in [factors.double().unbind(1)]], 1)  # fmt: skip
    fitted = powers @ torch.linalg.lstsq(powers, x.double()).solution
    assert (x - fitted).abs().max() < 1e-3


@pytest.mark.parametrize(("name", "dims"), [("synth-lin", 3), ("synth-nonlin", 6)])
def test_by_name(name: str, dims: int):
    dataset = data.load(name)
    assert (dataset.name, dataset.kind, dataset.value_range) == (name, "vector", None)
    assert dataset.train.shape == (45_000, dims)
    assert dataset.test.shape == (5_000, dims)
    made = (synth_lin if dims == 3 else synth_nonlin)(50_000, generator=seeded()).x
    together = torch.cat([dataset.train, dataset.test]).double().sum(0)
    torch.testing.assert_close(together, made.double().sum(0))
    with pytest.raises(ValueError, match=f"image_size=8 applies to images, but {name}"):
        data.load(name, image_size=8)


def test_factors_stay_with_their_points():
    dataset = data.load("synth-lin", seed=3)
    for x, factors in (
        (dataset.train, dataset.train_factors),
        (dataset.test, dataset.test_factors),
    ):
        # the turn keeps lengths
        squares = (factors * torch.tensor([2.0, 1.0])).square().sum(1)
        torch.testing.assert_close(x.square().sum(1), squares)
    assert data.load("digits").test_factors is None


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: synth_lin(0), ValueError, "n must be at least 1"),
        (lambda: synth_lin(1.5), TypeError, "whole number"),  # type: ignore[arg-type]
        (lambda: synth_lin(5, 0.0), ValueError, "scale_ratio"),
        (lambda: synth_lin(5, "2"), TypeError, "scale_ratio"),  # type: ignore[arg-type]
        (lambda: synth_lin(5, math.inf), ValueError, "scale_ratio"),
        (lambda: synth_nonlin(-1), ValueError, "n must be at least 1"),
        (lambda: synth_nonlin(True), TypeError, "whole number"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
    assert ". " not in str(caught.value)


def test_examples_run():
    assert doctest.testmod(synthetic) == (0, 3)
