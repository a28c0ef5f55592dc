"""A batch in micro-batches: the accumulated gradient is the whole batch's, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vaekern
from vaekern import GaussianVAELoss, backends
from vaekern.ops import COVARIANCES

PARTS = (slice(0, 3), slice(3, 3), slice(3, 4), slice(4, 10))  # uneven, one of them empty


def _batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x_hat = (
        torch.randn(10, 2, 3, dtype=dtype) * torch.linspace(1, 5, 10, dtype=dtype)[:, None, None]
    )
    x, mu = torch.randn(10, 2, 3, dtype=dtype), torch.randn(10, 2, dtype=dtype)
    x_hat[:, 1, 1] = x[:, 1, 1]  # a pixel without residual: eps is all its variance
    return x_hat.requires_grad_(), x, mu


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_accumulation_is_exact(covariance: str, reduction: str, backend: str) -> None:
    if backend == "cpu" and not backends.has_kernel("cpu"):
        pytest.skip("the native core is not in use")
    # float32: the variance goes in as its logarithm, whose rounding is a relative error
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        x_hat, x, mu = _batch(dtype)
        whole = GaussianVAELoss(covariance, reduction=reduction, beta=0.5)
        parts = GaussianVAELoss(covariance, reduction=reduction, beta=0.5)
        with backends.use(backend):
            wanted = whole(x_hat, x, mu, mu)
            (gradient,) = torch.autograd.grad(wanted, x_hat)

            def step(at: slice, loss_fn: GaussianVAELoss = parts) -> Tensor:
                return loss_fn(x_hat[at], x[at], mu[at], mu[at])  # noqa: B023  called in this turn

            total, found = torch.zeros((), dtype=dtype), torch.zeros_like(x_hat)
            for loss in parts.accumulate(step, PARTS):
                total += loss.detach()
                found += torch.autograd.grad(loss, x_hat)[0]
        bound = tolerance * float(gradient.abs().max())
        torch.testing.assert_close(found, gradient, rtol=0, atol=bound)
        torch.testing.assert_close(total, wanted.detach(), rtol=tolerance, atol=0)
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(getattr(parts, name), buffer)
        # and the loss is itself again
        torch.testing.assert_close(parts(x_hat, x, mu, mu), whole(x_hat, x, mu, mu))


def test_a_module_of_one_process_may_be_named() -> None:
    x_hat, x, mu = _batch()
    loss_fn = GaussianVAELoss("iso-i")

    def step(at: slice) -> Tensor:
        return loss_fn(x_hat[at], x[at], mu[at], mu[at])

    found = sum(float(loss.detach()) for loss in loss_fn.accumulate(step, PARTS, model=loss_fn))
    whole = GaussianVAELoss("iso-i")(x_hat, x, mu, mu)
    assert found == pytest.approx(float(whole.detach()))


@pytest.mark.parametrize("covariance", ["iso-i", "diag-i"])
def test_the_usual_accumulation_is_not(covariance: str) -> None:
    x_hat, x, mu = _batch()
    loss_fn = GaussianVAELoss(covariance)
    (wanted,) = torch.autograd.grad(loss_fn(x_hat, x, mu, mu), x_hat)
    halves = [loss_fn(x_hat[s], x[s], mu[s], mu[s]) for s in (slice(0, 5), slice(5, 10))]
    (found,) = torch.autograd.grad(sum(halves) / 2, x_hat)  # type: ignore[arg-type]
    assert (found - wanted).abs().max() > 0.3 * wanted.abs().max()


def _vae(covariance: str = "iso-i", estimate: str = "mle") -> vaekern.models.VAE:
    encoder, decoder = vaekern.models.networks.mlp((6,), 2, width=8, output="linear")
    loss_fn = GaussianVAELoss(covariance, estimate, x_shape=6)
    return vaekern.models.VAE(encoder, decoder, loss_fn, latent_dim=2)


@pytest.mark.parametrize("estimate", ["mle", "learned"])
def test_both_passes_draw_the_same_noise(estimate: str) -> None:
    vae, x = _vae("diag-i", estimate), torch.randn(12, 6)
    seen: list[Tensor] = []
    vae.decoder.register_forward_pre_hook(lambda _, z: seen.append(z[0].detach()))
    torch.manual_seed(5)
    parts = x.split(4)
    for loss in vae.loss.accumulate(lambda part: vae(part).loss, parts):
        loss.backward()
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    follows = torch.rand(())
    torch.manual_seed(5)
    for part in parts:
        vae(part)
    assert torch.equal(follows, torch.rand(()))  # as if there had been one pass


def _generator_not_reset(vae: vaekern.models.VAE) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda part: vae(part, generator=generator).loss


def _called_twice(vae: vaekern.models.VAE) -> Callable[[Tensor], Tensor]:
    def step(part: Tensor) -> Tensor:
        loss: Tensor = vae(part).loss
        return loss if not loss.requires_grad else loss + vae(part).loss

    return step


def _another_loss(vae: vaekern.models.VAE) -> Callable[[Tensor], Tensor]:
    other = _vae()
    return lambda part: other(part).loss


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_generator_not_reset, "the same residuals in both passes"),
        (_called_twice, "the same samples in both passes, got 12 in the first and 24"),
        (_another_loss, "step must call this loss, got none in 3 micro-batches"),
    ],
)
def test_what_would_be_wrong_is_refused(
    make: Callable[[vaekern.models.VAE], Callable[[Tensor], Tensor]], text: str
) -> None:
    vae, x = _vae(), torch.randn(12, 6)
    with pytest.raises(RuntimeError, match=text):
        list(vae.loss.accumulate(make(vae), x.split(4)))
    assert vae(x).loss.isfinite()  # the loss is itself again
    assert vae.loss._parts is None


def test_a_loop_that_stops_early_leaves_the_loss_as_it_was() -> None:
    vae, x = _vae(), torch.randn(12, 6)
    steps = vae.loss.accumulate(lambda part: vae(part).loss, x.split(4))
    next(steps).backward()
    with pytest.raises(RuntimeError, match="already accumulates"):
        next(vae.loss.accumulate(lambda part: vae(part).loss, x.split(4)))
    steps.close()  # type: ignore[attr-defined]
    assert vae.loss._parts is None


def test_per_sample_gradients_are_refused() -> None:
    x_hat, x, mu = _batch()
    loss_fn = GaussianVAELoss(reduction="none")
    with pytest.raises(ValueError, match="reduction must not be 'none'"):
        next(loss_fn.accumulate(lambda s: loss_fn(x_hat[s], x[s], mu[s], mu[s]), PARTS))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_a_process_group_that_is_gone_is_refused() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    loss_fn = GaussianVAELoss(process_group=torch.distributed.group.WORLD)
    x_hat, x, mu = _batch()
    try:
        assert loss_fn(x_hat, x, mu, mu).isfinite()
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised; call"):
        loss_fn(x_hat, x, mu, mu)
    assert loss_fn.eval()(x_hat, x, mu, mu).isfinite()
