"""The operator table that the tests are generated from, and the measuring stick.

An ``Operator`` is a public function (or the loss module) with its options fixed and a recipe for
its inputs.  The same callable gives the truth (float64 inputs, reference backend), what eager
PyTorch makes of the tested dtype (reference backend) and the kernel's answer, so a new row is
covered by every generated test on the day it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import backends, functional
from .nn import ESTIMATES, GaussianVAELoss
from .ops import COVARIANCES

Inputs = dict[str, Tensor]
LATENT = 5
#: Large enough that a misplaced eps shows, and that 1 / (r^2 + eps) does not amplify float64's
#: last bit.
EPS = 0.1


@dataclass(frozen=True)
class Operator:
    name: str
    run: Callable[[Inputs], Tensor]
    inputs: Callable[[tuple[int, ...]], Inputs]  # data shape [B, ...] -> float64 samples
    data: bool  # False: it has no data, only latents [B, d]

    def __str__(self) -> str:
        return self.name


def _data(shape: tuple[int, ...], samples: int | None) -> Inputs:
    lead = () if samples is None else (samples,)
    return {
        "x_hat": torch.randn(*lead, *shape, dtype=torch.float64),
        "x": torch.randn(shape, dtype=torch.float64),
    }


def _latents(shape: tuple[int, ...], full: bool = False) -> Inputs:
    batch = shape[0]
    inputs = {"mu": torch.randn(batch, LATENT, dtype=torch.float64)}
    if full:
        tril = torch.randn(batch, LATENT, LATENT, dtype=torch.float64).tril(-1)
        inputs["scale_tril"] = tril + torch.diag_embed(torch.rand(batch, LATENT).double() + 0.5)
    else:
        inputs["logvar"] = torch.randn(batch, LATENT, dtype=torch.float64)
    return inputs


#: How a known log-variance may lie over x [B, C, ...].
LOGVAR_SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "scalar": lambda s: (),
    "dimension": lambda s: s[1:],
    "channel": lambda s: (s[1], *[1] * (len(s) - 2)),
    "sample": lambda s: (s[0], *[1] * (len(s) - 1)),
    "element": lambda s: s,
}


def _nll(layout: str, activation: str | None, reduction: str, samples: int | None) -> Operator:
    def inputs(shape: tuple[int, ...]) -> Inputs:
        logvar = torch.randn(LOGVAR_SHAPES[layout](shape), dtype=torch.float64)
        return {**_data(shape, samples), "logvar": logvar}

    def run(t: Inputs) -> Tensor:
        return functional.gaussian_nll(
            t["x_hat"], t["x"], t["logvar"], activation=activation, reduction=reduction
        )

    name = f"gaussian_nll-{layout}-{activation}-{reduction}-L{samples or 0}"
    return Operator(name, run, inputs, True)


def _mle(covariance: str, activation: str | None, reduction: str, samples: int | None) -> Operator:
    def run(t: Inputs) -> Tensor:
        return functional.mle_nll(
            t["x_hat"], t["x"], covariance, activation=activation, reduction=reduction, eps=EPS
        )

    name = f"mle_nll-{covariance}-{activation}-{reduction}-L{samples or 0}"
    return Operator(name, run, lambda shape: _data(shape, samples), True)


def _kl(reduction: str, prior: bool) -> Operator:
    def inputs(shape: tuple[int, ...]) -> Inputs:
        priors = {
            "prior_mu": torch.randn(LATENT, dtype=torch.float64),
            "prior_logvar": torch.randn(1, LATENT, dtype=torch.float64),
        }
        return _latents(shape) | (priors if prior else {})

    def run(t: Inputs) -> Tensor:
        return functional.gaussian_kl(**t, reduction=reduction)

    return Operator(f"gaussian_kl-{reduction}{'-prior' if prior else ''}", run, inputs, False)


def _full_kl(reduction: str) -> Operator:
    def run(t: Inputs) -> Tensor:
        return functional.full_gaussian_kl(t["mu"], t["scale_tril"], reduction=reduction)

    return Operator(
        f"full_gaussian_kl-{reduction}", run, lambda shape: _latents(shape, True), False
    )


def _sample(full: bool, kl: bool, samples: int | None) -> Operator:
    def inputs(shape: tuple[int, ...]) -> Inputs:
        t = _latents(shape, full)
        lead = () if samples is None else (samples,)
        return t | {"noise": torch.randn(*lead, *t["mu"].shape, dtype=torch.float64)}

    def run(t: Inputs) -> Tensor:
        posterior: dict[str, Any] = {k: v for k, v in t.items() if k not in ("mu", "noise")}
        noise = t["noise"].detach()
        if not kl:
            return functional.reparameterize(t["mu"], noise=noise, samples=samples, **posterior)
        z, rows = functional.sample_and_kl(t["mu"], noise=noise, samples=samples, **posterior)
        return torch.cat([z.flatten().to(rows.dtype), 0.7 * rows])

    name = "sample_and_kl" if kl else "reparameterize"
    return Operator(f"{name}-{'full' if full else 'diagonal'}-L{samples or 0}", run, inputs, False)


def _module(covariance: str, estimate: str, full: bool) -> Operator:
    def inputs(shape: tuple[int, ...]) -> Inputs:
        t = _data(shape, None) | _latents(shape, full)
        if estimate == "learned":
            layout = {"iso-i": "scalar", "diag-i": "dimension", "iso-d": "sample"}
            layout_shape = LOGVAR_SHAPES[layout.get(covariance, "element")](shape)
            t["x_logvar"] = torch.randn(layout_shape, dtype=torch.float64)
        return t

    def run(t: Inputs) -> Tensor:
        t = dict(t)
        shape = t["x"].shape[1:]
        own = covariance in ("iso-i", "diag-i")
        if estimate == "learned" and own:  # the module's parameter takes the given value
            loss = GaussianVAELoss(covariance, "learned", x_shape=shape, beta=0.5).to(t["x"].device)
            del loss._parameters["x_logvar"]
            loss._parameters["x_logvar"] = t.pop("x_logvar").reshape(
                shape if covariance == "diag-i" else (1,)
            )  # type: ignore[assignment]
        else:
            variance = {"variance": 0.7} if estimate == "fixed" else {}
            loss = GaussianVAELoss(covariance, estimate, beta=0.5, **variance)  # type: ignore[arg-type]
            loss = loss.to(t["x"].device)
            loss = loss.to(t["x"].dtype) if estimate == "fixed" else loss
        return loss(**t)

    name = f"GaussianVAELoss-{covariance}-{estimate}{'-full' if full else ''}"
    return Operator(name, run, inputs, True)


def _table() -> Iterable[Operator]:
    for layout in LOGVAR_SHAPES:
        yield _nll(layout, None, "batchmean", None)
        yield _nll(layout, "sigmoid", "none", 3)
    yield _nll("scalar", "tanh", "mean", 1)
    for covariance in COVARIANCES:
        yield _mle(covariance, None, "batchmean", None)
        yield _mle(covariance, None, "none", 3)
        yield _mle(covariance, "sigmoid", "sum", 3)
        yield _mle(covariance, "tanh", "mean", None)
    for reduction in ("batchmean", "sum", "mean", "none", "dims"):
        yield _kl(reduction, prior=False)
        yield _full_kl(reduction)
    yield _kl("batchmean", prior=True)
    yield _kl("none", prior=True)
    for full in (False, True):
        for kl in (False, True):
            for samples in (None, 3):
                yield _sample(full, kl, samples)
    for covariance in COVARIANCES:
        for estimate in ESTIMATES:
            yield _module(covariance, estimate, full=False)
    yield _module("iso-i", "mle", full=True)


OPERATORS = tuple(_table())

# ------------------------------------------------------------------ layouts


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def _sliced(t: Tensor) -> Tensor:
    wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1] + 1) if t.dim() else t
    if not t.dim():
        return t
    view = wide[..., 1::2]
    view.copy_(t)
    return view


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape) if t.dim() else t


def _misaligned(t: Tensor) -> Tensor:
    flat = t.new_zeros(t.numel() + 1)[1:]
    flat.copy_(t.flatten())
    return flat.view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": _transposed,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "expanded": _expanded,
    "misaligned": _misaligned,
}


def moved(t: Tensor, device: torch.device) -> Tensor:
    """To a device in the same layout: a plain copy would make it dense."""
    storage = torch.empty(0, dtype=t.dtype)
    storage.set_(t.detach().untyped_storage())  # type: ignore[call-overload]
    return storage.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


# ------------------------------------------------------------------ the measuring stick


@dataclass(frozen=True)
class Result:
    value: Tensor
    grads: dict[str, Tensor]


def evaluate(operator: Operator, inputs: Inputs, backend: str, upstream: float = 1.7) -> Result:
    """Value, and the gradients for an upstream gradient of ``upstream`` times fixed uneven
    weights."""
    leaves = {k: t.detach().requires_grad_() for k, t in inputs.items()}
    with backends.use(backend):
        value = operator.run(leaves)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64, device=value.device)
    weight = weight.view(value.shape)
    total = (value.double() * weight).sum() * upstream if value.dim() else value * upstream
    names = [k for k in leaves if k != "noise"]
    grads = torch.autograd.grad(total, [leaves[k] for k in names])
    return Result(value.detach(), dict(zip(names, grads, strict=True)))


def draw(operator: Operator, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Inputs:
    """Inputs drawn in the tested dtype: casting the truth's inputs down would hide the kernel's
    error.  The layout applies to every tensor."""
    inputs = {k: t.to(dtype) for k, t in operator.inputs(shape).items()}
    change = LAYOUTS[layout]
    return {k: change(t) for k, t in inputs.items()}


def worst_error(got: Tensor, truth: Tensor) -> float:
    """max |got - truth| over max |truth|; infinite where one is not finite and the other is."""
    if truth.numel() == 0:
        return 0.0
    if not torch.equal(got.isfinite(), truth.isfinite()):
        return math.inf
    scale = float(truth.abs().max())
    return float((got.double() - truth).abs().max()) / (scale or 1.0)


#: The floor in units of the arithmetic's rounding: a term is right to 2 ulp, a few of them meet in
#: every result, and eager's own error may by luck be 0.
FLOOR_ULPS = 8


def exceeds(
    got: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype, terms: int
) -> str | None:
    """None, or a sentence: the error must stay within 1.5 times eager's plus the floor.

    In float64 the truth has the kernel's own precision and eager's error reads 0, so the floor
    carries what both may lose over ``terms`` summands: roundings of either sign grow as their
    square root."""
    arithmetic = torch.float64 if dtype is torch.float64 else torch.float32
    floor = FLOOR_ULPS * torch.finfo(arithmetic).eps
    if dtype is torch.float64:
        floor *= max(terms, 1) ** 0.5
    error, allowed = worst_error(got, truth), 1.5 * worst_error(eager, truth) + floor
    if error <= allowed:
        return None
    return f"error {error:.3g} exceeds 1.5 x eager's {worst_error(eager, truth):.3g} + {floor:.3g}"


def compare(
    operator: Operator, inputs: Inputs, backend: str, device: torch.device | None = None
) -> list[str]:
    """What is wrong with a backend's value and gradients, one line each; on a device other than the
    CPU the tensors keep their layout, and are compared with the CPU's truth."""
    dtype = next(iter(inputs.values())).dtype
    if device is None:
        got = evaluate(operator, inputs, backend)
    else:
        there = evaluate(operator, {k: moved(t, device) for k, t in inputs.items()}, backend)
        got = Result(there.value.cpu(), {k: g.cpu() for k, g in there.grads.items()})
    eager = evaluate(operator, inputs, "reference")
    truth = evaluate(operator, {k: t.double() for k, t in inputs.items()}, "reference")
    terms = max(t.numel() for t in inputs.values())
    wrong = []
    if got.value.dtype != eager.value.dtype:
        wrong.append(f"value: dtype {got.value.dtype}, wanted {eager.value.dtype}")
    problem = exceeds(got.value, eager.value, truth.value, dtype, terms)
    if problem:
        wrong.append(f"value: {problem}")
    for name, grad in got.grads.items():
        if grad.dtype != inputs[name].dtype or grad.shape != inputs[name].shape:
            wrong.append(f"gradient of {name}: {grad.dtype} {list(grad.shape)}")
        problem = exceeds(grad, eager.grads[name], truth.grads[name], dtype, terms)
        if problem:
            wrong.append(f"gradient of {name}: {problem}")
    return wrong
