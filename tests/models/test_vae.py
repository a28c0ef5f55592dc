"""VAE: every objective, its equations, its checks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vaekern
from vaekern.models import VAE, ModelConfig, NetworkConfig, ObjectiveConfig

COVARIANCES = ("iso-i", "iso-d", "diag-i", "diag-d")
ESTIMATES = ("mle", "learned", "fixed")
SMALL = NetworkConfig(latent_dim=3, width=16)


class Pair(nn.Module):
    """A user's encoder: two linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Linear(6, 2)
        self.logvar = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mu(x), self.logvar(x)


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_every_objective_trains_every_parameter(covariance: str, estimate: str) -> None:
    torch.manual_seed(0)
    variance = 1.0 if estimate == "mle" else 0.5
    config = ModelConfig(ObjectiveConfig(covariance, estimate, variance=variance), SMALL)
    vae = VAE.from_config(config, (1, 4, 4), value_range=(0.0, 1.0))
    x = torch.rand(10, 1, 4, 4)
    components = vae(x)
    components.loss.backward()
    assert math.isfinite(components.loss.item())
    total = components.reconstruction + components.kl
    torch.testing.assert_close(components.loss.detach(), total)
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    if estimate == "learned":
        # The variance starts where the option says, whoever owns it: the loss or the decoder.
        torch.testing.assert_close(
            components.x_logvar, torch.full_like(components.x_logvar, math.log(0.5))
        )


def test_forward_is_the_negative_elbo_with_a_seeded_draw() -> None:
    torch.manual_seed(0)
    config = ModelConfig(ObjectiveConfig("iso-i", "fixed", variance=0.25, beta=2.0), SMALL)
    vae = VAE.from_config(config, (5,))
    x = torch.randn(7, 5)
    components = vae(x, generator=torch.Generator().manual_seed(3))
    mu, logvar = vae.encode(x)
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(3))
    x_hat = vae.decode(mu + torch.exp(0.5 * logvar) * noise)
    p = torch.distributions.Normal(x_hat, 0.5)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    kl = torch.distributions.kl_divergence(q, prior).sum(1)
    torch.testing.assert_close(components.loss, (-p.log_prob(x).sum(1) + 2 * kl).mean())


def test_posterior_samples_average_the_squared_residuals() -> None:
    torch.manual_seed(0)
    config = ModelConfig(ObjectiveConfig("iso-i", "fixed", posterior_samples=3), SMALL)
    vae = VAE.from_config(config, (5,))
    x = torch.randn(7, 5)
    components = vae(x, generator=torch.Generator().manual_seed(3))
    mu, logvar = vae.encode(x)
    z = vaekern.functional.reparameterize(
        mu, logvar, samples=3, generator=torch.Generator().manual_seed(3)
    )
    squares = torch.stack([(vae.decode(each) - x).square() for each in z]).mean(0).sum(1).mean()
    expected = 0.5 * squares + 2.5 * math.log(2 * math.pi)
    torch.testing.assert_close(components.reconstruction, expected.detach())


