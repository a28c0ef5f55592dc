"""Deterministic and stochastic reconstruction losses, in closed form for a linear decoder."""

from __future__ import annotations

import math

import pytest
import torch

from vaekern.diagnostics import decoder_jacobian, reconstruction_losses


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_linear_decoder(linear_vae):
    model = linear_vae((3.0, 0.5, 1.0), 6, sigma=0.3)
    vae, x = model.vae(), model.data(300)
    mu, logvar = (t.detach() for t in vae.encode(x))
    jacobian = decoder_jacobian(vae, mu)
    found = reconstruction_losses(vae, x, draws=40, jacobian=jacobian, generator=generator(0))
    deterministic = float((mu @ model.weight.T + model.bias - x).square().sum(1).mean())
    noise = float(logvar.exp()[0] @ model.weight.square().sum(0))  # sum_j sigma_j^2 |w_j|^2
    assert float(found.deterministic) == pytest.approx(deterministic, rel=1e-12)
    assert float(found.linearized) == pytest.approx(noise, rel=1e-12)
    # |W eps|^2 = sum_j c_j n_j^2 with c_j = sigma_j^2 |w_j|^2: the variance is 2 sum_j c_j^2
    squares = logvar.exp()[0] * model.weight.square().sum(0)
    spread = math.sqrt(2 * float(squares.square().sum()) / (300 * 40))
    assert float(found.stochastic) == pytest.approx(noise, abs=4 * spread)
    # a linear decoder is unbiased; the product of noise and residual r has the variance
    # 4 r^T W diag(sigma^2) W^T r, here at most 4 |r|^2 max_j c_j
    cross = math.sqrt(4 * deterministic * float(squares.max()) / (300 * 40))
    assert float(found.total) == pytest.approx(
        float(found.deterministic + found.stochastic), abs=4 * cross
    )


def test_by_definition_with_one_draw_each():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]], dtype=torch.float64)

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, torch.full_like(x, 2 * math.log(2.0))  # sigma = 2

    found = reconstruction_losses(
        (encode, torch.square),
        x,
        draws=3,
        jacobian=torch.diag_embed(2 * (x + 1)),
        generator=generator(5),
    )
    again, total, stochastic = generator(5), 0.0, 0.0
    for _ in range(3):
        z = x + 1 + 2 * torch.randn(3, 2, dtype=torch.float64, generator=again)
        total += float((z**2 - x).square().sum()) / 9
        stochastic += float((z**2 - (x + 1) ** 2).square().sum()) / 9
    assert float(found.total) == pytest.approx(total, rel=1e-12)
    assert float(found.stochastic) == pytest.approx(stochastic, rel=1e-12)
    assert float(found.deterministic) == pytest.approx(
        float(((x + 1) ** 2 - x).square().sum(1).mean()), rel=1e-12
    )
    linearized = 4 * float((2 * (x + 1)).square().sum(1).mean())
    assert float(found.linearized) == pytest.approx(linearized, rel=1e-12)
    two_pieces = reconstruction_losses(
        (encode, torch.square), x, jacobian=torch.diag_embed(2 * (x + 1)), chunk_size=2
    )
    assert float(two_pieces.linearized) == pytest.approx(linearized, rel=1e-12)
    # E z^2 = mu^2 + 4 is biased: the total is more than the two parts, by 8 sum_i (mu_i^2 - x_i)
    many = x.repeat(20_000, 1)
    found = reconstruction_losses(
        (encode, torch.square), many, chunk_size=60_000, generator=generator(1)
    )
    assert found.linearized is None
    excess = found.total - found.deterministic - found.stochastic
    expected = 8 * float(((x + 1) ** 2 - x).sum(1).mean())
    # over 600000 draws its standard deviation is 0.6 %
    assert float(excess) == pytest.approx(expected, rel=0.03)


def test_the_variance_comes_beside_the_mean_and_chunks_are_bounded(linear_vae):
    model = linear_vae((2.0, 1.0), 4, sigma=0.5)
    sizes: list[int] = []

    def decode(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(z))
        return model.decoder(z), torch.zeros(1)

    x = model.data(10)
    J = decoder_jacobian(model.decoder, model.encoder(x)[0])
    one = reconstruction_losses((model.encoder, decode), x, jacobian=J, chunk_size=3)
    other = reconstruction_losses(model.vae(), x, jacobian=J)
    assert max(sizes) == 3
    assert float(one.deterministic) == pytest.approx(float(other.deterministic), rel=1e-12)
    assert float(one.linearized) == pytest.approx(float(other.linearized), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"x": torch.zeros(4)}, ValueError, "[4]"),
        ({"draws": 0}, ValueError, "draws"),
        ({"jacobian": torch.zeros(3, 4, 1)}, ValueError, "here [3, 4, 2], got [3, 4, 1]"),
        ({"model": (lambda x: (x, x), lambda z: z[:, :2])}, ValueError, "shape of x, got [3, 2]"),
        ({"model": 3}, TypeError, "got int"),
    ],
)
def test_bad_input(linear_vae, change, error, word):
    vae = linear_vae((2.0, 1.0), 4, sigma=0.5).vae()
    arguments = {"model": vae, "x": torch.zeros(3, 4).double()} | change
    with pytest.raises(error) as caught:
        reconstruction_losses(**arguments)
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
