"""Streaming over a data set against the one-shot computation, and a linear VAE in closed form."""

from __future__ import annotations

import doctest
import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import vaekern
from vaekern.data import synth_lin
from vaekern.diagnostics import (
    column_norm_product,
    decoder_jacobian,
    decoder_orthogonality,
    decoders,
    distance_to_orthogonality,
    random_rotation_baseline,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def tanh_decoder(d: int, features: int = 30) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, features)).double()


# ------------------------------------------------------------------ streaming


def test_equals_the_one_shot_computation():
    d, count = 4, 37
    decoder, z = tanh_decoder(d), torch.randn(37, 4, dtype=torch.float64)
    masks = torch.rand(count, d) > 0.3
    J = decoder_jacobian(decoder, z)
    whole = distance_to_orthogonality(J, masks)
    for options in ({"chunk_size": 5}, {"chunk_size": 100}, {"memory_budget": 30_000}):
        result = decoder_orthogonality(decoder, z, active=masks, **options)
        for one, other in zip(result.distances, whole, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)
        torch.testing.assert_close(result.singular_values, torch.linalg.svdvals(J), **CLOSE)
        torch.testing.assert_close(result.column_norms, J.norm(dim=1).mean(0), **CLOSE)
    for name in ("full", "active", "off_diagonal"):
        values = getattr(whole, name)
        assert getattr(result.mean, name) == pytest.approx(float(values.mean()))
        error = float(values.std()) / math.sqrt(count)
        assert getattr(result.standard_error, name) == pytest.approx(error)
    one = decoder_orthogonality(decoder, z[:1])
    assert one.mean.full == pytest.approx(float(whole.full[0]))
    assert math.isnan(one.standard_error.full)


def test_one_chunk_of_jacobians_at_a_time(monkeypatch: pytest.MonkeyPatch):
    sizes, alive = [], []
    measure, split = decoders.measure, decoders.decoder_jacobian_chunks

    def chunks(*args, **kwargs) -> Iterator[Tensor]:
        for J in split(*args, **kwargs):
            sizes.append(J.numel())
            # those handed out before must be gone while this one was made
            assert not any(earlier() is not None for earlier in alive)
            alive.append(weakref.ref(J))
            yield J
            del J

    def watched(J: Tensor, active: Tensor | None):
        assert len(J) <= 8
        return measure(J, active)

    monkeypatch.setattr(decoders, "decoder_jacobian_chunks", chunks)
    monkeypatch.setattr(decoders, "measure", watched)
    decoder, z = tanh_decoder(3), torch.randn(50, 3, dtype=torch.float64)
    for progress in (False, True):
        sizes.clear()
        decoder_orthogonality(decoder, z, chunk_size=8, progress=progress)
        assert max(sizes) == 8 * 30 * 3
        assert sum(sizes) == 50 * 30 * 3


def test_baselines_of_all_and_of_the_active_dimensions():
    decoder, z = tanh_decoder(5), torch.randn(4, 5, dtype=torch.float64)

    def mean(k: int, seed: int = 0) -> float:
        draws = random_rotation_baseline(k, 1000, generator=torch.Generator().manual_seed(seed))
        return float(draws.mean())

    everything = decoder_orthogonality(decoder, z)
    assert everything.baseline == everything.active_baseline == mean(5)
    assert decoder_orthogonality(decoder, z).baseline == everything.baseline
    masks = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]])
    some = decoder_orthogonality(decoder, z, active=masks.bool())
    # the deviation of one rotation in 2 dimensions is 0.31
    expected = (2 * mean(2, 5) + mean(5) + 0) / 4
    assert some.active_baseline == pytest.approx(expected, abs=4 * 0.31 / math.sqrt(1000))
    few = decoder_orthogonality(decoder, z, active=torch.arange(5) < 1)
    assert (few.active_baseline, few.mean.active) == (0, 0)
    more = decoder_orthogonality(
        decoder, z, baseline_samples=7, generator=torch.Generator().manual_seed(3)
    )
    assert more.baseline == float(
        random_rotation_baseline(5, 7, generator=torch.Generator().manual_seed(3)).mean()
    )


