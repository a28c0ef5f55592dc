"""TwoStageVAE: the mathematics of sampling, latents and the second stage's objective."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vaekern
from vaekern.models import VAE, ModelConfig, NetworkConfig, Posterior, TwoStageVAE


def build(network: str = "mlp", shape: tuple[int, ...] = (1, 8, 8)) -> TwoStageVAE:
    torch.manual_seed(0)
    chosen = NetworkConfig(network=network, latent_dim=3, second_width=16)
    return TwoStageVAE.from_config(ModelConfig(network=chosen), shape, (0.0, 1.0)).eval()


def test_second_stage_samples_are_decoded_means_of_noisy_latents() -> None:
    model = build()
    with torch.no_grad():
        model.stage2.loss.x_logvar.fill_(math.log(0.3**2))
    samples = model.sample(700, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(700, 3, generator=generator)
    z = model.stage2.decoder(u) + 0.3 * torch.randn(700, 3, generator=generator)
    torch.testing.assert_close(samples, torch.sigmoid(model.stage1.decoder(z)))
    assert not samples.requires_grad


def test_gamma_is_the_deviation_of_the_latent_noise() -> None:
    model = build()
    with torch.no_grad():
        model.stage2.loss.x_logvar.fill_(math.log(4.0))  # a variance of 4
        for parameter in model.stage2.decoder.parameters():
            parameter.zero_()
    z = model.sample_latents(20_000, generator=torch.Generator().manual_seed(2))
    assert z.std().item() == pytest.approx(2.0, rel=0.02)
    assert z.mean().item() == pytest.approx(0.0, abs=0.05)


def test_first_stage_samples_are_decoded_prior_draws() -> None:
    model = build()
    samples = model.sample(5, stage=1, generator=torch.Generator().manual_seed(1))
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(samples, model.stage1.decode(z))
    with pytest.raises(ValueError, match=r"stage must be 1 .* or 2 .*, got 3"):
        model.sample(5, stage=3)


def test_second_stage_is_the_paper_s_objective() -> None:
    model = build()
    assert model.stage2.loss.covariance == "iso-i"
    assert model.stage2.loss.estimate == "learned"
    assert model.stage2.loss.x_logvar.shape == (1,)
    assert model.stage2.loss.x_logvar.item() == 0
    z = torch.randn(11, 3)
    components = model.stage2(z, generator=torch.Generator().manual_seed(4))
    mu, logvar = model.stage2.encoder(z)
    u = mu + torch.exp(0.5 * logvar) * torch.randn(
        11, 3, generator=torch.Generator().manual_seed(4)
    )
    squares = (model.stage2.decoder(u) - z).square().sum(1).mean()
    expected = 0.5 * squares + 1.5 * math.log(2 * math.pi)  # gamma = 1, d = 3
    torch.testing.assert_close(components.reconstruction, expected.detach())


def test_posterior_is_computed_in_evaluation_mode_and_sampled_afresh() -> None:
    model = build("infogan")
    x = torch.rand(9, 1, 8, 8)
    expected = model.stage1.encode(x)
    model.stage1.train()
    frozen = next(each for each in model.stage1.modules() if isinstance(each, nn.BatchNorm1d))
    frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    posterior = model.posterior(x)
    assert model.stage1.training
    assert not frozen.training  # what was frozen stays so
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(posterior.mu, expected[0])
    torch.testing.assert_close(posterior.logvar, expected[1])
    assert not posterior.mu.requires_grad

    narrow = Posterior(torch.arange(6.0).view(3, 2), torch.full((3, 2), 2 * math.log(1e-4)))
    first, second = narrow.sample(), narrow.sample()
    assert not first.equal(second)
    torch.testing.assert_close(first, narrow.mu, atol=1e-3, rtol=0)
    torch.testing.assert_close(narrow.take(torch.tensor([2, 0])).mu, narrow.mu[[2, 0]])


def test_second_stage_needs_a_variance_to_sample_with() -> None:
    stage1 = build().stage1
    linear = nn.Linear(3, 3)
    for covariance in ("iso-d", "diag-d"):
        stage2 = VAE(linear, linear, vaekern.GaussianVAELoss(covariance), 3)
        with pytest.raises(ValueError, match=f"stage2 must have one variance .*got '{covariance}'"):
            TwoStageVAE(stage1, stage2)
