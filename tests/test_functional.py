"""Public functions: reductions, randomness, and every error's text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vaekern import functional as F
from vaekern.ops import COVARIANCES

X = torch.zeros(4, 3)
MU = torch.zeros(4, 2)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_reductions_are_one_value_in_four_forms(covariance: str) -> None:
    x_hat, x = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    forms = {
        r: F.mle_nll(x_hat, x, covariance, reduction=r)
        for r in ("batchmean", "sum", "mean", "none")
    }
    assert forms["none"].shape == (4,)
    torch.testing.assert_close(forms["none"].mean(), forms["batchmean"])
    torch.testing.assert_close(forms["sum"], 4 * forms["batchmean"])
    torch.testing.assert_close(forms["mean"], forms["batchmean"] / 3)


def test_kl_reductions() -> None:
    mu, logvar = torch.randn(4, 3, 2).double(), torch.randn(4, 3, 2).double()
    whole = F.gaussian_kl(mu, logvar)
    dims = F.gaussian_kl(mu, logvar, reduction="dims")
    assert dims.shape == (3, 2)
    torch.testing.assert_close(dims.sum(), whole)
    torch.testing.assert_close(F.gaussian_kl(mu, logvar, reduction="none").mean(), whole)


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "none"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_an_empty_batch_gives_zero_and_empty_gradients(covariance: str, reduction: str) -> None:
    x_hat = torch.zeros(0, 3, requires_grad=True)
    loss = F.mle_nll(x_hat, torch.zeros(0, 3), covariance, reduction=reduction)
    assert loss.sum() == 0
    loss.sum().backward()
    assert x_hat.grad is not None
    assert x_hat.grad.shape == (0, 3)


def test_a_generator_reproduces_and_noise_decides() -> None:
    mu, logvar = torch.randn(4, 3), torch.randn(4, 3)
    draws = [
        F.reparameterize(mu, logvar, samples=2, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(draws[0], mu + (logvar / 2).exp() * noise)
    z, kl = F.sample_and_kl(mu, logvar, samples=2, noise=noise)
    assert torch.equal(z, draws[0])
    torch.testing.assert_close(kl, F.gaussian_kl(mu, logvar, reduction="none"))


def test_noise_gets_its_gradient_when_it_asks() -> None:
    noise = torch.randn(4, 2, requires_grad=True)
    F.reparameterize(MU, MU + 1.0, noise=noise).sum().backward()
    torch.testing.assert_close(noise.grad, torch.full((4, 2), float(np.exp(0.5))))


def test_values_are_float32_or_better() -> None:
    for dtype, wanted in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        assert F.mle_nll((X + 1).to(dtype), X.to(dtype)).dtype is wanted
        assert F.reparameterize(MU.to(dtype), MU.to(dtype)).dtype is dtype


def test_a_large_half_precision_sum_does_not_overflow() -> None:
    x = torch.zeros(1, 196_608, dtype=torch.float16)
    assert float(F.gaussian_nll(x + 1, x, 0.0, reduction="mean")) == pytest.approx(1.418938, 1e-6)


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: F.mle_nll(X[:3], X),
        ValueError,
        r"x_hat must have the shape of x.*\[3, 3\].*\[4, 3\]",
    ),
    (lambda: F.mle_nll(X[:0], X[:0, :0]), ValueError, "x_hat must have the shape of x"),
    (lambda: F.mle_nll(X[:, :0], X[:, :0]), ValueError, "at least one feature"),
    (lambda: F.mle_nll(torch.zeros(0, 4, 3), X), ValueError, "at least one posterior sample"),
    (
        lambda: F.mle_nll(torch.tensor(1.0), torch.tensor(1.0)),
        ValueError,
        "x must have a batch axis",
    ),
    (lambda: F.mle_nll(X.long(), X), TypeError, "x_hat must be float32.*int64.*float()"),
    (lambda: F.mle_nll(X, X.to(torch.complex64)), TypeError, "x must be float32.*complex64"),
    (lambda: F.mle_nll(X.numpy(), X), TypeError, "x_hat must be a torch.Tensor.*ndarray"),
    (lambda: F.mle_nll(X.to("meta"), X), ValueError, "x must be on the device of x_hat.*cpu.*meta"),
    (lambda: F.mle_nll(X, X, "iso"), ValueError, "covariance must be one of.*'iso'.*did you mean"),
    (lambda: F.mle_nll(X, X, reduction="avg"), ValueError, "reduction must be one of"),
    (lambda: F.mle_nll(X, X, activation="relu"), ValueError, "activation must be one of"),
    (lambda: F.mle_nll(X, X, eps=0.0), ValueError, "eps must be above 1e-30"),
    (lambda: F.mle_nll(X, X, eps="1"), TypeError, "eps must be a number, got '1'"),
    (lambda: F.gaussian_nll(X, X, torch.zeros(4)), ValueError, r"reshape it to \[4, 1\]"),
    (lambda: F.gaussian_nll(X, X, torch.zeros(2, 1, 4, 3)), ValueError, "logvar must broadcast"),
    (lambda: F.gaussian_nll(X, X, torch.zeros(3).long()), TypeError, "logvar must be float32"),
    (
        lambda: F.gaussian_kl(MU, X),
        ValueError,
        r"logvar must have the shape of mu.*\[4, 3\].*\[4, 2\]",
    ),
    (
        lambda: F.gaussian_kl(MU, MU, prior_mu=X),
        ValueError,
        "prior_mu must broadcast to the shape of mu",
    ),
    (lambda: F.gaussian_kl(MU, MU, reduction="dim"), ValueError, "did you mean 'dims'"),
    (
        lambda: F.full_gaussian_kl(MU, torch.zeros(4, 2)),
        ValueError,
        r"scale_tril must be \[B, d, d\]",
    ),
    (lambda: F.reparameterize(MU), ValueError, "exactly one of logvar and scale_tril.*neither"),
    (
        lambda: F.reparameterize(MU, MU, scale_tril=torch.zeros(4, 2, 2)),
        ValueError,
        "exactly one of logvar and scale_tril.*both",
    ),
    (lambda: F.reparameterize(MU, MU, samples=0), ValueError, "samples must be a positive number"),
    (
        lambda: F.reparameterize(MU, MU, noise=X),
        ValueError,
        r"noise must have the shape of z.*\[4, 2\]",
    ),
    (
        lambda: F.sample_and_kl(MU, MU, noise=MU, generator=torch.Generator()),
        ValueError,
        "noise and generator cannot both be given",
    ),
    (
        lambda: F.mle_nll(X, X, process_group=True),
        TypeError,
        "process_group must be None, False or a torch.distributed.ProcessGroup, got True",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD, ids=[text[:40] for _, _, text in BAD])
def test_bad_input_gets_one_clear_sentence(
    call: Callable[[], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 320


def test_all_docstring_examples_run() -> None:
    import doctest

    import vaekern

    for module in (vaekern.functional, vaekern.nn, vaekern.backends, vaekern.models.vae):
        results = doctest.testmod(module)
        assert results.failed == 0
        assert results.attempted > 0
