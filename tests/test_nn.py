"""GaussianVAELoss: the contract of the module."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch

import vaekern
from vaekern import GaussianVAELoss
from vaekern import functional as F
from vaekern.ops import COVARIANCES

LOG_2PI = math.log(2 * math.pi)


def _batch(*shape: int, latent: int = 2) -> tuple[torch.Tensor, ...]:
    x_hat, x = torch.randn(2, *shape)
    mu, logvar = torch.randn(2, shape[0], latent)
    return x_hat.requires_grad_(), x, mu.requires_grad_(), logvar.requires_grad_()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_loss_is_reconstruction_plus_beta_kl(covariance: str) -> None:
    x_hat, x, mu, logvar = _batch(4, 3)
    loss_fn = GaussianVAELoss(covariance, beta=0.25)
    wanted = F.mle_nll(x_hat, x, covariance) + 0.25 * F.gaussian_kl(mu, logvar)
    torch.testing.assert_close(loss_fn(x_hat, x, mu, logvar), wanted)
    for beta in (2.0, torch.tensor(2.0)):
        wanted = F.mle_nll(x_hat, x, covariance) + 2 * F.gaussian_kl(mu, logvar)
        torch.testing.assert_close(loss_fn(x_hat, x, mu, logvar, beta=beta), wanted)


def test_fixed_and_learned_start_at_the_given_variance() -> None:
    x_hat, x, mu, logvar = _batch(4, 3)
    r2 = ((x_hat - x) ** 2).sum(1).mean()
    wanted = 0.5 * (r2 / 0.3 + 3 * (math.log(0.3) + LOG_2PI)) + F.gaussian_kl(mu, logvar)
    for loss_fn in (
        GaussianVAELoss("iso-i", "fixed", variance=0.3),
        GaussianVAELoss("iso-i", "learned", variance=0.3),
        GaussianVAELoss("diag-i", "learned", variance=0.3, x_shape=(3,)),
        GaussianVAELoss("diag-i", "fixed", variance=torch.full((3,), 0.3)),
    ):
        torch.testing.assert_close(loss_fn(x_hat, x, mu, logvar), wanted)


def test_learned_variance_converges_to_the_mse() -> None:
    x = torch.zeros(8, 5)
    loss_fn = GaussianVAELoss("iso-i", "learned")
    optimizer = torch.optim.Adam(loss_fn.parameters(), 0.1)
    mu = torch.zeros(8, 2)
    for _ in range(200):
        optimizer.zero_grad()
        loss_fn(x + 0.2, x, mu, mu).backward()
        optimizer.step()
    assert loss_fn.x_logvar.exp().item() == pytest.approx(0.04, rel=1e-3)


def test_decoder_predicted_variances() -> None:
    x_hat, x, mu, logvar = _batch(4, 3)
    per_sample, per_element = torch.randn(4), torch.randn(4, 3)
    kl = F.gaussian_kl(mu, logvar)
    loss_fn = GaussianVAELoss("iso-d", "learned")
    for given in (per_sample, per_sample.view(4, 1)):
        wanted = F.gaussian_nll(x_hat, x, per_sample.view(4, 1)) + kl
        torch.testing.assert_close(loss_fn(x_hat, x, mu, logvar, x_logvar=given), wanted)
    loss_fn = GaussianVAELoss("diag-d", "learned")
    wanted = F.gaussian_nll(x_hat, x, per_element) + kl
    torch.testing.assert_close(loss_fn(x_hat, x, mu, logvar, x_logvar=per_element), wanted)
    assert not list(loss_fn.parameters())


def test_full_covariance_encoder() -> None:
    x_hat, x, mu, _ = _batch(4, 3)
    tril = torch.eye(2).repeat(4, 1, 1) * 0.5
    wanted = F.mle_nll(x_hat, x) + F.full_gaussian_kl(mu, tril)
    torch.testing.assert_close(GaussianVAELoss()(x_hat, x, mu, scale_tril=tril), wanted)


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean", "none"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_components(covariance: str, reduction: str) -> None:
    x_hat, x, mu, logvar = _batch(4, 3, 2)
    loss_fn = GaussianVAELoss(covariance, beta=0.5, reduction=reduction)
    parts = loss_fn.components(x_hat, x, mu, logvar)
    torch.testing.assert_close(parts.loss, loss_fn(x_hat, x, mu, logvar))
    assert parts.loss.requires_grad
    assert not any(t.requires_grad for t in parts[1:])
    torch.testing.assert_close(parts.reconstruction + 0.5 * parts.kl, parts.loss.detach())
    square = ((x_hat - x) ** 2).flatten(1).sum(1)
    reduce = {"batchmean": square.mean(), "sum": square.sum(), "mean": square.mean() / 6}
    torch.testing.assert_close(parts.mse, reduce.get(reduction, square).detach())
    torch.testing.assert_close(parts.kl_per_dim, F.gaussian_kl(mu, logvar, reduction="dims"))
    q = ((x_hat - x) ** 2).detach()
    variance = {
        "iso-i": q.mean().reshape(1),
        "iso-d": (q.flatten(1).sum(1) + 1e-6).view(4, 1, 1) / 6,
        "diag-i": q.mean(0) + 1e-6,
        "diag-d": q + 1e-6,
    }[covariance]
    torch.testing.assert_close(parts.x_logvar, variance.log())


def test_encoder_clamp_cuts_value_and_gradient() -> None:
    x_hat, x, mu, _ = _batch(3, 3)
    logvar = torch.tensor([[-9.0, 0.5], [30.0, -1.0], [1.0, 2.0]], requires_grad=True)
    loss_fn = GaussianVAELoss(logvar_clamp=(-5, 5))
    loss = loss_fn(x_hat, x, mu, logvar)
    torch.testing.assert_close(loss, GaussianVAELoss()(x_hat, x, mu, logvar.clamp(-5, 5)))
    loss.backward()
    assert logvar.grad is not None
    outside = logvar.abs() > 5
    assert (logvar.grad[outside] == 0).all()
    assert (logvar.grad[~outside] != 0).all()


def test_learned_variance_is_bounded_and_comes_back() -> None:
    x = torch.zeros(4, 3)
    mu = torch.zeros(4, 2)
    loss_fn = GaussianVAELoss("iso-i", "learned")
    optimizer = torch.optim.SGD(loss_fn.parameters(), 100.0)
    loss_fn(x, x, mu, mu).backward()  # no residual: the step would carry it to -150
    optimizer.step()
    assert loss_fn.x_logvar.item() == -20
    optimizer.zero_grad()
    loss_fn(x + 0.1, x, mu, mu).backward()
    assert loss_fn.x_logvar.grad is not None
    assert float(loss_fn.x_logvar.grad) < -1  # descent raises it again


def test_buffers_follow_training_only() -> None:
    x = torch.zeros(4, 3)
    mu = torch.zeros(4, 2)
    loss_fn = GaussianVAELoss("diag-i")
    residual = torch.tensor([1.0, 2.0, 3.0])
    loss_fn(x + residual, x, mu, mu)
    torch.testing.assert_close(loss_fn.running_variance, residual**2)
    loss_fn(x + 2 * residual, x, mu, mu)
    torch.testing.assert_close(loss_fn.last_variance, 4 * residual**2)
    torch.testing.assert_close(loss_fn.running_variance, (0.9 + 0.4) * residual**2)
    before = loss_fn.running_variance.clone()  # type: ignore[union-attr]
    training = loss_fn(x + 3, x, mu, mu)
    loss_fn.running_variance.copy_(before)  # type: ignore[union-attr]
    evaluated = loss_fn.eval()(x + 3, x, mu, mu)
    assert torch.equal(training, evaluated)
    torch.testing.assert_close(loss_fn.running_variance, before)


@pytest.mark.parametrize("covariance", ["iso-i", "iso-d", "diag-d"])
def test_one_number_buffers(covariance: str) -> None:
    x_hat, x, mu, logvar = _batch(4, 3)
    loss_fn = GaussianVAELoss(covariance)
    loss_fn(x_hat, x, mu, logvar)
    loss_fn(x_hat[:0], x[:0], mu[:0], logvar[:0])  # an empty batch says nothing
    mse = ((x_hat - x) ** 2).mean().reshape(1).detach()
    torch.testing.assert_close(loss_fn.last_variance, mse)


def test_state_survives() -> None:
    x_hat, x, mu, logvar = _batch(4, 3)
    loss_fn = GaussianVAELoss("diag-i")
    loss_fn(x_hat, x, mu, logvar)
    other = GaussianVAELoss("diag-i")
    other.load_state_dict(loss_fn.state_dict())
    assert torch.equal(other.running_variance, loss_fn.running_variance)  # type: ignore[arg-type]
    learned = GaussianVAELoss("iso-i", "learned", variance=0.2)
    assert [n for n, _ in learned.named_parameters()] == ["x_logvar"]
    assert learned.x_logvar.shape == (1,)
    copied = copy.deepcopy(learned)
    assert torch.equal(copied.x_logvar, learned.x_logvar)
    assert "iso-i" in repr(learned)


def test_reference_backend_gives_the_same_buffers() -> None:
    x_hat, x, mu, logvar = _batch(4, 3)
    for covariance in COVARIANCES:
        a, b = GaussianVAELoss(covariance), GaussianVAELoss(covariance)
        for scale in (1.0, 0.5):
            a(scale * x_hat, x, mu, logvar)
            with vaekern.backends.use("reference"):
                b(scale * x_hat, x, mu, logvar)
        torch.testing.assert_close(a.running_variance, b.running_variance)


def _train(loss_fn: GaussianVAELoss, *parameters: torch.Tensor, steps: int = 5) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight, *parameters], 0.01)
    x = torch.ones(4, 3)
    mu = torch.zeros(4, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(x * weight + 1, x, mu, mu).backward()
        optimizer.step()


def test_a_variance_in_no_optimiser_warns_once() -> None:
    loss_fn = GaussianVAELoss("iso-i", "learned")
    with pytest.warns(UserWarning, match="in no optimiser's step") as caught:
        _train(loss_fn, steps=20)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _train(loss_fn, steps=20)
        _train(held := GaussianVAELoss("iso-i", "learned"), held.x_logvar, steps=20)


def test_two_optimisers_that_take_turns_do_not_warn() -> None:
    loss_fn = GaussianVAELoss("iso-i", "learned")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizers = [torch.optim.SGD([weight], 0.01), torch.optim.SGD(loss_fn.parameters(), 0.01)]
    x, mu = torch.ones(4, 3), torch.zeros(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            loss_fn(x * weight + 1, x, mu, mu).backward()
            for optimizer in optimizers:
                optimizer.step()


def test_autocast_and_grad_scaler() -> None:
    layer = torch.nn.Linear(3, 3)
    x, mu = torch.randn(8, 3), torch.zeros(8, 2)
    loss_fn = GaussianVAELoss()
    loss_fn(layer(x), x, mu, mu).backward()
    wanted = layer.weight.grad.clone()  # type: ignore[union-attr]
    layer.weight.grad = None
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_fn(layer(x), x, mu, mu)
    assert loss.dtype is torch.float32
    scaler.scale(loss).backward()
    assert layer.weight.grad is not None
    # bfloat16 keeps 8 bits; the linear layer's own products are rounded to them
    torch.testing.assert_close(layer.weight.grad / 1024, wanted, rtol=0.05, atol=0.05)


X, MU = torch.zeros(4, 3), torch.zeros(4, 2)
BAD: list[tuple[Any, str]] = [
    (lambda: GaussianVAELoss("iso"), "covariance must be one of"),
    (lambda: GaussianVAELoss(estimate="mlee"), "did you mean 'mle'"),
    (lambda: GaussianVAELoss(reduction="dims"), "reduction must be one of"),
    (lambda: GaussianVAELoss(eps=-1), "eps must be above"),
    (lambda: GaussianVAELoss(beta=-1), "beta must be finite and not negative"),
    (lambda: GaussianVAELoss(variance=0.5), "variance is estimated by estimate='mle'"),
    (lambda: GaussianVAELoss("iso-i", "fixed", variance=-1.0), "variance must be positive"),
    (lambda: GaussianVAELoss("diag-i", "learned"), "x_shape must be given"),
    (
        lambda: GaussianVAELoss("diag-i", "learned", x_shape=(3,), variance=torch.ones(4)),
        r"variance must broadcast to \[3\]",
    ),
    (lambda: GaussianVAELoss(logvar_clamp=(3, -3)), r"logvar_clamp must be \(lo, hi\)"),
    (lambda: GaussianVAELoss()(X, X, MU, MU, x_logvar=X), "x_logvar must not be given"),
    (lambda: GaussianVAELoss("iso-d", "learned")(X, X, MU, MU), "x_logvar must be given"),
    (
        lambda: GaussianVAELoss("iso-d", "learned")(X, X, MU, MU, x_logvar=X),
        r"x_logvar must be \[B\] or \[B, 1, ...\]",
    ),
    (
        lambda: GaussianVAELoss("diag-d", "learned")(X, X, MU, MU, x_logvar=MU),
        "x_logvar must have the shape of x",
    ),
    (lambda: GaussianVAELoss()(X, X[:3], MU, MU), "x_hat must have the shape of x"),
    (lambda: GaussianVAELoss()(X, X, MU[:3], MU[:3]), "x and mu must have the same batch size"),
    (lambda: GaussianVAELoss()(X, X, MU, MU[:, :1]), "logvar must have the shape of mu"),
    (lambda: GaussianVAELoss()(None, X, MU, MU), "x_hat must be a torch.Tensor, got NoneType"),
    (lambda: GaussianVAELoss()(X, X, MU.numpy(), MU), "mu must be a torch.Tensor, got ndarray"),
    (lambda: GaussianVAELoss()(X, X.to_sparse(), MU, MU), "x must be a dense tensor"),
    (lambda: GaussianVAELoss(variance="a", estimate="fixed"), "variance must be a number, got 'a'"),
    (lambda: GaussianVAELoss(x_shape=(-1,)), "x_shape must be one sample's shape"),
    (lambda: GaussianVAELoss(beta=10**400), "beta must be finite"),
    (
        lambda: GaussianVAELoss("iso-i", "fixed", variance=torch.ones(5))(X, X, MU, MU),
        "variance must broadcast to the shape of x",
    ),
    (
        lambda: GaussianVAELoss()(X, X, MU, MU, beta=torch.ones((), requires_grad=True)),
        "beta must not require a gradient",
    ),
    (
        lambda: GaussianVAELoss("diag-i", "learned", x_shape=(1,))(X, X, MU, MU),
        r"x must have samples of shape \[1\]",
    ),
    (lambda: GaussianVAELoss()(X, X, MU), "exactly one of logvar and scale_tril"),
    (lambda: GaussianVAELoss()(X, X, MU, MU, beta=torch.ones(2)), "beta must be a number or a 0-d"),
    (lambda: GaussianVAELoss()(X.to("meta"), X, MU, MU), "must be on the device of x"),
    (
        lambda: GaussianVAELoss(check_finite=True)(X / 0, X, MU, MU),
        "x_hat must be finite, got 12 NaN or infinite of 12 values",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[text[:40] for _, text in BAD])
def test_bad_input_gets_one_clear_sentence(call: Any, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


# Buffers that the kernel may not write into: half precision, permuted strides, another dtype each.
AWKWARD = {
    "half": lambda loss: loss.half(),
    "bfloat16": lambda loss: loss.bfloat16(),
    "channels_last": lambda loss: loss.to(memory_format=torch.channels_last),
    "double": lambda loss: loss.double(),
    "assigned": lambda loss: _assign_half(loss),
}


def _assign_half(loss_fn: GaussianVAELoss) -> GaussianVAELoss:
    state = {k: v.half() for k, v in loss_fn.state_dict().items()}
    loss_fn.load_state_dict(state, assign=True)
    return loss_fn


@pytest.mark.parametrize("change", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("covariance", ["iso-i", "diag-i"])
def test_buffers_of_any_dtype_and_layout(covariance: str, change: Any) -> None:
    x_hat, x, mu, logvar = _batch(4, 3, 5, 6)
    plain = GaussianVAELoss(covariance, x_shape=(3, 5, 6))
    changed = GaussianVAELoss(covariance, x_shape=(3, 5, 6))
    if covariance == "diag-i" and change is AWKWARD["channels_last"]:
        for name in ("last_variance", "running_variance"):
            permuted = torch.zeros(3, 6, 5).transpose(1, 2)
            changed.register_buffer(name, permuted)
    elif change is not AWKWARD["channels_last"]:
        changed = change(changed)
    for scale in (1.0, 0.5):
        plain(scale * x_hat, x, mu, logvar)
        changed(scale * x_hat, x, mu, logvar)
    wanted, got = plain.running_variance, changed.running_variance
    assert wanted is not None
    assert got is not None
    torch.testing.assert_close(got.float(), wanted, rtol=2e-2, atol=1e-3)


def test_a_bad_batch_leaves_the_estimates_alone() -> None:
    x, mu = torch.zeros(4, 3), torch.zeros(4, 2)
    for backend in ("cpu", "reference"):
        if backend == "cpu" and not vaekern.backends.has_kernel("cpu"):
            continue
        loss_fn = GaussianVAELoss()
        with vaekern.backends.use(backend):
            loss_fn(x + 1, x, mu, mu)
            loss_fn(x / 0, x, mu, mu)
            loss_fn(x, x, mu, mu)  # no residual at all: an estimate like any other
        torch.testing.assert_close(loss_fn.running_variance, torch.tensor([0.9]))


def test_a_copy_is_looked_after_like_the_original() -> None:
    x, mu = torch.zeros(4, 3), torch.zeros(4, 2)
    loss_fn = copy.deepcopy(GaussianVAELoss("iso-i", "learned"))
    optimizer = torch.optim.SGD(loss_fn.parameters(), 100.0)
    loss_fn(x, x, mu, mu).backward()
    optimizer.step()
    assert loss_fn.x_logvar.item() == -20


def test_options_are_fixed_at_construction() -> None:
    loss_fn = GaussianVAELoss()
    with pytest.raises(AttributeError, match="reduction is fixed when the loss is made"):
        loss_fn.reduction = "none"


def test_a_fixed_variance_keeps_no_graph() -> None:
    variance = torch.tensor(0.5, requires_grad=True)
    loss_fn = GaussianVAELoss("iso-i", "fixed", variance=variance * 2)
    x_hat, x, mu, logvar = _batch(4, 3)
    for _ in range(2):
        loss_fn(x_hat, x, mu, logvar).backward()
    assert variance.grad is None


@pytest.mark.parametrize("part", ["x", "x_hat", "mu", "upstream"])
def test_negated_views(part: str) -> None:
    """conj().imag is a view with a pending minus sign, which a pointer does not show."""
    x_hat, x, mu, logvar = (t.detach() for t in _batch(4, 3))

    def lazy(t: torch.Tensor) -> torch.Tensor:
        view = torch.complex(torch.zeros_like(t), -t).conj().imag
        assert view.is_neg()
        return view

    plain = {"x_hat": x_hat, "x": x, "mu": mu, "logvar": logvar}
    given = {k: lazy(t) if k == part else t for k, t in plain.items()}
    upstream = torch.tensor(0.5)
    results = []
    for inputs, up in (
        (plain, upstream),
        (given, lazy(upstream) if part == "upstream" else upstream),
    ):
        leaf = inputs["logvar"].clone().requires_grad_()
        loss = GaussianVAELoss()(**(inputs | {"logvar": leaf}))
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf, up)))
    torch.testing.assert_close(results[0], results[1])


def test_an_infinite_logvar_shows() -> None:
    x, mu = torch.zeros(2, 3), torch.zeros(2, 2)
    for value, slope in ((float("inf"), float("inf")), (float("-inf"), -0.25)):
        logvar = torch.full((2, 2), value, requires_grad=True)
        loss = GaussianVAELoss()(x + 1, x, mu, logvar)
        loss.backward()
        assert loss.isinf()
        assert logvar.grad is not None
        assert float(logvar.grad[0, 0]) == slope


def test_torch_func_runs_on_the_reference() -> None:
    x_hat, x, mu, logvar = (t.detach() for t in _batch(4, 3))
    loss_fn = GaussianVAELoss("diag-d").eval()
    got = torch.func.grad(lambda t: loss_fn(t, x, mu, logvar))(x_hat)
    leaf = x_hat.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss_fn(leaf, x, mu, logvar), leaf)
    torch.testing.assert_close(got, wanted)


def test_diag_i_refuses_another_data_shape() -> None:
    loss_fn = GaussianVAELoss("diag-i")
    loss_fn(X + 1, X, MU, MU)
    with pytest.raises(ValueError, match=r"samples of shape \[3\]"):
        loss_fn(torch.zeros(4, 5), torch.zeros(4, 5), MU, MU)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_copies_share_the_process_group_and_a_pickle_says_no() -> None:
    plain = GaussianVAELoss("iso-i", "learned", process_group=False)
    assert copy.deepcopy(plain).process_group is False
    assert pickle.loads(pickle.dumps(plain)).x_logvar.equal(plain.x_logvar)  # our own bytes
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        group = torch.distributed.new_group([0])
        loss_fn = GaussianVAELoss("iso-i", "learned", variance=0.5, process_group=group)
        model = torch.nn.ModuleDict({"first": loss_fn, "again": loss_fn})
        copied = torch.optim.swa_utils.AveragedModel(model).module
        assert copied["first"] is copied["again"] is not loss_fn
        assert copied["first"].process_group is group
        with torch.no_grad():
            loss_fn.x_logvar.fill_(3.0)
        assert copied["first"].x_logvar.item() == pytest.approx(math.log(0.5))
        x_hat, x, mu, logvar = _batch(4, 3)
        copied["first"](x_hat, x, mu, logvar).backward()
        assert copied["first"].x_logvar.grad is not None
        with pytest.raises(TypeError, match=r"holds a process_group must not be pickled.*state_di"):
            pickle.dumps(copied)
        copied["first"].process_group = None
        assert pickle.loads(pickle.dumps(copied["first"])).process_group is None
    finally:
        torch.distributed.destroy_process_group()
