"""The importance-weighted likelihood against probabilistic PCA and against its definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import vaekern
from vaekern.diagnostics import importance_weighted_nll
from vaekern.models import VAE, ModelConfig, NetworkConfig, ObjectiveConfig, TwoStageVAE


@pytest.mark.parametrize("samples", [1, 7])
def test_with_the_exact_posterior_every_weight_is_the_likelihood(linear_vae, samples: int):
    model = linear_vae((3.0, 0.5, 1.0), 6, sigma=0.3)
    x = model.data(11)
    found = importance_weighted_nll(model.vae(), x, samples=samples)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, model.nll(x), rtol=1e-12, atol=1e-12)


def test_with_another_encoder_it_falls_to_the_likelihood(linear_vae):
    model = linear_vae((3.0, 0.5, 1.0), 6, sigma=0.3)
    x = model.data(400)
    wide = model.vae()
    wide.encoder.variance *= 4.0
    exact = float(model.nll(x).mean())
    bounds = [
        float(
            importance_weighted_nll(
                wide, x, samples=k, generator=torch.Generator().manual_seed(k)
            ).mean()
        )
        for k in (1, 4, 16, 64)
    ]
    # for k = 1 the gap is KL(q || p(z|x)), 3/2 (4 - 1 - log 4); its standard deviation over 400
    # samples is sqrt(3/2) 3 / 20 = 0.18
    assert bounds[0] - exact == pytest.approx(1.5 * (3 - math.log(4)), abs=0.6)
    gaps = [bound - exact for bound in bounds]
    assert all(later < 0.5 * before for before, later in itertools.pairwise(gaps))
    assert 0 < gaps[-1] < 0.1


def by_definition(
    vae: VAE, x: torch.Tensor, samples: int, variance: torch.Tensor | None, seed: int
) -> torch.Tensor:
    """The equation of the docstring with torch.distributions, drawn as one chunk."""
    mu, logvar = (t.double() for t in vae.encode(x))
    noise = torch.randn(
        samples, *mu.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q = Normal(mu, (logvar / 2).exp())
    weights = []
    for z in mu + (logvar / 2).exp() * noise:
        mean = vae.decode(z.float()).double()
        if variance is None:
            predicted = vae.decoder(z.float())[1].double().exp()  # per sample, or per element
            sigma2 = predicted.reshape(*predicted.shape, *[1] * (mean.dim() - predicted.dim()))
        else:
            sigma2 = variance.double()
        p = Independent(Normal(mean, sigma2.sqrt().expand_as(mean)), mean.dim() - 1)
        prior = Normal(0.0, 1.0).log_prob(z).sum(1)
        weights.append(p.log_prob(x.double()) + prior - q.log_prob(z).sum(1))
    return math.log(samples) - torch.stack(weights).logsumexp(0)


@pytest.mark.parametrize("estimate", ["mle", "learned", "fixed"])
@pytest.mark.parametrize("covariance", ["iso-i", "iso-d", "diag-i", "diag-d"])
def test_every_objective_scores_with_the_variance_of_its_decoder(covariance: str, estimate: str):
    objective = ObjectiveConfig(covariance, estimate)
    vae = VAE.from_config(
        ModelConfig(objective, NetworkConfig(latent_dim=2, width=8)), (1, 2, 3), (0.0, 1.0)
    )
    x = torch.rand(6, 1, 2, 3)  # as many samples as dimensions
    variance: torch.Tensor | None = torch.tensor(0.3)
    if covariance == "diag-i":
        variance = torch.linspace(0.1, 0.6, 6).view(1, 2, 3)
    if estimate == "mle":
        vae.loss.running_variance.copy_(variance)
    elif estimate == "learned" and covariance.endswith("-d"):
        nn.init.normal_(vae.decoder.x_logvar.weight)
        variance = None
    else:
        vae.loss.x_logvar.data = variance.log().reshape(1 if variance.dim() == 0 else (1, 2, 3))
    vae.train()
    found = importance_weighted_nll(vae, x, samples=5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = by_definition(vae.eval(), x, 5, variance, seed=1)
    # the networks run in float32, in other batches; eps of the MLE variance is 1e-5 of it
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


def test_chunks_bound_what_is_decoded_and_leave_the_value(linear_vae):
    model = linear_vae((2.0, 1.0), 4, sigma=0.5)
    sizes: list[int] = []
    vae = model.vae()
    vae.decoder.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    x = model.data(10)
    # whatever the chunks, the exact posterior gives the exact value
    for chunk_size, samples in ((4, 3), (25, 5), (1000, 6)):
        sizes.clear()
        found = importance_weighted_nll(vae, x, samples=samples, chunk_size=chunk_size)
        torch.testing.assert_close(found, model.nll(x), rtol=1e-12, atol=1e-12)
        assert sum(sizes) == 10 * samples
        assert max(sizes) <= chunk_size


def test_functions_in_place_of_a_model(linear_vae):
    model = linear_vae((2.0, 1.0), 4, sigma=0.5)
    x = model.data(5)
    logvar = torch.full((1,), 2 * math.log(0.5), dtype=torch.float64)
    found = importance_weighted_nll(
        (model.encoder, lambda z: (model.decoder(z), logvar)), x, samples=3
    )
    torch.testing.assert_close(found, model.nll(x), rtol=1e-12, atol=1e-12)


def test_the_modules_get_their_modes_back_and_are_evaluated():
    encoder, decoder = vaekern.models.networks.mlp((4,), 2, width=8, output="linear")
    decoder = nn.Sequential(decoder, nn.Dropout(0.9))
    vae = VAE(encoder, decoder, vaekern.GaussianVAELoss("iso-i", "fixed", variance=0.5), 2)
    vae.encoder.eval()

    def value() -> torch.Tensor:
        return importance_weighted_nll(
            vae, torch.ones(3, 4), samples=4, generator=torch.Generator().manual_seed(0)
        )

    assert torch.equal(value(), value())  # without dropout
    assert (vae.training, vae.decoder[1].training, vae.encoder.training) == (True, True, False)


def test_a_bar_where_one_is_asked_for(linear_vae, capsys: pytest.CaptureFixture[str]):
    model = linear_vae((2.0,), 3, sigma=0.5)
    importance_weighted_nll(model.vae(), model.data(2), samples=5)
    assert capsys.readouterr().err == ""
    importance_weighted_nll(model.vae(), model.data(2), samples=5, progress=True)
    assert "importance samples: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda vae: {"model": vae.decoder}, TypeError, "pair (encode, decode), got Linear"),
        (lambda vae: {"model": TwoStageVAE(vae, vae)}, TypeError, "pass its stage1"),
        (lambda vae: {"model": (vae.encode, vae.decode)}, ValueError, "(x_hat, x_logvar)"),
        (lambda vae: {"model": (vae.decode, vae.decode)}, ValueError, "(mu, logvar), both [3, d]"),
        (lambda vae: {"x": torch.zeros(3, 4).int()}, TypeError, "int32"),
        (lambda vae: {"x": torch.zeros(0, 4)}, ValueError, "[0, 4]"),
        (lambda vae: {"samples": 0}, ValueError, "samples must be at least 1"),
        (lambda vae: {"chunk_size": 0}, ValueError, "chunk_size"),
    ],
)
def test_bad_input(linear_vae, change, error, word):
    vae = linear_vae((2.0, 1.0, 0.5, 0.1), 4, sigma=0.5).vae()
    arguments = {"model": vae, "x": torch.zeros(3, 4).double()} | change(vae)
    with pytest.raises(error) as caught:
        importance_weighted_nll(**arguments)
    assert word in str(caught.value)
    assert ". " not in str(caught.value)


def test_a_variance_that_was_never_estimated_is_refused():
    for covariance in ("iso-i", "diag-i"):
        loss = vaekern.GaussianVAELoss(covariance, "mle")
        vae = VAE(nn.Identity(), nn.Identity(), loss, 2)
        with pytest.raises(ValueError, match="must have been trained"):
            importance_weighted_nll(vae, torch.zeros(3, 2))
