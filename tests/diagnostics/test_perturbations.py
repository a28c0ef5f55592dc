"""Codes that are moved, decoded by linear maps whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vaekern.diagnostics import directional_variance, latent_traversals, perturbed_codes

D64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=D64, generator=torch.Generator().manual_seed(seed))


W = normal(6, 4, seed=9)  # decoder of 4 latents


def linear(z: torch.Tensor) -> torch.Tensor:
    return (z @ W.T.to(z.dtype) + 5).unflatten(1, (1, 2, 3))


@pytest.mark.parametrize("draws", ["quantiles", "normal"])
def test_directions_of_a_diagonal_encoder(draws: str):
    mu, logvar = normal(3, 4), normal(3, 4, seed=1)
    result = directional_variance(linear, mu, logvar, scale=0.7, draws=draws, return_images=True)
    eigenvalue, order = logvar.exp().sort(1)
    column = W.square().mean(0)  # |W_j|^2 / D
    assert torch.allclose(result.eigenvalue, eigenvalue)
    assert torch.allclose(result.variance, 0.49 * column[order], rtol=1e-12)
    moved = torch.einsum("bij,bj->bi", result.direction, eigenvalue)
    assert torch.allclose(moved, logvar.exp())  # each direction stands beside its eigenvalue
    assert result.images is not None
    assert result.images.shape == (3, 4, 15, 1, 2, 3)
    assert torch.allclose(result.images.mean(2), linear(mu)[:, None].expand(3, 4, 1, 2, 3))


def test_directions_of_a_full_encoder():
    lower = normal(3, 4, 4, seed=2).tril()
    covariance = lower @ lower.mT
    # chunks of one direction at a time give what one call gives
    result = directional_variance(linear, normal(3, 4), scale_tril=lower, samples=600)
    assert torch.allclose(
        covariance @ result.direction, result.direction * result.eigenvalue[:, None]
    )
    assert (result.eigenvalue.diff(dim=1) > 0).all()
    assert torch.allclose(result.variance, (W @ result.direction).square().mean(1), rtol=1e-12)
    assert result.images is None


def test_small_eigenvalues_of_a_full_encoder_are_exact():
    lower = torch.diag(torch.tensor([1e-9, 1.0], dtype=D64))[None]
    result = directional_variance(lambda z: z, normal(1, 2), scale_tril=lower)
    assert result.eigenvalue[0].tolist() == pytest.approx([1e-18, 1], rel=1e-12)


def test_quantiles_are_those_of_the_normal_distribution():
    # of n = 3: the 1/6, 1/2 and 5/6 quantiles, scaled to variance 1, are -sqrt(3/2), 0, sqrt(3/2)
    result = directional_variance(
        lambda z: z, torch.zeros(1, 1), torch.zeros(1, 1), samples=3, return_images=True
    )
    assert result.images is not None
    assert result.images.flatten().tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])


def test_random_offsets_follow_the_generator():
    def draw(seed: int) -> torch.Tensor:
        result = directional_variance(
            torch.tanh, torch.ones(1, 2), torch.zeros(1, 2), draws="normal",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return result.variance

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_perturbed_codes_have_the_variance_that_was_asked_for():
    mu = normal(3, 4)
    images = perturbed_codes(
        lambda z: 2 * z, mu, (0.0, 0.01, 4.0), samples=2000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(images[0], (2 * mu)[:, None].expand(3, 2000, 4))
    noise = (images[2] - 2 * mu[:, None]) / 4
    # 24,000 squares of N(0, 1): standard error sqrt(2 / 24,000) = 0.009; 5 of it
    assert noise.square().mean().item() == pytest.approx(1, abs=0.046)
    # independent draws for each code and sample: correlations of 2000 pairs, 5 / sqrt(2000)
    correlation = torch.corrcoef(noise.permute(0, 2, 1).flatten(0, 1))
    assert correlation.fill_diagonal_(0).abs().max() < 0.112
    # the same draws at every distance
    assert torch.allclose(images[1], 2 * mu[:, None] + 0.2 * noise)


def test_traversals_move_one_dimension_each_from_the_code():
    mu, logvar = normal(50, 4), normal(50, 4, seed=1) + torch.tensor([0.0, -9, -5, -7])
    code = normal(4, seed=2)
    result = latent_traversals(linear, mu, logvar, code=code, rows=3, reach=2, steps=5)
    assert result.dimension.tolist() == [1, 3, 2]
    assert result.value.tolist() == [-2, -1, 0, 1, 2]
    for row, j in enumerate(result.dimension.tolist()):
        for column, value in enumerate(result.value):
            z = code.clone()
            z[j] = value
            assert torch.allclose(result.images[row, column], linear(z[None])[0])
    variance = logvar.exp()
    kl = 0.5 * (mu**2 + variance - logvar - 1).mean(0)
    assert torch.allclose(result.variance, variance.mean(0)[result.dimension])
    assert torch.allclose(result.kl, kl[result.dimension])
    assert torch.equal(
        latent_traversals(linear, mu, logvar).images[:, 5],  # z = 0 throughout
        torch.full((4, 1, 2, 3), 5.0, dtype=D64),
    )


def test_decoders_are_called_in_evaluation_mode_in_bounded_chunks():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            self.sizes.append(len(z))
            return z

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return self(z)

    decoder = Decoder()
    perturbed_codes(decoder, torch.zeros(100, 2), (1.0,), samples=11)
    assert decoder.sizes[-3:] == [512, 512, 76]
    directional_variance(decoder.decode, torch.zeros(40, 2), torch.zeros(40, 2))
    assert decoder.training
    assert max(decoder.sizes) <= 512


MU, LOGVAR = torch.zeros(3, 2), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: directional_variance(linear, MU), ValueError, "exactly one"),
        (lambda: directional_variance(linear, MU[0], LOGVAR[0]), ValueError, "[N, d]"),
        (lambda: directional_variance(linear, MU, LOGVAR[:2]), ValueError, "logvar"),
        (lambda: directional_variance(linear, MU, LOGVAR / 0), ValueError, "logvar must be finite"),
        (lambda: directional_variance(linear, MU, LOGVAR, samples=1), ValueError, "at least 2"),
        (lambda: directional_variance(linear, MU, LOGVAR, scale=0), ValueError, "scale"),
        (lambda: directional_variance(linear, MU, LOGVAR, draws="x"), ValueError, "quantiles"),  # type: ignore[arg-type]
        (
            lambda: directional_variance(lambda z: [], MU, LOGVAR),
            TypeError,
            "decoder must return a tensor",
        ),
        (lambda: perturbed_codes(lambda z: z.sum(), MU), ValueError, "one row or image for each z"),
        (lambda: perturbed_codes(linear, MU.long()), TypeError, "mu"),
        (lambda: perturbed_codes(linear, MU, ()), ValueError, "variances"),
        (lambda: perturbed_codes(linear, MU, (0.1, -1)), ValueError, "not negative"),
        (lambda: perturbed_codes(linear, MU, samples=0), ValueError, "samples"),
        (lambda: latent_traversals(linear, MU, LOGVAR[:2]), ValueError, "logvar"),
        (lambda: latent_traversals(linear, MU, LOGVAR, code=MU), ValueError, "one row of mu"),
        (lambda: latent_traversals(linear, MU, LOGVAR, reach=-1), ValueError, "reach"),
        (lambda: latent_traversals(linear, MU, LOGVAR, steps=1), ValueError, "steps"),
    ],
)
def test_bad_input(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value)
    assert ". " not in str(caught.value).replace("e.g. ", "").replace("...", "")
