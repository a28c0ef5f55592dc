"""Expected gap and expected local smoothness, in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vaekern.diagnostics import expected_gap, expected_local_smoothness


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(5, 3, generator=generator()).double()


def test_smoothness_of_a_linear_decoder_is_its_squared_norm(weight):
    found = expected_local_smoothness(lambda z: z @ weight.T, torch.zeros(7, 3).double())
    assert float(found.smoothness) == pytest.approx(float(weight.square().sum()), rel=1e-14)
    assert float(found.per_dimension) == pytest.approx(float(weight.square().sum()) / 3, rel=1e-14)


def test_smoothness_is_a_mean_over_the_data():
    # |d z^2 / dz|^2 = 4 |z|^2, an image of 1 x 2 x 2
    mu = torch.randn(9, 4, generator=generator()).double()
    found = expected_local_smoothness(lambda z: z.square().view(-1, 1, 2, 2), mu, chunk_size=2)
    assert float(found.smoothness) == pytest.approx(4 * float(mu.square().sum()) / 9, rel=1e-13)


@pytest.mark.parametrize("variance", [1e-6, 1e-2, 100.0])
def test_gap_of_a_linear_decoder_does_not_depend_on_the_noise(weight, variance: float):
    mu = torch.randn(4000, 3, generator=generator(1)).double()
    found = expected_gap(lambda z: z @ weight.T, mu, variance, draws=2, generator=generator(2))
    squared_norm = float(weight.square().sum())
    # |W n|^2 / 2 with n ~ N(0, 2 I) has the variance 2 |W^T W|_F^2
    spread = math.sqrt(2 * float((weight.T @ weight).square().sum()) / 8000)
    assert float(found.smoothness) == pytest.approx(squared_norm, abs=4 * spread)
    # the same draws at another scale: exactly proportional
    other = expected_gap(lambda z: z @ weight.T, mu, 1.0, draws=2, generator=generator(2))
    assert float(found.gap) == pytest.approx(variance * float(other.gap), rel=1e-7)
    assert float(found.gap) == pytest.approx(2 * variance * float(found.smoothness), rel=1e-14)
    assert float(found.per_dimension) == pytest.approx(float(found.smoothness) / 3, rel=1e-14)


def test_gap_by_definition():
    mu = torch.randn(6, 2, generator=generator()).double()
    found = expected_gap(torch.sin, mu, 0.3, draws=2, generator=generator(4))
    total, seeded = 0.0, generator(4)
    for _ in range(2):
        one, other = torch.randn(2, 6, 2, dtype=torch.float64, generator=seeded)
        root = math.sqrt(0.3)
        total += float((torch.sin(mu + root * one) - torch.sin(mu + root * other)).square().sum())
    assert float(found.gap) == pytest.approx(total / 12, rel=1e-12)


def test_gap_tends_to_the_smoothness():
    mu = torch.randn(2000, 2, generator=generator()).double()
    exact = float(expected_local_smoothness(torch.sin, mu).smoothness)
    # E over the noise of sin: e^{-s^2} times a wave, so the gap flattens as s grows
    small, large = (
        float(expected_gap(torch.sin, mu, s2, draws=10, generator=generator(1)).smoothness)
        for s2 in (1e-4, 1.0)
    )
    # the variance of |J n|^2 / 2 is at most 4, with 20000 draws
    assert small == pytest.approx(exact, abs=4 * 2 / math.sqrt(20_000))
    assert large < 0.8 * exact


def test_dropout_is_off_and_modes_come_back():
    decoder = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    decoder[2].eval()
    mu = torch.zeros(50, 2)
    values = [expected_gap(decoder, mu, generator=generator(3)).gap for _ in range(2)]
    assert torch.equal(*values)
    norm = decoder[0].weight.double().square().sum()  # a fresh batch norm divides by sqrt(1 + eps)
    found = expected_local_smoothness(decoder, mu).smoothness
    torch.testing.assert_close(found, norm.detach() / (1 + 1e-5), rtol=1e-6, atol=0)
    assert (decoder.training, decoder[1].training, decoder[2].training) == (True, True, False)


def test_a_whole_model_with_its_activation(linear_vae):
    model = linear_vae((2.0, 1.0), 4, sigma=0.5)
    mu = model.encoder(model.data(20))[0].detach()
    found = expected_local_smoothness(model.vae(), mu)
    assert float(found.smoothness) == pytest.approx(5.0, rel=1e-12)
    gap = expected_gap(model.vae(), mu, generator=generator())
    alone = expected_gap(model.decoder, mu, generator=generator())
    assert torch.equal(gap.gap, alone.gap)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: expected_gap(torch.sin, torch.zeros(3, 2), 0.0), ValueError, "noise_variance"),
        (lambda: expected_gap(torch.sin, torch.zeros(3, 2), draws=0), ValueError, "draws"),
        (lambda: expected_gap(torch.sin, torch.zeros(3)), ValueError, "[3]"),
        (lambda: expected_gap(3, torch.zeros(3, 2)), TypeError, "int"),
        (lambda: expected_local_smoothness(torch.sin, torch.zeros(3)), ValueError, "[3]"),
    ],
)
def test_bad_input(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