@pytest.mark.parametrize("samples", [1, 3])
def test_drawn_noise_is_what_the_forward_would_draw(samples: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(ObjectiveConfig(posterior_samples=samples), SMALL)
    vae = VAE.from_config(config, (5,))
    x = torch.randn(7, 5)
    noise = vae.draw_noise(7, torch.Generator().manual_seed(3))
    assert vae(x, noise=noise).loss.equal(vae(x, generator=torch.Generator().manual_seed(3)).loss)
    part = noise[..., 2:4, :]  # of the samples 2 and 3
    z = vae.eval().encoder(x[2:4])[0] + torch.exp(0.5 * vae.encoder(x[2:4])[1]) * part
    x_hat = vae.decode(z.flatten(0, -2)).unflatten(0, z.shape[:-1])
    squares = (x_hat - x[2:4]).square().reshape(samples, 2, 5).mean(0).sum(1).mean()
    torch.testing.assert_close(vae(x[2:4], noise=part).mse, squares.detach())


def test_activation_is_applied_once() -> None:
    torch.manual_seed(0)
    vae = VAE.from_config(ModelConfig(network=SMALL), (1, 4, 4), value_range=(0.0, 1.0))
    assert vae.loss.activation == "sigmoid"
    z = torch.randn(6, 3)
    torch.testing.assert_close(vae.decode(z), torch.sigmoid(vae.decoder(z)))
    vector = VAE.from_config(ModelConfig(network=SMALL), (4,))
    assert vector.loss.activation is None
    none = VAE.from_config(ModelConfig(ObjectiveConfig(activation="none"), SMALL), (4,), (0.0, 1.0))
    assert none.loss.activation is None


def test_any_encoder_and_decoder_work() -> None:
    torch.manual_seed(0)
    vae = VAE(Pair(), nn.Linear(2, 6), vaekern.GaussianVAELoss("diag-i"), latent_dim=2)
    vae(torch.randn(9, 6)).loss.backward()
    assert vae.encoder.mu.weight.grad.abs().sum() > 0
    assert vae.sample(4).shape == (4, 6)


def test_reconstruct_at_the_mean_or_at_a_draw() -> None:
    torch.manual_seed(0)
    vae = VAE.from_config(ModelConfig(network=SMALL), (5,))
    x = torch.randn(8, 5)
    mu, logvar = vae.encode(x)
    torch.testing.assert_close(vae.reconstruct(x, sample_z=False), vae.decode(mu))
    draw = vae.reconstruct(x, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draw, vae.decode(mu + torch.exp(0.5 * logvar) * noise))


def test_samples_are_decoder_means_of_standard_normal_latents() -> None:
    vae = VAE.from_config(ModelConfig(network=SMALL), (5,)).eval()
    z = torch.randn(1000, 3, generator=torch.Generator().manual_seed(5))
    sampled = vae.sample(1000, generator=torch.Generator().manual_seed(5))  # two chunks
    torch.testing.assert_close(sampled, vae.decode(z))


def test_x_logvar_is_the_variance_that_all_inputs_share() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 5)

    def built(covariance: str, estimate: str, **options: float) -> VAE:
        vae = VAE.from_config(
            ModelConfig(ObjectiveConfig(covariance, estimate, **options), SMALL), (5,)
        )
        vae(x)
        return vae

    quarter = torch.tensor([math.log(0.25)])
    torch.testing.assert_close(built("iso-i", "fixed", variance=0.25).x_logvar, quarter)
    torch.testing.assert_close(built("iso-i", "learned", variance=0.25).x_logvar, quarter)
    torch.testing.assert_close(
        built("diag-i", "learned", variance=0.25).x_logvar, quarter.expand(5)
    )
    assert built("iso-d", "learned").x_logvar is None
    assert built("diag-d", "learned").x_logvar is None
    vae = built("iso-i", "mle")
    torch.testing.assert_close(vae.x_logvar, vae.loss.running_variance.log())
    vae = built("diag-i", "mle")
    assert vae.x_logvar.shape == (5,)
    # A pixel that never changes has a variance of zero, whose logarithm must stay finite.
    vae.loss.running_variance.zero_()
    torch.testing.assert_close(vae.x_logvar, torch.full((5,), math.log(1e-6)))


def test_noise_comes_from_the_clamped_posterior() -> None:
    config = ModelConfig(ObjectiveConfig(logvar_clamp=(-1.0, 1.0)), SMALL)
    vae = VAE.from_config(config, (5,))
    nn.init.constant_(vae.encoder.head.bias[3:], -50.0)
    _, logvar = vae.encode(torch.zeros(2, 5))
    torch.testing.assert_close(logvar, torch.full((2, 3), -1.0))


