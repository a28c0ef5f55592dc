"""Posteriors: draws, their part of the KL, and what is kept of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vaekern import functional
from vaekern.models.posterior import FAMILIES, Family, Posterior, build_family

B, D = 5, 3
PRIOR = MultivariateNormal(torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64))


def _posterior(family: Family, dtype: torch.dtype = torch.float64) -> Posterior:
    mu, logvar = torch.randn(2, B, D, dtype=dtype)
    count = family.extra_outputs(D)
    q: Posterior = family(mu, logvar, torch.randn(B, count, dtype=dtype) if count else None)
    return q


def _gaussian(q: Posterior) -> MultivariateNormal | Independent:
    if q.scale_tril is not None:
        return MultivariateNormal(q.mu, scale_tril=q.scale_tril)
    return Independent(Normal(q.mu, torch.exp(0.5 * q.logvar)), 1)


@pytest.mark.parametrize("name", ["diagonal", "full", "isotropic", "fixed"])
def test_ratio_is_that_of_the_densities(name: str) -> None:
    q = _posterior(build_family(name, variance=0.3))
    z, ratio = q.sample_and_ratio(samples=4)
    expected = _gaussian(q).log_prob(z) - PRIOR.log_prob(z)
    torch.testing.assert_close(ratio, expected, rtol=1e-6, atol=1e-6)  # noise is float32's
    assert len(z.unique()) == z.numel()


@pytest.mark.parametrize("name", ["planar", "radial"])
def test_ratio_of_a_flow_has_its_log_determinant(name: str) -> None:
    q = _posterior(build_family(name, steps=3))
    noise = torch.randn(2, B, D, dtype=torch.float64)
    z, ratio = q.sample_and_ratio(samples=2, noise=noise)
    base = q._replace(flow=None)
    start = q.mu + torch.exp(0.5 * q.logvar) * noise
    assert q.flow is not None
    moved, log_det = q.flow(start)
    torch.testing.assert_close(z, moved)
    expected = _gaussian(base).log_prob(start) - log_det - PRIOR.log_prob(moved)
    torch.testing.assert_close(ratio, expected)


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_mean_ratio_is_the_kl(name: str) -> None:
    q = _posterior(build_family(name))
    exact = kl_divergence(_gaussian(q), Independent(Normal(torch.zeros_like(q.mu), 1.0), 1)
                          if q.scale_tril is None
                          else MultivariateNormal(torch.zeros_like(q.mu), PRIOR.covariance_matrix)
                          )  # fmt: skip
    if q.scale_tril is None:
        found = functional.gaussian_kl(q.mu, q.logvar, reduction="none")
    else:
        found = functional.full_gaussian_kl(q.mu, q.scale_tril, reduction="none")
    torch.testing.assert_close(found, exact)
    _, ratio = q.sample_and_ratio(samples=20_000)
    error = ratio.std(0) / math.sqrt(20_000)
    assert ((ratio.mean(0) - exact).abs() < 5 * error).all()


def test_full_covariance_is_l_l_transposed() -> None:
    family = build_family("full")
    extra = torch.tensor([[10.0, 20.0, 21.0]], dtype=torch.float64)
    logvar = torch.log(torch.tensor([[1.0, 4.0, 9.0]], dtype=torch.float64))
    q = family(torch.zeros(1, 3, dtype=torch.float64), logvar, extra)
    expected = torch.tensor([[1.0, 0.0, 0.0], [10.0, 2.0, 0.0], [20.0, 21.0, 3.0]]).double()
    torch.testing.assert_close(q.scale_tril[0], expected)
    torch.testing.assert_close(q.logvar[0].exp(), (expected @ expected.T).diagonal())
    z = q._replace(mu=q.mu.expand(1, 3)).sample(samples=50_000)
    torch.testing.assert_close(torch.cov(z[:, 0].T), expected @ expected.T, rtol=0.05, atol=1.0)


def test_isotropic_has_one_variance_with_a_gradient() -> None:
    family = build_family("isotropic", variance=0.25)
    q = family(torch.randn(B, D), torch.randn(B, D), None)
    torch.testing.assert_close(q.logvar.exp(), torch.full((B, D), 0.25))
    functional.gaussian_kl(q.mu.detach(), q.logvar).backward()
    (parameter,) = family.parameters()
    torch.testing.assert_close(parameter.grad, torch.tensor([0.5 * D * (0.25 - 1)]))
    assert not list(build_family("fixed", variance=0.25).parameters())


def test_deterministic_draws_are_mu() -> None:
    mu = torch.randn(B, D, requires_grad=True)
    q = build_family("deterministic")(mu, torch.randn(B, D), None)
    z = q.sample(samples=3)
    assert (z == mu).all()
    z.sum().backward()
    assert (mu.grad == 3).all()
    assert (q.logvar == -math.inf).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_and_packs_are_the_same_posterior(name: str) -> None:
    q = _posterior(build_family(name, steps=2), torch.float32)
    rows = torch.tensor([3, 0])
    noise = torch.randn(B, D)
    whole = q.sample(noise=noise)
    torch.testing.assert_close(q.take(rows).sample(noise=noise[rows]), whole[rows])
    packed = q.pack()
    assert packed.shape[0] == B
    again = q.take(slice(1)).unpack(packed)
    assert (again.sample(noise=noise) == whole).all()
    halves = Posterior.join([q.take(slice(2)), q.take(slice(2, None))])
    assert (halves.sample(noise=noise) == whole).all()
    wide = q.to(torch.float64)
    assert wide.sample().dtype == torch.float64
    assert (q.center == q.mu).all() == (q.flow is None)
    if q.flow is not None:
        assert (q.center == q.flow(q.mu)[0]).all()


def test_an_encoder_without_the_extra_outputs_is_told_so() -> None:
    both: tuple[Tensor, Tensor] = (torch.zeros(2, D), torch.zeros(2, D))
    for name, count in (("full", 3), ("planar", 70)):
        with pytest.raises(ValueError, match=rf"extra \[B, {count}\] for the posterior '{name}'"):
            build_family(name)(*both, None)
    with pytest.raises(ValueError, match="posterior must be one of diagonal, full"):
        build_family("banana")
    with pytest.raises(ValueError, match="posterior_variance must be positive and finite, got 0"):
        build_family("fixed", variance=0.0)
