"""The reference against other authorities: closed forms, torch.distributions, and theorems."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vaekern import reference
from vaekern.ops import COVARIANCES

LOG_2PI = math.log(2 * math.pi)


def _pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


def test_gaussian_nll_is_the_normal_density() -> None:
    x_hat, x = _pair(4, 3, 5)
    logvar = torch.randn(3, 5, dtype=torch.float64)
    density = Independent(Normal(x_hat, (logvar / 2).exp().expand_as(x)), 2)
    torch.testing.assert_close(reference.gaussian_nll(x_hat, x, logvar), -density.log_prob(x))


def test_posterior_samples_are_averaged() -> None:
    x_hat, x = torch.randn(3, 4, 5).double(), torch.randn(4, 5).double()
    each = torch.stack([reference.gaussian_nll(x_hat[i], x, torch.zeros(())) for i in range(3)])
    torch.testing.assert_close(reference.gaussian_nll(x_hat, x, torch.zeros(())), each.mean(0))


# Written from the design's formulas, with the eps where each one has it.
@pytest.mark.parametrize("samples", [1, 3])
def test_mle_formulas(samples: int) -> None:
    eps, B, D = 0.3, 4, 6
    x_hat, x = torch.randn(samples, B, D).double(), torch.randn(B, D).double()
    r2 = (x_hat - x) ** 2
    c = D / 2 * (1 + LOG_2PI)
    wanted = {
        "iso-i": D / 2 * (r2.mean(0).sum(1).mean() / D).log() + c,
        "iso-d": (D / 2 * ((r2.mean(0).sum(1) + eps).log() - math.log(D))).mean() + c,
        "diag-i": 0.5 * (r2.mean((0, 1)) + eps).log().sum() + c,
        "diag-d": 0.5 * (r2.mean(0) + eps).log().sum(1).mean() + c,
    }
    for covariance in COVARIANCES:
        got = reference.mle_nll(x_hat, x, covariance, eps).mean()
        torch.testing.assert_close(got, wanted[covariance], msg=covariance)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gradient_is_that_of_the_nll_at_the_detached_estimate(covariance: str) -> None:
    x_hat, x = _pair(5, 7)
    x_hat.requires_grad_()
    eps = 1e-9
    (mle,) = torch.autograd.grad(reference.mle_nll(x_hat, x, covariance, eps).mean(), x_hat)
    variance = reference.mle_variance(((x_hat - x) ** 2).detach(), covariance)
    if covariance == "iso-d":
        variance = (variance / 7).unsqueeze(1)
    (known,) = torch.autograd.grad(
        reference.gaussian_nll(x_hat, x, (variance + eps).log()).mean(), x_hat
    )
    torch.testing.assert_close(mle, known, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_no_variance_gives_a_lower_nll(covariance: str) -> None:
    """log-MSE + constant = the Gaussian NLL minimised over the variance."""
    x_hat, x = _pair(5, 7)
    q = (x_hat - x) ** 2
    best = reference.mle_nll(x_hat, x, covariance, 1e-12).mean()
    variance = reference.mle_variance(q, covariance)
    if covariance == "iso-d":
        variance = (variance / 7).unsqueeze(1)
    at = reference.gaussian_nll(x_hat, x, variance.log()).mean()
    torch.testing.assert_close(at, best, rtol=1e-8, atol=1e-8)
    for factor in (0.8, 0.99, 1.01, 1.3):
        assert reference.gaussian_nll(x_hat, x, (factor * variance).log()).mean() > best


@given(scale=st.floats(0.01, 100), covariance=st.sampled_from(COVARIANCES))
@settings(max_examples=20, deadline=None)
def test_rescaling_the_data_adds_d_log_c(scale: float, covariance: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x_hat, x = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    plain = reference.mle_nll(x_hat, x, covariance, 1e-30).mean()
    scaled = reference.mle_nll(scale * x_hat, scale * x, covariance, 1e-30).mean()
    torch.testing.assert_close(scaled, plain + 6 * math.log(scale), rtol=1e-9, atol=1e-9)


def test_the_finer_covariance_fits_better() -> None:
    """diag-d <= iso-d, diag-i <= iso-i: each contains the next as a special case."""
    x_hat, x = _pair(6, 9)
    nll = {c: float(reference.mle_nll(x_hat, x, c, 1e-12).mean()) for c in COVARIANCES}
    assert nll["diag-d"] < min(nll["iso-d"], nll["diag-i"])
    assert max(nll["iso-d"], nll["diag-i"]) < nll["iso-i"]


def test_unit_gaussian_constant_of_mnist() -> None:
    """Dai & Wipf's first loss at gamma = 1 and perfect reconstruction: 784 x 0.91894 = 720.448."""
    x = torch.zeros(2, 784, dtype=torch.float64)
    assert float(reference.gaussian_nll(x, x, torch.zeros(()))[0]) == pytest.approx(720.4478, 1e-6)


