"""Latent samplers: what each draws, against numbers worked out by hand."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import vaekern
from vaekern.models import (
    SAMPLERS,
    VAE,
    GaussianMixtureSampler,
    InterpolationSampler,
    TwoStageVAE,
    interpolation_strips,
    latent_sampler,
    spherical_interpolation,
)
from vaekern.models.samplers import encode_means

D = 2


class Doubled(nn.Module):
    """An encoder whose mean is 2x and whose spread is large: its draws are not its means."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale * x, torch.full_like(x, 3.0)


class Halved(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z / 2


@pytest.fixture
def vae() -> VAE:
    """z = 2x and x_hat = z / 2, in float64: what is drawn can be read off the samples."""
    loss = vaekern.GaussianVAELoss("iso-i", "fixed")
    return VAE(Doubled(), Halved(), loss, latent_dim=D).double()


@pytest.fixture
def two_stages(vae: VAE) -> TwoStageVAE:
    loss = vaekern.GaussianVAELoss("iso-i", "learned", variance=0.25)
    stage2 = VAE(*vaekern.models.networks.second_stage(D, width=4), loss, latent_dim=D)
    return TwoStageVAE(vae, stage2.double()).eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, dtype=torch.float64, generator=seeded(seed))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_decodes_its_latents(name: str, two_stages: TwoStageVAE) -> None:
    sampler = latent_sampler(name, two_stages, normal(2000))
    z = sampler.latents(700, generator=seeded(1))  # more than a chunk
    assert z.shape == (700, D)
    assert z.dtype == torch.float64
    assert z.isfinite().all()
    x = sampler.sample(700, generator=seeded(1))
    torch.testing.assert_close(x, z / 2)
    assert not x.requires_grad
    assert not x.equal(sampler.sample(700, generator=seeded(2)))


def test_prior_and_second_stage_draw_what_the_model_draws(two_stages: TwoStageVAE) -> None:
    for name, stage in (("prior", 1), ("second-stage", 2)):
        drawn = latent_sampler(name, two_stages).sample(5, generator=seeded())
        assert drawn.equal(two_stages.sample(5, stage=stage, generator=seeded()))


def test_codes_are_the_encoders_means(vae: VAE) -> None:
    x = normal(700)
    vae.train()
    codes = encode_means(vae, x)
    assert codes.equal(2 * x)
    assert vae.training
    assert not codes.requires_grad
    assert latent_sampler("interpolation", vae, x).codes.equal(2 * x)


def test_one_gaussian_has_the_mean_and_covariance_of_the_codes(vae: VAE) -> None:
    codes = normal(300) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]).double() + 3
    sampler = GaussianMixtureSampler.fit(vae, codes, components=1)
    mean = codes.mean(0)
    centred = codes - mean
    covariance = centred.T @ centred / len(codes) + 1e-6 * torch.eye(D)  # scikit-learn's floor
    torch.testing.assert_close(sampler.means[0], mean)
    torch.testing.assert_close(sampler.covariances[0], covariance)
    n = 40_000
    drawn = sampler.latents(n, generator=seeded())
    # Five standard errors: of a mean sqrt(v / n), of a covariance at most sqrt(2 v v' / n).
    spread = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - mean).abs() < 5 * spread / math.sqrt(n)).all()
    error = (torch.cov(drawn.T) - covariance).abs()
    assert (error < 5 * math.sqrt(2 / n) * torch.outer(spread, spread)).all()


