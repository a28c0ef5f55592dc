"""What draws codes to the prior, against double loops and other definitions."""

from __future__ import annotations

import math

import pytest
import torch

from vaekern.diagnostics import maximum_mean_discrepancy
from vaekern.models.latent_terms import LATENT_TERMS, SCALES, multiquadric_mmd
from vaekern.models.posterior import Posterior


def _by_loops(z: torch.Tensor, prior: torch.Tensor) -> float:
    n, d = z.shape

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        distance = float((a - b).square().sum())
        return sum(2 * d * s / (2 * d * s + distance) for s in SCALES)

    within = sum(
        k(z[i], z[j]) + k(prior[i], prior[j]) for i in range(n) for j in range(n) if i != j
    )
    across = sum(k(z[i], prior[j]) for i in range(n) for j in range(n))
    return within / (n * (n - 1)) - 2 * across / n**2


def test_mmd_is_the_double_loop() -> None:
    z, prior = torch.randn(2, 9, 3, dtype=torch.float64)
    z = 2 * z + 1
    found = multiquadric_mmd(z, prior)
    assert float(found) == pytest.approx(_by_loops(z, prior), rel=1e-12)
    torch.testing.assert_close(found, maximum_mean_discrepancy(z, prior))
    narrow = multiquadric_mmd(z.float(), prior.float())
    assert float(narrow) == pytest.approx(float(found), rel=1e-5)


def test_mmd_of_one_distribution_averages_zero() -> None:
    values = torch.stack([multiquadric_mmd(*torch.randn(2, 20, 2)) for _ in range(400)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(400)
    assert (values < 0).any()


def test_mmd_has_a_gradient_where_codes_coincide() -> None:
    z = torch.zeros(4, 2, requires_grad=True)
    multiquadric_mmd(z, torch.randn(4, 2)).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 0


def test_mmd_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match=r"n at least 2, got \[1, 3\]"):
        multiquadric_mmd(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[2, 4\]"):
        multiquadric_mmd(torch.zeros(2, 3), torch.zeros(2, 4))


def test_terms_are_what_they_are_called() -> None:
    q = Posterior(*torch.randn(2, 6, 3))
    z, ratio = q.sample_and_ratio(samples=2)
    value, per_dim = LATENT_TERMS["squared-norm"](q, z, None, None)
    torch.testing.assert_close(value, 0.5 * z.square().sum(-1).mean())
    torch.testing.assert_close(per_dim.sum(), value)
    value, per_dim = LATENT_TERMS["kl"](q, z, ratio, None)
    torch.testing.assert_close(value, ratio.mean())
    assert per_dim.isnan().all()
    value, per_dim = LATENT_TERMS["none"](q, z, None, None)
    assert (float(value), float(per_dim.sum())) == (0.0, 0.0)
    generator = torch.Generator().manual_seed(3)
    value, _ = LATENT_TERMS["mmd"](q, z, None, generator)
    prior = torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(value, multiquadric_mmd(z.flatten(0, 1), prior))
