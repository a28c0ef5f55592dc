"""Decoders that are not Gaussian, against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vaekern import functional, joined
from vaekern.joined import Joined
from vaekern.models.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Likelihood,
    LogisticMixture,
    SquaredError,
    grey_levels,
)

B, D = 4, 3


def _logistic_cdf(y: float, m: float, s: float) -> float:
    return 1 / (1 + math.exp(-(y - m) / s)) if (y - m) / s > -700 else 0.0


def _mass(x: float, m: float, s: float, levels: int) -> float:
    """Of the bin of one pixel, as the definition says it."""
    h = 1 / (levels - 1)
    y = 2 * x - 1
    high = 1.0 if x == 1 else _logistic_cdf(y + h, m, s)
    low = 0.0 if x == 0 else _logistic_cdf(y - h, m, s)
    return high - low


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [17, 256])
def test_logistic_mixture_is_the_sum_over_bins(channels: int, levels: int) -> None:
    K, H, W = 3, 2, 2
    loss = LogisticMixture(components=K, levels=levels)
    output = torch.randn(B, *loss.output_shape((channels, H, W)), dtype=torch.float64)
    x = torch.randint(0, levels, (B, channels, H, W)).double() / (levels - 1)
    x[0], x[1] = 0.0, 1.0  # the bins at both ends
    found = loss.nll(output, x)
    for b in range(B):
        total = 0.0
        for i in range(H):
            for j in range(W):
                numbers = output[b, :, i, j].view(-1, K)
                weight = torch.softmax(numbers[0], 0)
                pixel = x[b, :, i, j]
                y = 2 * pixel - 1
                mixed = 0.0
                for k in range(K):
                    m = [float(numbers[1 + c, k]) for c in range(channels)]
                    s = [math.exp(float(numbers[1 + channels + c, k])) for c in range(channels)]
                    if channels == 3:
                        c = torch.tanh(numbers[7:, k])
                        m[1] += float(c[0] * y[0])
                        m[2] += float(c[1] * y[0] + c[2] * y[1])
                    product = math.prod(
                        _mass(float(pixel[c]), m[c], s[c], levels) for c in range(channels)
                    )
                    mixed += float(weight[k]) * product
                total -= math.log(mixed)
        assert float(found[b]) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("levels", "within"),
    # 256 levels are summed as an integral: off by half a step of one, at scales below it
    [(2, 1e-12), (17, 1e-12), (32, 1e-12), (256, 0.5 / 255)],
)
def test_logistic_mixture_is_a_distribution_and_its_mean_that_of_it(
    levels: int, within: float
) -> None:
    loss = LogisticMixture(components=3, levels=levels)
    output = 3 * torch.randn(40, 9, 1, 1, dtype=torch.float64)  # much of it beyond the ends
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    mass = torch.stack(
        [torch.exp(-loss.nll(output, value.expand(40, 1, 1, 1))) for value in values]
    )
    torch.testing.assert_close(mass.sum(0), torch.ones(40, dtype=torch.float64))
    found = loss.mean(output).flatten()
    torch.testing.assert_close(found, values @ mass, rtol=0, atol=within)


def test_logistic_mixture_is_finite_where_no_mass_is() -> None:
    loss = LogisticMixture(components=1)
    output = torch.zeros(2, 3, 1, 1, requires_grad=True)
    shift = torch.tensor([0.0, 1.0, -40.0]).view(3, 1, 1)  # narrower than allowed, far off
    x = torch.tensor([0.3, 0.9]).view(2, 1, 1, 1)
    nll = loss.nll(output + shift, x).sum()
    nll.backward()
    assert math.isfinite(float(nll.detach()))
    assert output.grad is not None
    assert output.grad.isfinite().all()
    # the distance in units of the smallest scale, e^-7
    assert float(nll.detach()) > 0.1 * math.exp(7)


def test_colours_are_conditioned_on_the_channels_before() -> None:
    loss = LogisticMixture(components=1)
    output = torch.zeros(1, 10, 1, 1, dtype=torch.float64)
    output[0, 4:7] = -6.0  # narrow
    output[0, 1] = 0.5  # red's mean
    output[0, 7], output[0, 9] = 2.0, -1.0  # green from red, blue from green
    red = 0.5
    green = math.tanh(2.0) * red
    blue = math.tanh(-1.0) * green
    expected = 0.5 * (torch.tensor([red, green, blue], dtype=torch.float64) + 1)
    torch.testing.assert_close(loss.mean(output).flatten(), expected)


def test_the_mean_of_colours_is_near_that_of_all_of_them() -> None:
    levels = 4
    loss = LogisticMixture(components=2, levels=levels)
    output = torch.randn(20, 20, 1, 1, dtype=torch.float64)
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    colours = torch.cartesian_prod(values, values, values)
    mass = torch.stack(
        [
            torch.exp(-loss.nll(output, each.view(1, 3, 1, 1).expand(20, -1, 1, 1)))
            for each in colours
        ]
    )
    expected = mass.T @ colours
    found = loss.mean(output).flatten(1)
    torch.testing.assert_close(found[:, 0], expected[:, 0])  # red depends on nothing
    # of green and blue the ends' curvature is left out: up to 0.05 was seen here
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_grey_levels_are_found_and_asked_for() -> None:
    for levels in (2, 5, 17, 255, 256):
        x = torch.arange(levels).div(levels - 1).expand(2, 1, 1, -1)
        assert grey_levels(x) == levels
        LogisticMixture(levels=levels).check_pixels(x)
    x = torch.rand(2, 1, 4, 4)
    assert grey_levels(x) == 256
    with pytest.raises(
        ValueError, match=r"one of 256 levels 0, 1/255, .* got 0\.\d+; give --levels"
    ):
        LogisticMixture().check_pixels(x)
    with pytest.raises(ValueError, match=r"one of 17 levels .* got 2;"):
        LogisticMixture(levels=17).check_pixels(torch.tensor([0.5, 2.0]))
    with pytest.raises(ValueError, match=r"pixels between 0 and 1, got -0.1 to 0.5, where it has"):
        Bernoulli().check_pixels(torch.tensor([-0.1, 0.5]))


def test_bernoulli_is_the_cross_entropy() -> None:
    output = 3 * torch.randn(B, 1, 4, 4, dtype=torch.float64)
    x = torch.rand(B, 1, 4, 4, dtype=torch.float64)
    expected = F.binary_cross_entropy(torch.sigmoid(output), x, reduction="none")
    torch.testing.assert_close(Bernoulli().nll(output, x), expected.flatten(1).sum(1))
    far = torch.tensor([[-900.0, 900.0]])  # where 1 - sigmoid rounds to 0
    torch.testing.assert_close(
        Bernoulli().nll(far, torch.tensor([[0.5, 0.5]])), torch.tensor([900.0])
    )


@pytest.mark.parametrize("activation", [None, "sigmoid", "tanh"])
def test_squared_error_is_a_gaussian_s_without_its_constant(activation: str | None) -> None:
    output, x = torch.randn(2, B, 6, dtype=torch.float64)
    gaussian = functional.gaussian_nll(
        output, x, math.log(0.5), activation=activation, reduction="none"
    )
    found = SquaredError(activation=activation).nll(output, x)
    torch.testing.assert_close(found, gaussian - 3 * math.log(math.pi))


def _output(loss: Likelihood, *batch: int) -> Tensor:
    return torch.randn(*batch, *loss.output_shape((1, 4, 4)), dtype=torch.float64)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_components_add_up_and_draws_are_averaged(name: str) -> None:
    loss = LIKELIHOODS[name](beta=2.5)
    x = torch.randint(0, 256, (B, 1, 4, 4)).double() / 255
    mu, logvar = torch.randn(2, B, D, dtype=torch.float64)
    output = _output(loss, 2, B)
    found = loss.components(output, x, mu, logvar)
    each = torch.stack([loss.nll(draw, x) for draw in output])
    kl = functional.gaussian_kl(mu, logvar)
    torch.testing.assert_close(found.reconstruction, each.mean())
    torch.testing.assert_close(found.kl, kl)
    torch.testing.assert_close(found.loss, each.mean() + 2.5 * kl)
    torch.testing.assert_close(found.kl_per_dim.sum(), kl)
    residual = torch.stack([loss.mean(draw) - x for draw in output])
    torch.testing.assert_close(found.mse, residual.square().sum((2, 3, 4)).mean())
    assert found.x_logvar.isnan().all()
    torch.testing.assert_close(loss(output, x, mu, logvar, beta=0.5), each.mean() + 0.5 * kl)
    scale_tril = torch.diag_embed(torch.exp(0.5 * logvar))
    torch.testing.assert_close(loss.components(output, x, mu, scale_tril=scale_tril).kl, kl)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_options_build_it_again(name: str) -> None:
    loss = LIKELIHOODS[name](beta=3.0, logvar_clamp=(-5.0, 5.0))
    again = LIKELIHOODS[name](**loss.options())
    assert again.options() == loss.options()
    output, x = _output(loss, B), torch.rand(B, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(again.nll(output, x), loss.nll(output, x))


def test_what_does_not_fit_is_refused() -> None:
    mu = logvar = torch.zeros(2, D)
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"x_hat must be \[2, 30, 4, 4\], .* got \[2, 1, 4, 4\]"):
        LogisticMixture()(x, x, mu, logvar)
    with pytest.raises(ValueError, match=r"x_logvar must be left out, got .* 'bernoulli'"):
        Bernoulli()(x, x, mu, logvar, x_logvar=torch.zeros(2))
    for loss, shape, value_range in (
        (Bernoulli(), (5,), None),
        (LogisticMixture(), (5,), None),
        (LogisticMixture(), (2, 4, 4), (0.0, 1.0)),
    ):
        with pytest.raises(ValueError, match="; choose a Gaussian preset such as mle-iso-i"):
            loss.check_data(shape, value_range)
        loss.check_data((1, 4, 4), (0.0, 1.0))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_uneven_shares_of_a_batch_average_to_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, three and five samples: the mean of their losses is that of all eight."""
    loss = LIKELIHOODS[name](beta=2.0)
    x = torch.randint(0, 256, (8, 1, 4, 4)).double() / 255
    mu, logvar = torch.randn(2, 8, D, dtype=torch.float64)
    output = _output(loss, 8)
    whole = loss.components(output, x, mu, logvar)
    monkeypatch.setattr(functional, "world", lambda group: group or "two processes")
    monkeypatch.setattr(
        joined, "join", lambda part, group: Joined(part[:-1], torch.tensor(8.0).double(), 2)
    )
    rows = (slice(0, 3), slice(3, 8))
    found = [loss.components(output[r], x[r], mu[r], logvar[r]) for r in rows]
    for field in ("loss", "reconstruction", "kl", "kl_per_dim", "mse"):
        mean = sum(getattr(each, field) for each in found) / 2
        torch.testing.assert_close(mean, getattr(whole, field))
    loss.eval()  # each for itself
    alone = [float(loss(output[r], x[r], mu[r], logvar[r])) for r in rows]
    expected = (3 * alone[0] + 5 * alone[1]) / 8
    assert float(whole.loss) == pytest.approx(expected)