def test_a_mixture_finds_its_parts_and_draws_them_by_weight(vae: VAE) -> None:
    centres = torch.tensor([[-9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]).double()
    parts = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(100)
    counts = torch.bincount(parts, minlength=3)
    codes = centres[parts] + 0.1 * normal(600)
    sampler = GaussianMixtureSampler.fit(vae, codes, components=3)
    order = [int((sampler.means - c).norm(dim=1).argmin()) for c in centres]
    torch.testing.assert_close(sampler.weights[order], counts.double() / 600)
    for k, centre in zip(order, centres, strict=True):
        assert (sampler.means[k] - centre).norm() < 0.05
    drawn = sampler.latents(6000, generator=seeded())
    nearest = torch.cdist(drawn, centres)
    assert nearest.min(1).values.max() < 0.1 * 6  # each of its own part, with its spread
    shares = torch.bincount(nearest.argmin(1), minlength=3) / 6000
    # five standard errors of a share of one half
    assert (shares - counts / 600).abs().max() < 5 * math.sqrt(0.25 / 6000)


def test_a_mixture_has_the_papers_settings(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.mixture

    given = []
    original = sklearn.mixture.GaussianMixture

    def spy(*args: object, **options: object) -> object:
        given.append((*args, options))
        return original(*args, **options)

    monkeypatch.setattr(sklearn.mixture, "GaussianMixture", spy)
    latent_sampler("gmm-10", vae, normal(50), seed=3)
    settings = {"covariance_type": "full", "max_iter": 2000, "tol": 1e-3, "random_state": 3}
    assert given == [(10, settings)]
    assert SAMPLERS["gmm-10"].codes == SAMPLERS["gmm-100"].codes == "train"


def test_a_mixture_survives_a_file(vae: VAE) -> None:
    fitted = GaussianMixtureSampler.fit(vae, normal(100), components=3)
    again = GaussianMixtureSampler.from_tensors(vae, fitted.tensors())
    assert again.latents(9, generator=seeded()).equal(fitted.latents(9, generator=seeded()))
    wrong = fitted.tensors() | {"means": torch.zeros(3, D + 1)}
    with pytest.raises(ValueError, match=r"must have means \[3, 2\].*got \[3, 3\]"):
        GaussianMixtureSampler.from_tensors(vae, wrong)


def test_a_warning_names_the_samples_that_the_covariances_take(vae: VAE) -> None:
    with pytest.warns(UserWarning, match="10 covariances in 2 dimensions take at least 30 samples"):
        latent_sampler("gmm-10", vae, normal(29))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latent_sampler("gmm-10", vae, normal(30))


def test_spherical_interpolation_in_closed_form() -> None:
    a, b = torch.tensor([3.0, 0.0]).double(), torch.tensor([0.0, 2.0]).double()
    for t in (0.0, 0.3, 1.0):  # at a right angle sin w = 1
        expected = [3 * math.cos(math.pi / 2 * t), 2 * math.sin(math.pi / 2 * t)]
        assert spherical_interpolation(a, b, t).tolist() == pytest.approx(expected, abs=1e-15)
    # Codes of one length stay on their circle, and the angle grows evenly.
    angles = torch.tensor([0.2, 1.4]).double()
    start, end = (5 * torch.stack([angle.cos(), angle.sin()]) for angle in angles)
    for t in (0.25, 0.5, 0.9):
        angle = torch.lerp(*angles, t)
        expected = 5 * torch.stack([angle.cos(), angle.sin()])
        torch.testing.assert_close(spherical_interpolation(start, end, t), expected)


@pytest.mark.parametrize(
    ("a", "b"), [([1, 2], [2, 4]), ([1, 2], [1, 2]), ([1, 0], [-3, 0]), ([0, 0], [1, 2])]
)
def test_without_an_arc_there_is_the_line(a: list[float], b: list[float]) -> None:
    first, second = torch.tensor(a).float(), torch.tensor(b).float()
    middle = spherical_interpolation(first, second, 0.25)
    torch.testing.assert_close(middle, 0.75 * first + 0.25 * second)


def test_each_row_has_its_own_ratio() -> None:
    a, b = normal(4), normal(4, seed=1)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0]).double()
    rows = [spherical_interpolation(a[i], b[i], float(t[i])) for i in range(4)]
    torch.testing.assert_close(spherical_interpolation(a, b, t), torch.stack(rows))
    torch.testing.assert_close(rows[0], a[0])
    torch.testing.assert_close(rows[3], b[3])


def test_midpoints_lie_between_two_different_codes(vae: VAE) -> None:
    angles = torch.tensor([0.0, 1.0, 2.0]).double()
    codes = torch.stack([angles.cos(), angles.sin()], 1)
    z = InterpolationSampler(vae, codes).latents(3000, generator=seeded())
    found = torch.atan2(z[:, 1], z[:, 0]).div(0.5).round().long().bincount(minlength=4)
    # 0.5, 1 and 1.5 are the mid-points of the three pairs, each as likely; 0, 2 would be no pairs
    assert found[[1, 2, 3]].sum() == 3000
    assert (found[[1, 2, 3]] - 1000).abs().max() < 5 * math.sqrt(3000 * 2 / 9)


def test_random_points_lie_anywhere_on_the_arc(vae: VAE) -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    z = InterpolationSampler(vae, codes, ratio=None).latents(4000, generator=seeded())
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4000).double())
    share = torch.atan2(z[:, 1], z[:, 0]) / (math.pi / 2)
    # uniform: the mean's standard error is 1 / sqrt(12 n), a quarter's sqrt(3/16 n) / n
    assert float(share.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 4000))
    counts = torch.histc(share, 4, 0, 1)
    assert (counts - 1000).abs().max() < 5 * math.sqrt(4000 * 3 / 16)


def test_strips_run_from_one_code_to_the_other(vae: VAE) -> None:
    a, b = normal(3), normal(3, seed=1)
    strips = interpolation_strips(vae, a, b, steps=5)
    assert strips.shape == (3, 5, D)
    torch.testing.assert_close(strips[:, 0], a / 2)
    torch.testing.assert_close(strips[:, 4], b / 2)
    torch.testing.assert_close(strips[:, 1], spherical_interpolation(a, b, 0.25) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: latent_sampler("gmm", v), "sampler must be one of prior, .*, got 'gmm'"),
        (lambda v: latent_sampler("gmm-10", v), "codes of the train set, got none; give x=data.tr"),
        (lambda v: latent_sampler("second-stage", v), "needs a TwoStageVAE, got a VAE; train a"),
        (lambda v: latent_sampler("gmm-10", v, normal(9)), "for each of 10 components, got 9"),
        (lambda v: latent_sampler("interpolation", v, normal(1)), "N at least 2, got .1, 2.;"),
        (lambda v: InterpolationSampler(v, normal(3), ratio=1.5), "between 0 and 1, got 1.5"),
        (lambda v: interpolation_strips(v, normal(3), normal(3), steps=1), "steps must be at"),
        (lambda v: GaussianMixtureSampler.fit(v, normal(9)[:, :1]), r"\[N, 2\], got \[9, 1\]"),
        (lambda v: GaussianMixtureSampler.fit(v, normal(9), components=0), "at least 1, got 0"),
        (lambda v: GaussianMixtureSampler.fit(v, normal(99) / 0), "codes must be finite"),
    ],
)
def test_bad_input(vae: VAE, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(vae)