@pytest.mark.parametrize("covariance", ["iso-d", "diag-d"])
def test_several_draws_need_a_variance_that_no_draw_predicts(covariance: str) -> None:
    config = ModelConfig(ObjectiveConfig(covariance, "learned", posterior_samples=2), SMALL)
    with pytest.raises(ValueError, match=f"posterior_samples must be 1 .*{covariance}.*got 2"):
        VAE.from_config(config, (5,))
    with pytest.raises(ValueError, match="posterior_samples must be at least 1, got 0"):
        VAE(Pair(), nn.Linear(2, 6), vaekern.GaussianVAELoss(), 2, posterior_samples=0)


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_decoder_distribution_broadcasts_to_the_data(covariance: str, estimate: str) -> None:
    # As many dimensions as samples: [4] is one variance per dimension or one per sample.
    variance = torch.tensor([0.1, 0.2, 0.3, 0.4]) if covariance == "diag-i" else 0.5
    vae = VAE.from_config(
        ModelConfig(ObjectiveConfig(covariance, estimate), SMALL), (4,), value_range=(0.0, 1.0)
    )
    if estimate == "mle":
        vae.loss.running_variance.copy_(torch.as_tensor(variance))
    elif hasattr(vae.loss, "x_logvar"):
        vae.loss.x_logvar.data = torch.as_tensor(variance).log().reshape(-1)
    z = torch.randn(4, 3)
    x_hat, x_logvar = vae.decoder_distribution(z)
    torch.testing.assert_close(x_hat.sigmoid(), vae.decode(z))  # before the activation
    if estimate == "learned" and covariance == "iso-d":
        expected = vae.decoder(z)[1][:, None].expand(4, 4)
    elif estimate == "learned" and covariance == "diag-d":
        expected = vae.decoder(z)[1]
    else:
        expected = torch.as_tensor(variance).log().expand(4, 4)
    torch.testing.assert_close(x_logvar.expand(4, 4), expected, rtol=1e-5, atol=1e-5)


def test_decoder_distribution_bounds_a_predicted_variance_as_the_loss_does() -> None:
    config = ModelConfig(ObjectiveConfig("diag-d", "learned", variance=1e-12), SMALL)
    vae = VAE.from_config(config, (4,))
    x_hat, x_logvar = vae.decoder_distribution(torch.randn(2, 3))
    assert (x_logvar == -20).all()
    x, prior = torch.zeros(2, 4), torch.zeros(2, 3)
    loss = vae.loss(x_hat, x, prior, prior, x_logvar=vae.decoder(torch.zeros(2, 3))[1])
    nll = vaekern.functional.gaussian_nll(x_hat, x, x_logvar)
    torch.testing.assert_close(loss, nll)


def test_decoder_distribution_needs_a_variance() -> None:
    vae = VAE(nn.Identity(), nn.Linear(2, 3), vaekern.GaussianVAELoss("diag-i", "mle"), 2)
    with pytest.raises(ValueError, match="must have seen a batch in training mode"):
        vae.decoder_distribution(torch.zeros(1, 2))


class Returning(nn.Module):
    """An encoder that returns what it is told to."""

    def __init__(self, value: object):
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> object:
        return self.value


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(64, 32), TypeError, r"got one tensor \[64, 32\]; split it, as in .*chunk"),
        (torch.zeros(2, 16), TypeError, r"got one tensor \[2, 16\]"),
        (None, TypeError, "got NoneType"),
        ((torch.zeros(4, 16),), TypeError, "got tuple"),
        ((torch.zeros(4, 8), torch.zeros(4, 8)), ValueError, r"got \[4, 8\] and \[4, 8\]"),
        ((torch.zeros(4, 16), torch.zeros(4, 1)), ValueError, r"got \[4, 16\] and \[4, 1\]"),
    ],
)
def test_what_an_encoder_must_return(value: object, error: type[Exception], message: str) -> None:
    vae = VAE(Returning(value), nn.Linear(16, 9), vaekern.GaussianVAELoss("iso-i"), latent_dim=16)
    wanted = r"encoder must return \(mu, logvar\), both \[B, 16\], "
    with pytest.raises(error, match=wanted + message):
        vae(torch.zeros(4, 9))
