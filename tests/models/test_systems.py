"""VAEs made of other parts: what their loss is, and that a copy is the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaekern import functional
from vaekern.models import VAE, ModelConfig, NetworkConfig, ObjectiveConfig, SystemConfig, networks
from vaekern.models.latent_terms import multiquadric_mmd
from vaekern.models.penalties import DecoderPenalty, decoder_weights
from vaekern.models.posterior import Isotropic, build_family
from vaekern.nn import GaussianVAELoss
from vaekern.storage.errors import RunError

SHAPE, RANGE = (1, 4, 4), (0.0, 1.0)
AUTOENCODER = {"likelihood": "squared-error", "posterior": "deterministic", "latent_term": "none"}

#: One of each new kind of part.
SYSTEMS: dict[str, dict[str, Any]] = {
    "full": {"posterior": "full"},
    "isotropic": {"posterior": "isotropic"},
    "fixed": {"posterior": "fixed", "posterior_variance": 0.3},
    "planar": {"posterior": "planar", "flow_steps": 2},
    "radial": {"posterior": "radial", "flow_steps": 3},
    "bernoulli": {"likelihood": "bernoulli"},
    "logistic-mixture": {"likelihood": "logistic-mixture", "mixture_components": 2, "levels": 17},
    "autoencoder": AUTOENCODER,
    "squared-norm": AUTOENCODER | {"latent_term": "squared-norm"},
    "mmd": AUTOENCODER | {"latent_term": "mmd"},
    "l2": AUTOENCODER | {"decoder_penalty": "l2", "penalty_weight": 0.1},
    "jacobian": AUTOENCODER | {"decoder_penalty": "jacobian", "penalty_weight": 0.1},
    "vector-jacobian": AUTOENCODER | {"decoder_penalty": "vector-jacobian"},
    "spectral-norm": AUTOENCODER | {"spectral_norm": True},
    "deterministic-gaussian": {"posterior": "deterministic", "latent_term": "squared-norm"},
}


def _make(system: dict[str, Any], **objective: Any) -> VAE:
    config = ModelConfig(
        ObjectiveConfig(**objective),
        NetworkConfig(latent_dim=3, width=8),
        SystemConfig(**system),
    )
    return VAE.from_config(config, SHAPE, RANGE)


@pytest.fixture
def x() -> Tensor:
    return torch.randint(0, 17, (6, *SHAPE)).float() / 16


def test_a_flow_s_loss_is_its_free_energy(x: Tensor) -> None:
    vae = _make(SYSTEMS["planar"], estimate="fixed", variance=0.2, beta=3.0)
    noise = vae.draw_noise(len(x), torch.Generator().manual_seed(0))
    found = vae(x, noise=noise)
    q = vae.posterior(x)
    z, ratio = q.sample_and_ratio(noise=noise)
    nll = functional.gaussian_nll(vae.decode(z), x, math.log(0.2))
    torch.testing.assert_close(found.loss, nll + 3.0 * ratio.mean())
    torch.testing.assert_close(found.kl, ratio.mean())
    torch.testing.assert_close(found.reconstruction, nll)
    extra = vae.encoder.extra.weight
    (gradient,) = torch.autograd.grad(found.loss, extra)
    (expected,) = torch.autograd.grad(nll + 3.0 * ratio.mean(), extra)
    torch.testing.assert_close(gradient, expected)


def test_a_full_covariance_s_loss_is_the_fused_one(x: Tensor) -> None:
    vae = _make(SYSTEMS["full"], beta=3.0)
    noise = vae.draw_noise(len(x))
    found = vae(x, noise=noise)
    q = vae.posterior(x)
    z = q.mu + (q.scale_tril @ noise[..., None])[..., 0]
    recon = functional.mle_nll(vae.decode(z), x, "iso-i")
    kl = functional.full_gaussian_kl(q.mu, q.scale_tril)
    torch.testing.assert_close(found.loss, recon + 3.0 * kl)
    assert q.scale_tril.tril(-1).abs().max() > 0


def _squares(vae: VAE, x: Tensor) -> Tensor:
    return (vae.decode(vae.encode(x)[0]) - x).square().flatten(1).sum(1).mean()


def test_autoencoders_add_up(x: Tensor) -> None:
    plain = _make(SYSTEMS["autoencoder"], beta=7.0)
    torch.testing.assert_close(plain(x).loss, _squares(plain, x))
    norm = _make(SYSTEMS["squared-norm"], beta=7.0)
    expected = _squares(norm, x) + 3.5 * norm.encode(x)[0].square().sum(1).mean()
    torch.testing.assert_close(norm(x).loss, expected)
    mmd = _make(SYSTEMS["mmd"], beta=7.0)
    generator = torch.Generator().manual_seed(4)
    found = mmd(x, noise=mmd.draw_noise(len(x)), generator=generator)
    prior = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    expected = _squares(mmd, x) + 7.0 * multiquadric_mmd(mmd.encode(x)[0], prior)
    torch.testing.assert_close(found.loss, expected)
    decay = _make(SYSTEMS["l2"])
    expected = _squares(decay, x) + 0.1 * decoder_weights(decay.decoder)
    torch.testing.assert_close(decay(x).loss, expected)


def test_a_gaussian_autoencoder_has_half_the_squared_norm(x: Tensor) -> None:
    vae = _make(SYSTEMS["deterministic-gaussian"], estimate="fixed", variance=0.1)
    mu, logvar = vae.encode(x)
    assert (logvar == -math.inf).all()
    nll = functional.gaussian_nll(vae.decode(mu), x, math.log(0.1))
    torch.testing.assert_close(vae(x).loss, nll + 0.5 * mu.square().sum(1).mean())


@pytest.mark.parametrize("kind", ["jacobian", "vector-jacobian"])
def test_gradient_penalties_join_the_loss(kind: str, x: Tensor) -> None:
    vae = _make(AUTOENCODER | {"decoder_penalty": kind, "penalty_weight": 0.3})
    noise = vae.draw_noise(len(x))
    found = vae(x, noise=noise, generator=torch.Generator().manual_seed(2))
    mu = vae.encode(x)[0]
    J = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda z: vae.decode(z[None])[0].flatten(), each)
            for each in mu.detach()
        ]
    )
    x_hat = vae.decode(mu).detach().flatten(1)
    if kind == "jacobian":
        probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).flatten(1)
    else:
        probe = 2 * x_hat
    expected = (probe[:, None] @ J).square().sum((1, 2)).mean()
    torch.testing.assert_close(found.loss - _squares(vae, x), 0.3 * expected, rtol=1e-4, atol=1e-6)
    found.loss.backward()
    assert all(p.grad is not None for p in vae.decoder.parameters())


def test_spectral_norm_leaves_no_singular_value_above_one() -> None:
    vae = _make(SYSTEMS["spectral-norm"])
    for _ in range(20):  # each training forward improves the estimate
        vae.decode(torch.randn(4, 3))
    layers = [m for m in vae.decoder.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach(), ord=2)
        assert float(largest) == pytest.approx(1.0, abs=1e-3)


def test_the_isotropic_optimum_is_the_one_of_the_paper() -> None:
    """E|mu|^2 / d + sigma_z^2 = 1 and KL = -d/2 log sigma_z^2 (Takida et al., section 4.2).

    Both follow from stationarity under (mu, J) -> (c mu, J / c), which a linear model has all of.
    """
    d, D = 2, 5
    data = torch.randn(100, d) @ torch.randn(d, D) + 0.1 * torch.randn(100, D)
    data = data.double()

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, d)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), x.new_zeros(len(x), d)

    vae = VAE(
        Linear(),
        nn.Linear(d, D),
        GaussianVAELoss("iso-i", "fixed", variance=0.1),
        d,
        posterior_samples=2 * d,
        posterior=Isotropic(1.0, learned=True),
    ).double()
    # Draws of mean 0 and covariance I: of a linear decoder they give the expectation, exactly.
    corners = math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)]).double()
    noise = corners[:, None].expand(2 * d, len(data), d).contiguous()
    optimizer = torch.optim.LBFGS(vae.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = vae(data, noise=noise).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        mu, logvar = vae.encode(data)
        kl = float(vae(data, noise=noise).kl)
    variance = float(logvar[0, 0].exp())
    assert variance < 0.3  # learned: it started at 1
    assert float(mu.square().sum(1).mean()) / d + variance == pytest.approx(1.0, abs=1e-4)
    assert kl == pytest.approx(-0.5 * d * math.log(variance), rel=1e-4)


def test_learned_variances_are_told_apart() -> None:
    vae = _make(SYSTEMS["isotropic"], estimate="learned")
    names = {id(p): n for n, p in vae.named_parameters()}
    assert [names[id(p)] for p in vae.variances()] == ["loss.x_logvar", "family.z_logvar"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_saved_system_is_the_same(name: str, x: Tensor, tmp_path: Path) -> None:
    vae = _make(SYSTEMS[name], beta=2.0)
    vae(x).loss.backward()
    for parameter in vae.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    vae(x)  # moves running variances and singular vectors
    vae.eval()
    vae.save_pretrained(tmp_path)
    again = VAE.from_pretrained(tmp_path)
    assert again._describe() == vae._describe()
    noise = vae.draw_noise(len(x))

    def values(model: VAE) -> list[Tensor]:
        found = model(x, noise=noise, generator=torch.Generator().manual_seed(0))
        score = model.score(x, model.posterior(x).sample(noise=noise))
        return [found.loss, found.kl, found.mse, score.nll]

    for expected, each in zip(values(vae), values(again), strict=True):
        assert (expected == each).all()
    assert len(vae.variances()) == len(again.variances())


def test_a_model_from_before_there_were_systems_is_read(x: Tensor, tmp_path: Path) -> None:
    import json

    vae = _make({}).eval()
    vae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    for name in ("posterior", "latent_term", "penalty"):
        del old[name]
    path.write_text(json.dumps(old))
    again = VAE.from_pretrained(tmp_path)
    assert (again.encode(x)[0] == vae.encode(x)[0]).all()
    old["posterior"] = {"name": "banana"}
    path.write_text(json.dumps(old))
    with pytest.raises(RunError, match="does not describe a model of this version"):
        VAE.from_pretrained(tmp_path)


def test_parts_that_cannot_go_together_are_refused() -> None:
    for system, objective, message in (
        (
            {"posterior": "deterministic"},
            {},
            "latent_term must not be kl with the determ.*; use --",
        ),
        (AUTOENCODER, {"posterior_samples": 2}, "posterior_samples must be 1 .* got 2; leave it"),
        ({"likelihood": "bernoulli"}, {"covariance": "diag-i"}, "covariance belongs to the Gaus"),
        ({"likelihood": "bernoulli"}, {"activation": "tanh"}, "activation must be auto for the"),
        ({"posterior_variance": 0.0}, {}, "posterior_variance must be positive, got 0"),
        ({"flow_steps": 0}, {}, "flow_steps must be at least 1, got 0"),
        ({"levels": 1}, {}, "levels must be at least 2, got 1"),
        ({"penalty_weight": -1.0}, {}, "penalty_weight must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            _make(system, **objective)
    encoder, decoder = nn.Identity(), nn.Identity()
    loss = GaussianVAELoss()
    with pytest.raises(ValueError, match=r"latent_term must be one of 'kl', .* got 'kll'"):
        VAE(encoder, decoder, loss, 2, latent_term="kll")
    with pytest.raises(ValueError, match="loss must be a GaussianVAELoss to have a variance"):
        _make(SYSTEMS["bernoulli"]).decoder_distribution(torch.zeros(1, 3))


def test_a_system_is_reduced_as_its_loss_is(x: Tensor) -> None:
    encoder, decoder = networks.build(
        "mlp",
        x.shape[1:],
        3,
        output="linear",
        extra_outputs=build_family("planar").extra_outputs(3),
    )
    noise = torch.randn(len(x), 3)
    found = {}
    for reduction in ("batchmean", "mean"):
        vae = VAE(
            encoder,
            decoder,
            GaussianVAELoss("iso-i", "fixed", reduction=reduction),
            3,
            posterior=build_family("planar"),
            penalty=DecoderPenalty("l2", 0.1),
        )
        found[reduction] = vae(x, noise=noise)
    dims = x[0].numel()
    for name in ("loss", "reconstruction", "kl", "mse"):
        whole, mean = (getattr(found[each], name) for each in ("batchmean", "mean"))
        torch.testing.assert_close(dims * mean, whole)
    for reduction in ("sum", "none"):
        loss = GaussianVAELoss("iso-i", "fixed", reduction=reduction)
        VAE(encoder, decoder, loss, 3)
        with pytest.raises(ValueError, match=f"must be 'batchmean' or 'mean' .* got '{reduction}'"):
            VAE(encoder, decoder, loss, 3, penalty=DecoderPenalty("l2", 0.1))


def test_data_that_a_likelihood_has_no_word_for_are_refused() -> None:
    for likelihood in ("bernoulli", "logistic-mixture"):
        config = ModelConfig(system=SystemConfig(likelihood=likelihood))
        with pytest.raises(ValueError, match=f"likelihood '{likelihood}'.* needs"):
            VAE.from_config(config, (3,), None)
