"""Active units and the spectrum of encoder variances, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from vaekern.diagnostics import (
    active_units,
    encoder_variance_histogram,
    encoder_variance_spectrum,
    latents,
)


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


def rotation(dims: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dims, dims, generator=generator).double())[0]


def full_covariances(eigenvalues: list[list[float]]) -> torch.Tensor:
    """Cholesky factors of Q diag(l) Q^T, with another rotation Q for each sample."""
    factors = []
    for seed, row in enumerate(torch.tensor(eigenvalues, dtype=torch.float64)):
        q = rotation(len(row), seed)
        # R of a QR decomposition, as forming the covariance would lose its small eigenvalues
        upper = torch.linalg.qr(row.sqrt()[:, None] * q.T)[1]
        factors.append((upper * upper.diagonal().sign()[:, None]).T)
    return torch.stack(factors)


def test_full_covariances_show_their_eigenvalues():
    values = [[0.5, 1e-9, 1.0], [0.7, 0.9, 3e-9], [1e-9, 1.2, 0.6]]
    factors = full_covariances(values)
    spectrum = encoder_variance_spectrum(scale_tril=factors)
    expected = torch.tensor(values, dtype=torch.float64).sort(1).values.mean(0)
    # an eigenvalue's relative error is 2^-52 times the condition number of L, 3e4
    assert torch.allclose(spectrum.variance, expected, rtol=1e-10, atol=0)
    assert spectrum.order.tolist() == [0, 1, 2]
    assert (spectrum.active, spectrum.passive) == (1, 2)
    above = torch.full((3, 3), 7.0, dtype=torch.float64).triu(1)
    assert torch.equal(encoder_variance_spectrum(scale_tril=factors + above)[0], spectrum[0])


def test_a_diagonal_covariance_is_the_same_both_ways():
    logvar = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double()
    one = encoder_variance_histogram(logvar, bins=7)
    other = encoder_variance_histogram(scale_tril=torch.diag_embed((logvar / 2).exp()), bins=7)
    assert torch.equal(one.counts, other.counts)
    assert one[2:] == other[2:]


def test_histogram_counts_every_eigenvalue_of_every_sample(monkeypatch: pytest.MonkeyPatch):
    variance = torch.tensor([[0.0625, 0.25, 1.0], [0.4375, 0.75, 1.25], [0.25, 0.25, 1.0]])
    monkeypatch.setattr(latents, "BLOCK_ELEMENTS", 6)  # blocks of two samples and of one
    histogram = encoder_variance_histogram(variance.double().log(), bins=4)
    # a bin holds its lower edge, the last one both; 1.25 is beyond. log and exp of 0.25 and of 1
    # are exact to the last bit
    assert histogram.counts.tolist() == [1, 4, 0, 3]
    assert histogram.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert histogram.above == 1
    assert histogram.manifold_dimension == pytest.approx(5 / 3)
    low = encoder_variance_histogram(variance.log(), threshold=0.1)
    assert low.manifold_dimension == pytest.approx(1 / 3)


def test_histogram_sees_what_the_means_hide():
    # every sample lies on a line, but half of them use one dimension and half the other
    logvar = torch.tensor([[-20.0, 0.0], [0.0, -20.0]])
    assert encoder_variance_histogram(logvar).manifold_dimension == 1
    assert encoder_variance_spectrum(logvar, threshold=0.6).active == 2
    assert encoder_variance_spectrum(logvar, threshold=0.4).active == 0


def test_spectrum_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch):
    logvar = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    whole = encoder_variance_spectrum(logvar)
    monkeypatch.setattr(latents, "BLOCK_ELEMENTS", 12)
    assert torch.allclose(encoder_variance_spectrum(logvar).variance, whole.variance, rtol=1e-14)


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
        (lambda: encoder_variance_spectrum(), ValueError, "neither"),
        (lambda: encoder_variance_histogram(torch.zeros(3, 2), bins=0), ValueError, "bins"),
        (
            lambda: encoder_variance_histogram(torch.zeros(3, 2), scale_tril=torch.eye(2)[None]),
            ValueError,
            "both",
        ),
        (
            lambda: encoder_variance_histogram(scale_tril=torch.zeros(2, 3)),
            ValueError,
            "[N, d, d], got a tensor [2, 3]",
        ),
    ],
)
def test_bad_input(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
