"""Active units and the spectrum of encoder variances, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from vaekern.diagnostics import active_units, encoder_variance_spectrum


def two_point(stds: list[float]) -> torch.Tensor:
    """Means +s and -s, whose population variance is exactly s^2; far from 0 to catch E[mu^2]."""
    s = torch.tensor(stds, dtype=torch.float64)
    return 3 + torch.stack([s, -s])


def test_the_published_definitions_draw_their_own_lines():
    mu = two_point([0.0, 0.09, 0.11, 0.49, 0.51, 2.0])
    burda, rolinek = active_units(mu), active_units(mu, definition="std")
    assert burda.mask.tolist() == [False, False, True, True, True, True]
    assert rolinek.mask.tolist() == [False, False, False, False, True, True]
    assert (burda.active, rolinek.active) == (4, 2)
    assert torch.allclose(burda.statistic, rolinek.statistic**2, atol=1e-15)
    assert burda.statistic[-1].item() == pytest.approx(4)


def test_the_posterior_definition_reads_logvar_only():
    logvar = torch.tensor([[-9.0, 0.0, math.log(0.4)], [-9.0, 0.0, math.log(0.7)]])
    result = active_units(two_point([5.0, 5.0, 5.0]), logvar, definition="posterior")
    assert result.mask.tolist() == [True, False, False]
    # the mean of the variances (0.55), not the variance at the mean log (0.53)
    assert result.statistic[2].item() == pytest.approx(0.55, rel=1e-6)
    assert (
        active_units(two_point([5.0] * 3), logvar, definition="posterior", threshold=0.6).active
        == 2
    )


def test_threshold_replaces_the_published_one():
    mu = two_point([0.1, 0.2, 0.3])
    assert active_units(mu, threshold=0.05).mask.tolist() == [False, False, True]
    assert active_units(mu, definition="std", threshold=0.15).active == 2


def test_half_precision_means_do_not_lose_the_variance():
    # bfloat16 arithmetic around 3 could not resolve a spread this small relative to the mean
    mu = torch.tensor([[3.0, 3.0], [3.015625, 3.25]], dtype=torch.bfloat16)
    assert active_units(mu).statistic.tolist() == [0.0078125**2, 0.125**2]


def test_spectrum_of_a_linear_decoder():
    # the best encoder of an orthogonal linear decoder has variance 1 / (1 + |J_j|^2 / gamma)
    columns, gamma = torch.tensor([3.0, 0.0, 1.0, 0.0], dtype=torch.float64), 0.01
    variance = 1 / (1 + columns**2 / gamma)
    spectrum = encoder_variance_spectrum(variance.log().expand(6, 4))
    assert spectrum.order[:2].tolist() == [0, 2]
    assert sorted(spectrum.order[2:].tolist()) == [1, 3]
    assert torch.allclose(spectrum.variance, variance.sort().values, rtol=1e-14)
    assert (spectrum.active, spectrum.passive) == (2, 2)


def test_spectrum_is_ascending_and_its_order_maps_back():
    logvar = torch.randn(11, 9, generator=torch.Generator().manual_seed(0))
    spectrum = encoder_variance_spectrum(logvar)
    means = logvar.double().exp().mean(0)
    assert (spectrum.variance.diff() >= 0).all()
    assert torch.equal(spectrum.variance, means[spectrum.order])
    assert spectrum.active + spectrum.passive == 9
    assert spectrum.active == int((means < 0.5).sum())
    assert encoder_variance_spectrum(logvar, threshold=1e9).passive == 0


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: active_units(torch.zeros(3)), ValueError, "[3]"),
        (lambda: active_units(torch.zeros(0, 3)), ValueError, "at least 1 sample,"),
        (lambda: active_units(torch.zeros(3, 2), torch.zeros(3, 4)), ValueError, "4 and 2"),
        (lambda: active_units(torch.zeros(3, 2), torch.zeros(4, 2)), ValueError, "4 and 3"),
        (lambda: active_units(torch.zeros(3, 2), definition="x"), ValueError, "variance, std"),  # type: ignore[arg-type]
        (lambda: active_units(torch.zeros(3, 2), threshold=0), ValueError, "threshold"),
        (lambda: active_units(torch.zeros(3, 2), definition="posterior"), ValueError, "logvar"),
        (lambda: encoder_variance_spectrum(torch.zeros(3, 2).int()), TypeError, "int32"),
        (lambda: encoder_variance_spectrum(torch.full((3, 2), math.inf)), ValueError, "finite"),
        (lambda: encoder_variance_spectrum(torch.zeros(3, 2), threshold=-1), ValueError, "-1"),
    ],
)
def test_bad_input(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
