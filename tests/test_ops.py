"""The registered operators: opcheck, gradcheck through the C++ kernel, compile, bits, memory
rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaekern import GaussianVAELoss, backends, functional, ops, testing
from vaekern.ops import COVARIANCES, OBJECTIVES, REDUCTIONS, Options

pytestmark = pytest.mark.skipif(
    not backends.has_kernel("cpu"), reason="the native core is not in use"
)
OPERATORS = testing.OPERATORS
GRADCHECKED = [
    o for o in OPERATORS if not o.name.startswith("GaussianVAELoss-") or "learned" in o.name
]


def _loss_args(
    objective: str | None, reduction: str, grads: int, transposed: bool = False
) -> tuple[Any, ...]:
    x_hat, x, mu, logvar = torch.randn(3, 4, 5), torch.randn(3, 4, 5), *torch.randn(2, 3, 6)
    if transposed:
        x_hat, x = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x_hat, x))
    x_logvar = torch.randn(4, 5) if objective == "gaussian" else None
    data = (x_hat, x, x_logvar) if objective else (None, None, None)
    options = Options(OBJECTIVES[objective], 1, REDUCTIONS[reduction])
    return (*data, mu, logvar, None, None, None, None, *options, grads)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("reduction", ["batchmean", "none"])
@pytest.mark.parametrize("objective", ["gaussian", *COVARIANCES])
def test_opcheck_loss(objective: str, reduction: str, transposed: bool) -> None:
    present = 0b11111 if objective == "gaussian" else 0b11011
    args = _loss_args(objective, reduction, present, transposed)
    torch.library.opcheck(torch.ops.vaekern.loss.default, args)
    upstream = torch.rand(3 if reduction == "none" else ())
    torch.library.opcheck(torch.ops.vaekern.loss_backward.default, (upstream, *args))


@pytest.mark.parametrize("reduction", ["batchmean", "dims"])
def test_opcheck_kl(reduction: str) -> None:
    torch.library.opcheck(torch.ops.vaekern.loss.default, _loss_args(None, reduction, 0b11000))


@pytest.mark.parametrize("full", [False, True])
def test_opcheck_sample(full: bool) -> None:
    mu, noise = torch.randn(3, 4), torch.randn(2, 3, 4)
    logvar = None if full else torch.randn(3, 4)
    tril = torch.eye(4).repeat(3, 1, 1) if full else None
    torch.library.opcheck(torch.ops.vaekern.sample.default, (mu, logvar, tril, noise, True))
    mask = 0b101 if full else 0b011
    torch.library.opcheck(
        torch.ops.vaekern.sample_backward.default,
        (torch.randn(2, 3, 4), torch.randn(3), mu, logvar, tril, noise, mask),
    )


@pytest.mark.parametrize("operator", GRADCHECKED, ids=str)
def test_gradcheck_through_the_kernel(operator: testing.Operator) -> None:
    inputs = operator.inputs((3, 2, 3))
    names = [k for k in inputs if k != "noise"]
    if "scale_tril" in inputs:
        inputs["scale_tril"] = inputs["scale_tril"].tril()

    def run(*leaves: torch.Tensor) -> torch.Tensor:
        return operator.run(inputs | dict(zip(names, leaves, strict=True)))

    leaves = [inputs[k].requires_grad_() for k in names]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


COMPILED = [o for o in OPERATORS if o.name.startswith(("GaussianVAELoss", "sample_and_kl-diag"))]


@pytest.mark.parametrize("operator", COMPILED, ids=str)
def test_compiled_equals_eager(operator: testing.Operator) -> None:
    torch._dynamo.reset()
    inputs = testing.draw(operator, (3, 2, 4), torch.float32, "contiguous")
    run = operator.run
    if operator.name.startswith("GaussianVAELoss"):  # the module is built once, then compiled
        run = _built(operator, inputs)
    eager = _grads(run, inputs)
    compiled = _grads(torch.compile(run, fullgraph=True), inputs)
    for name, a, b in zip(eager, eager.values(), compiled.values(), strict=True):
        # the value's bits are the operator's; Inductor may reassociate what stands around it
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def _built(operator: testing.Operator, inputs: dict[str, torch.Tensor]) -> Any:
    _, *covariance, estimate = operator.name.removesuffix("-full").split("-")
    name = "-".join(covariance)
    options = {"x_shape": inputs["x"].shape[1:]} if estimate == "learned" else {}
    loss = GaussianVAELoss(name, estimate, beta=0.5, **options)  # type: ignore[arg-type]
    if estimate == "learned" and name in ("iso-i", "diag-i"):
        inputs.pop("x_logvar")
    return lambda t: loss(**t)


def _grads(run: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {k: t.detach().requires_grad_(k != "noise") for k, t in inputs.items()}
    value = run(leaves)
    wanted = {k: t for k, t in leaves.items() if t.requires_grad}
    grads = torch.autograd.grad((value * 1.3).sum(), list(wanted.values()))
    return {"value": value.detach(), **dict(zip(wanted, grads, strict=True))}


def test_a_schedule_of_beta_does_not_recompile() -> None:
    from torch._dynamo.testing import CompileCounter

    loss = GaussianVAELoss()
    x, mu = torch.randn(3, 4), torch.randn(3, 2)
    for make, most in ((float, 2), (torch.tensor, 1)):  # a number: once more, to make it dynamic
        torch._dynamo.reset()
        counter = CompileCounter()
        step = torch.compile(
            lambda beta: loss(x + 1, x, mu, mu, beta=beta), fullgraph=True, backend=counter
        )
        values = [float(step(make(b))) for b in (0.1, 0.2, 0.5, 0.9)]
        assert counter.frame_count <= most
        wanted = [float(loss(x + 1, x, mu, mu, beta=b)) for b in (0.1, 0.2, 0.5, 0.9)]
        assert values == pytest.approx(wanted, rel=1e-6)


def test_compiled_buffers_follow_eager() -> None:
    torch._dynamo.reset()
    a, b = GaussianVAELoss("diag-i", x_shape=(4,)), GaussianVAELoss("diag-i", x_shape=(4,))
    compiled = torch.compile(b, fullgraph=True)
    mu = torch.randn(3, 2)
    for _ in range(3):
        x = torch.randn(3, 4)
        a(x * 0.5, x, mu, mu)
        compiled(x * 0.5, x, mu, mu)
    torch.testing.assert_close(a.running_variance, b.running_variance)
    torch.testing.assert_close(a.last_variance, b.last_variance)


# ---------------------------------------------------------------- bits


BIG = (130, 3, 700)  # several tasks per kernel, above the size that uses threads


@pytest.mark.parametrize(
    "operator", [o for o in OPERATORS if (o.data and "L0" in o.name) or "mle" in o.name], ids=str
)
def test_same_bits_on_every_repeat_and_for_any_thread_count(operator: testing.Operator) -> None:
    inputs = testing.draw(operator, BIG, torch.float32, "contiguous")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2, 3, 5, 1):
            torch.set_num_threads(threads)
            results.append(testing.evaluate(operator, inputs, "cpu"))
    finally:
        torch.set_num_threads(before)
    first = results[0]
    for other in results[1:]:
        assert torch.equal(first.value, other.value)
        assert all(torch.equal(first.grads[k], other.grads[k]) for k in first.grads)


def test_value_does_not_depend_on_whether_gradients_are_written() -> None:
    for covariance in COVARIANCES:
        x_hat, x = torch.randn(70, 3000), torch.randn(70, 3000)
        plain = functional.mle_nll(x_hat, x, covariance)
        with_grad = functional.mle_nll(x_hat.requires_grad_(), x, covariance)
        torch.testing.assert_close(plain, with_grad.detach(), rtol=1e-6, atol=0)


# ---------------------------------------------------------------- memory rules


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_backward_twice_with_different_upstreams(covariance: str) -> None:
    loss_fn = GaussianVAELoss(covariance)
    x_hat, x = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    mu = torch.randn(4, 2, requires_grad=True)
    loss = loss_fn(x_hat, x, mu, mu)
    first = torch.autograd.grad(loss, (x_hat, mu), torch.tensor(3.0), retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, (x_hat, mu), torch.tensor(-0.5), retain_graph=True)
    third = torch.autograd.grad(loss, (x_hat, mu), torch.tensor(3.0))
    for a, b, c, k in zip(first, second, third, kept, strict=True):
        assert torch.equal(a, k)  # a later backward leaves what was given away alone
        torch.testing.assert_close(b, a / -6)
        torch.testing.assert_close(c, a)


def test_inputs_are_never_written() -> None:
    for operator in OPERATORS:
        inputs = testing.draw(operator, (4, 2, 9), torch.float32, "contiguous")
        before = {k: t.clone() for k, t in inputs.items()}
        testing.evaluate(operator, inputs, "cpu")
        assert all(torch.equal(before[k], inputs[k]) for k in inputs), operator.name


def test_the_gradient_buffer_is_given_away_not_copied() -> None:
    x_hat, x = torch.randn(4, 600, requires_grad=True), torch.randn(4, 600)
    mu = torch.zeros(4, 2)
    made = []
    original = torch.empty_like

    def empty_like(t: torch.Tensor) -> torch.Tensor:
        made.append(original(t))
        return made[-1]

    torch.empty_like = empty_like  # type: ignore[assignment]
    try:
        loss = GaussianVAELoss()(x_hat, x, mu, mu)
    finally:
        torch.empty_like = original
    address = made.pop().data_ptr()
    loss.backward()
    assert x_hat.grad is not None
    assert x_hat.grad.data_ptr() == address


def test_no_gradient_is_written_under_no_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(t: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a gradient buffer was made")

    monkeypatch.setattr(torch, "empty_like", refuse)
    x_hat, mu = torch.randn(4, 6, requires_grad=True), torch.randn(4, 2)
    with torch.no_grad():
        GaussianVAELoss()(x_hat, torch.randn(4, 6), mu, mu)


def _penalty_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(4, 6, requires_grad=True), torch.randn(4, 6), torch.randn(4, 2)


# Every way in which a second derivative may be asked for; none may end in a silent None or zero.
SECOND = {
    "backward": lambda g, x_hat: g.sum().backward(),
    "grad": lambda g, x_hat: torch.autograd.grad(g.sum(), x_hat),
    "allow_unused": lambda g, x_hat: torch.autograd.grad(g.sum(), x_hat, allow_unused=True),
    "penalty": lambda g, x_hat: torch.autograd.grad(g.square().sum() + x_hat.sum(), x_hat),
}


@pytest.mark.parametrize("ask", SECOND.values(), ids=SECOND)
def test_second_derivative_is_refused_with_the_remedy(ask: Any) -> None:
    x_hat, x, mu = _penalty_inputs()
    for loss in (
        GaussianVAELoss()(x_hat, x, mu, mu),
        functional.mle_nll(x_hat, x),
        functional.mle_nll(x_hat, x, reduction="none").sum(),
        functional.sample_and_kl(x_hat, x)[1].sum(),
    ):
        (grad,) = torch.autograd.grad(loss, x_hat, create_graph=True)
        with pytest.raises(RuntimeError, match=r"backends\.use\('reference'\)"):
            ask(grad, x_hat)


def test_the_reference_has_second_derivatives() -> None:
    x_hat, x, mu = _penalty_inputs()
    with backends.use("reference"):
        loss = GaussianVAELoss("iso-i", "fixed", variance=0.5)(x_hat, x, mu, mu)
    (grad,) = torch.autograd.grad(loss, x_hat, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x_hat)
    torch.testing.assert_close(second, torch.full_like(second, 1 / 0.5 / 4))


def test_half_precision_gradients_round_after_the_upstream_factor() -> None:
    """With GradScaler's factor a float16 gradient far below float16's smallest number survives."""
    x = torch.zeros(1, 4096)
    x_hat = (torch.full((1, 4096), 1e-3)).half().requires_grad_()
    mu = torch.zeros(1, 2)
    loss = GaussianVAELoss("iso-i", "fixed", variance=100.0, reduction="mean")(x_hat, x, mu, mu)
    (loss * 65536.0).backward()
    wanted = 1e-3 / 100 / 4096 * 65536
    assert x_hat.grad is not None
    assert float(x_hat.grad[0, 0]) == pytest.approx(wanted, rel=2e-3)


# ---------------------------------------------------------------- extremes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_zero_residual_is_finite_and_the_reference_value(
    covariance: str, dtype: torch.dtype
) -> None:
    x = torch.rand(4, 33).to(dtype)
    x_hat = x.clone().requires_grad_()
    for reduction in ("batchmean", "none"):
        loss = functional.mle_nll(x_hat, x, covariance, reduction=reduction)
        # GradScaler's usual first factor, uneven where there is one per sample
        (grad,) = torch.autograd.grad((loss * torch.rand(loss.shape) * 65536).sum(), x_hat)
        assert loss.isfinite().all()
        assert torch.equal(grad, torch.zeros_like(grad))
        with backends.use("reference"):
            wanted = functional.mle_nll(x_hat, x, covariance, reduction=reduction)
        torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_pixel_is_never_hidden(bad: float) -> None:
    for operator in OPERATORS:
        if not operator.data:
            continue
        for element in (0, 40, -1):  # whole vectors, and the tail
            inputs = testing.draw(operator, (3, 1, 51), torch.float32, "contiguous")
            inputs["x"].view(-1)[element] = bad
            value = testing.evaluate(operator, inputs, "cpu").value
            assert not value.isfinite().all(), (operator.name, element)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    samples=st.one_of(st.none(), st.integers(1, 3)),
    covariance=st.sampled_from(COVARIANCES),
    permute=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(shape: list[int], samples: int | None, covariance: str, permute: bool) -> None:
    lead = [] if samples is None else [samples]
    x_hat, x = torch.randn(*lead, *shape), torch.randn(shape)
    if permute:
        x_hat, x = (
            t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))
            for t in (x_hat, x)
        )
    x_hat.requires_grad_()
    got = functional.mle_nll(x_hat, x, covariance)
    (grad,) = torch.autograd.grad(got, x_hat)
    with backends.use("reference"):
        wanted = functional.mle_nll(x_hat.double(), x.double(), covariance)
    (wanted_grad,) = torch.autograd.grad(wanted, x_hat)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grad, wanted_grad, rtol=2e-3, atol=1e-5)


def test_more_than_two_to_the_31_elements_expanded() -> None:
    """Offsets pass 2^31 without the memory: every element is the same one."""
    rows, columns = 3, 2**30
    x_hat, x = torch.tensor([[2.0]]).bfloat16(), torch.tensor([[1.0]]).bfloat16()
    with torch.no_grad():
        value = functional.gaussian_nll(
            x_hat.expand(rows, columns), x.expand(rows, columns), 0.0, reduction="mean"
        )
    assert float(value) == pytest.approx(0.5 * (1 + 1.8378770664), rel=1e-6)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    rows, columns = 65_536, 32_769
    x_hat = torch.zeros(rows, columns, dtype=torch.bfloat16)
    x_hat[-1, -1] = 1.0
    x = torch.zeros(1, dtype=torch.bfloat16).expand(rows, columns)
    x_hat.requires_grad_()
    loss = functional.gaussian_nll(x_hat, x, 0.0, reduction="none")
    assert (loss[-1] - loss[0]).item() == pytest.approx(0.5, abs=0.01)
    (grad,) = torch.autograd.grad(loss.sum(), x_hat)
    assert float(grad[-1, -1]) == 1.0
    assert float(grad[-1, :-1].abs().max()) == 0.0


def test_every_objective_has_a_term_in_the_core() -> None:
    """The table's codes are the core's: an unknown code would leave the outputs unwritten."""
    assert list(OBJECTIVES.values()) == list(range(len(OBJECTIVES)))
    assert set(OBJECTIVES) == {None, "gaussian", *COVARIANCES}
    for name in ("loss", "loss_backward", "sample", "sample_backward"):
        assert hasattr(torch.ops.vaekern, name)
    assert ops.cpu.core is not None