def test_kl_agrees_with_torch_distributions() -> None:
    mu, logvar = _pair(6, 4)
    m, prior_logvar = _pair(6, 4)
    q, p = Normal(mu, (logvar / 2).exp()), Normal(m, (prior_logvar / 2).exp())
    standard = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(reference.gaussian_kl(mu, logvar), kl_divergence(q, standard))
    torch.testing.assert_close(
        reference.gaussian_kl(mu, logvar, m, prior_logvar), kl_divergence(q, p)
    )


def test_full_kl_agrees_with_torch_distributions() -> None:
    mu = torch.randn(3, 5, dtype=torch.float64)
    tril = torch.randn(3, 5, 5, dtype=torch.float64).tril(-1)
    tril = tril + torch.diag_embed(torch.rand(3, 5).double() + 0.5)
    q = MultivariateNormal(mu, scale_tril=tril)
    p = MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double())
    got = reference.full_gaussian_kl(mu, tril + torch.ones(5, 5).double().triu(1)).sum(1)
    torch.testing.assert_close(got, kl_divergence(q, p))


@given(st.floats(-40, 20), st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_kl_is_not_negative_and_zero_at_the_prior(logvar: float, mu: float) -> None:
    t = torch.tensor([[mu]]).double(), torch.tensor([[logvar]]).double()
    assert reference.gaussian_kl(*t) >= 0
    assert reference.gaussian_kl(torch.zeros(1, 1), torch.zeros(1, 1)) == 0


@pytest.mark.parametrize("t", [1e-12, 1e-6, -1e-3, 0.0999, -0.1001, 0.5, -30.0])
def test_kl_near_the_prior_keeps_its_digits(t: float) -> None:
    import mpmath

    with mpmath.workdps(60):
        truth = float((mpmath.exp(mpmath.mpf(t)) - 1 - mpmath.mpf(t)) / 2)
    logvar = torch.tensor([t], dtype=torch.float64)
    got = float(reference.gaussian_kl(torch.zeros(1).double(), logvar)[0])
    assert got == pytest.approx(
        truth, rel=2e-13
    )  # expm1(t) - t keeps 16 - log10(2/t) digits at 0.1


def test_isotropic_posterior_at_its_optimum() -> None:
    """E|mu|^2 / d + sigma^2 = 1 makes KL = -(d/2) log sigma^2 (Takida et al., appendix D)."""
    d, logvar = 6, -1.3
    mu = torch.full((1, d), math.sqrt(1 - math.exp(logvar)), dtype=torch.float64)
    kl = reference.gaussian_kl(mu, torch.full((1, d), logvar, dtype=torch.float64)).sum()
    assert float(kl) == pytest.approx(-d / 2 * logvar, rel=1e-12)


def test_linear_decoder_reaches_its_known_optimum() -> None:
    """The ELBO of a linear decoder W z with variance g is largest at the encoder covariance
    (I + W^T W / g)^-1 and mean Cov W^T x / g (Dai & Wipf, appendix I)."""
    d, D, g = 3, 8, 0.2
    W = torch.randn(D, d, dtype=torch.float64)
    x = torch.randn(2, D, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(d).double() + W.T @ W / g)
    tril = torch.linalg.cholesky(covariance).expand(2, d, d)
    mean = x @ W / g @ covariance

    def bound(mu: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
        # E_z |x - W z|^2 in closed form
        square = ((x - mu @ W.T) ** 2).sum(1) + ((W @ L) ** 2).sum((1, 2))
        nll = 0.5 * (square / g + D * (math.log(g) + LOG_2PI))
        return (nll + reference.full_gaussian_kl(mu, L).sum(1)).sum()

    mean.requires_grad_()
    tril = tril.clone().requires_grad_()
    at_mean, at_tril = torch.autograd.grad(bound(mean, tril), (mean, tril))
    assert at_mean.abs().max() < 1e-10
    assert at_tril.tril().abs().max() < 1e-10
    # and the bound is tight there: it equals -log p(x)
    marginal = MultivariateNormal(torch.zeros(D).double(), W @ W.T + g * torch.eye(D).double())
    torch.testing.assert_close(bound(mean, tril), -marginal.log_prob(x).sum())


def test_reparameterized_moments() -> None:
    generator = torch.Generator().manual_seed(3)
    mu = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    tril = torch.tensor([[[0.7, 0.0], [0.4, 0.3]]], dtype=torch.float64)
    noise = torch.randn(200_000, 1, 2, dtype=torch.float64, generator=generator)
    z = reference.reparameterize(mu, None, tril, noise)[:, 0]
    torch.testing.assert_close(z.mean(0), mu[0], atol=5e-3, rtol=0)  # 3 sigma = 3 x 0.7 / 447
    torch.testing.assert_close(z.T.cov(), tril[0] @ tril[0].T, atol=6e-3, rtol=0)