def test_progress_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]):
    decoder, z = tanh_decoder(2), torch.randn(6, 2, dtype=torch.float64)
    decoder_orthogonality(decoder, z, chunk_size=2)
    assert capsys.readouterr() == ("", "")
    decoder_orthogonality(decoder, z, chunk_size=2, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_a_diverging_sample_is_named_by_its_place_in_z():
    z = torch.ones(9, 2)
    z[7, 1] = 0
    with pytest.raises(ValueError, match=r"z\[7\]") as caught:
        decoder_orthogonality(lambda z: 1 / z, z, chunk_size=2)
    assert ". " not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"z": torch.zeros(3)}, ValueError, "[N, d]"),
        ({"active": torch.ones(3).bool()}, ValueError, "[2] or [4, 2]"),
        ({"active": torch.ones(2)}, TypeError, "boolean"),
        ({"baseline_samples": 0}, ValueError, "samples"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"decoder": None}, TypeError, "NoneType"),
    ],
)
def test_bad_input(options, error, words):
    arguments = {"decoder": torch.tanh, "z": torch.zeros(4, 2)} | options
    with pytest.raises(error) as caught:
        decoder_orthogonality(**arguments)
    assert words in str(caught.value)
    assert ". " not in str(caught.value)


def test_examples_run():
    assert doctest.testmod(decoders) == (0, 4)


# ------------------------------------------------------------------ a linear VAE


class LinearVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mu, self.logvar, self.decoder = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 3)


# Four points with mean 0 and covariance I. The loss of a linear decoder is quadratic in the noise,
# so their mean is its exact expectation, and training is deterministic.
NOISE = math.sqrt(2) * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()


def train(model: LinearVAE, x: Tensor, loss_fn: vaekern.GaussianVAELoss) -> None:
    noise = NOISE[:, None].expand(-1, len(x), -1)
    optimizer = torch.optim.LBFGS(
        [*model.parameters(), *loss_fn.parameters()],
        max_iter=400,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        mu, logvar = model.mu(x), model.logvar(x)
        z = vaekern.functional.reparameterize(mu, logvar, noise=noise)
        loss = loss_fn(model.decoder(z), x, mu, logvar)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("estimate", ["fixed", "learned"])
def test_a_linear_vae_on_synth_lin_finds_the_axes(estimate: str):
    x = synth_lin(300, generator=torch.Generator().manual_seed(0)).x.double()
    # noise in all three dimensions gives the learned variance something to settle on
    x = x + 0.05 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    model = LinearVAE().double()
    loss_fn = vaekern.GaussianVAELoss("iso-i", estimate, variance=0.01).double()
    before = decoder_orthogonality(model.decoder, torch.zeros(1, 2, dtype=torch.float64)).mean.full
    train(model, x, loss_fn)
    mu, logvar = model.mu(x).detach(), model.logvar(x).detach()

    result = decoder_orthogonality(model.decoder, mu)
    assert before > 0.1
    assert result.mean.full < 0.01
    assert result.mean.off_diagonal < 0.01
    W = decoder_jacobian(model.decoder, mu[:1])
    assert float(column_norm_product(W).ratio) < 1 + 1e-4

    # the encoder's covariance is the exact posterior's, (I + W^T W / gamma)^-1
    gamma = float(loss_fn.x_logvar.detach().exp())
    posterior = torch.linalg.inv(torch.eye(2) + W[0].mT @ W[0] / gamma)
    encoder = torch.diag_embed(logvar.exp())
    assert (encoder - posterior).abs().max() < 1e-3 * posterior.diagonal().min()
    # and the decoder is probabilistic PCA: |W_j|^2 = lambda_j - gamma
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    if estimate == "learned":
        assert gamma == pytest.approx(float(eigenvalues[2]), rel=1e-3)
    torch.testing.assert_close(
        result.singular_values[0].square(), eigenvalues[:2] - gamma, rtol=1e-3, atol=1e-5
    )


def test_equal_scales_single_out_no_axes():
    # a covariance with two equal eigenvalues: every rotation is as good, and training keeps its own
    corners = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]]).double()
    model = LinearVAE().double()
    train(model, corners, vaekern.GaussianVAELoss("iso-i", "fixed", variance=0.01).double())
    result = decoder_orthogonality(model.decoder, torch.zeros(1, 2, dtype=torch.float64))
    # the columns are orthogonal, which only the basis-free measure can say
    assert result.mean.off_diagonal < 0.01
    assert float(result.distances.gaps) < 0.01
