"""The registered operators: schema, fake kernel, autograd.

``vaekern::loss`` is every loss of this package: a reconstruction term (one row of OBJECTIVES) plus
beta times a Gaussian KL, either part absent, with its reduction.  Where the upstream gradient is
one number the forward also writes the gradients (three tensors moved instead of five); the backward
only scales them.  ``vaekern::loss_backward`` recomputes them from the inputs: for per-sample
upstream gradients, half precision (one rounding, after the upstream factor) and second backward
passes. ``vaekern::sample`` and its backward draw z and the KL in one pass.

A backend fills the slots of these operators (backends.LossKernels); nothing here knows a formula.
In plain eager mode the kernels are called straight from autograd, past the dispatcher, whose
argument handling costs a good part of what the kernel does at 64 x 784; under torch.compile,
tracing and dispatch modes the operator itself is what runs.  Both run the same kernel with the same
arguments.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, cpu, reference

#: Rows of the objective table: name -> code shared with csrc/core.h. A new objective is one row
#: here, one term per language (csrc/terms.h, reference.py).
OBJECTIVES = {None: 0, "gaussian": 1, "iso-i": 2, "iso-d": 3, "diag-i": 4, "diag-d": 5}
COVARIANCES = ("iso-i", "iso-d", "diag-i", "diag-d")
ACTIVATIONS = {None: 0, "sigmoid": 1, "tanh": 2}
REDUCTIONS = {"batchmean": 0, "sum": 1, "mean": 2, "none": 3, "dims": 4}
OBJECTIVE_NAMES = {code: name for name, code in OBJECTIVES.items()}
ACTIVATION_NAMES = {code: name for name, code in ACTIVATIONS.items()}
REDUCTION_NAMES = {code: name for name, code in REDUCTIONS.items()}
_FIRST_ROWWISE = REDUCTIONS["none"]  # from here on the upstream gradient is not one number
#: (last, running, momentum): the buffers of the decoder's variance, to be updated.
Track = tuple[Tensor | None, Tensor | None, float]
NO_TRACKING: Track = (None, None, 0.0)
UNBOUNDED = 3e38  # finite, so that compilers can print it


class Options(NamedTuple):
    """What is fixed before the call; passed to the operators as plain numbers."""

    objective: int = 0
    activation: int = 0
    reduction: int = 0
    beta: float = 1.0
    eps: float = 1e-6
    logvar_min: float = -UNBOUNDED
    logvar_max: float = UNBOUNDED
    x_logvar_min: float = -UNBOUNDED


_TENSORS = (
    "Tensor? x_hat, Tensor? x, Tensor? x_logvar, Tensor? mu, Tensor? logvar, Tensor? scale_tril, "
    "Tensor? prior_mu, Tensor? prior_logvar, Tensor? beta"
)
_OPTIONS = (
    "int objective, int activation, int reduction, float beta_number, float eps, "
    "float logvar_min, float logvar_max, float x_logvar_min, int grads"
)
_lib = torch.library.Library("vaekern", "DEF")
_lib.define(f"loss({_TENSORS}, {_OPTIONS}) -> Tensor[]")
_lib.define(f"loss_backward(Tensor upstream, {_TENSORS}, {_OPTIONS}) -> Tensor[]")
_lib.define(
    "sample(Tensor mu, Tensor? logvar, Tensor? scale_tril, Tensor noise, bool kl) -> Tensor[]"
)
_lib.define(
    "sample_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor? logvar, "
    "Tensor? scale_tril, Tensor noise, int grads) -> Tensor[]"
)


# ------------------------------------------------------------------ outputs, real and fake alike


def _value_dtype(*tensors: Tensor | None) -> torch.dtype:
    for t in tensors:
        if t is not None and t.dtype is torch.float64:
            return torch.float64
    return torch.float32


def _loss_outputs(
    x: Tensor | None,
    mu: Tensor | None,
    dtype: torch.dtype,
    objective: int,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """value, and the statistics vector of reference.loss."""
    like = x if x is not None else mu
    assert like is not None
    batch = like.shape[0]
    if reduction < _FIRST_ROWWISE:
        value = like.new_empty((), dtype=dtype)
    elif reduction == REDUCTIONS["none"]:
        value = like.new_empty((batch,), dtype=dtype)
    else:
        return like.new_empty(like.shape[1:], dtype=dtype), like.new_empty((0,), dtype=dtype)
    variances = 0
    if x is not None:
        variances = math.prod(x.shape[1:]) if objective == OBJECTIVES["diag-i"] else 1
    return value, like.new_empty((3 * batch + variances,), dtype=dtype)


def _gradients(grads: int, *tensors: Tensor | None) -> list[Tensor | None]:
    return [
        torch.empty_like(t) if t is not None and grads >> i & 1 else None
        for i, t in enumerate(tensors)
    ]


def _loss(*args: Any, run: Any = None) -> list[Tensor]:
    """value, statistics and the gradients asked for; ``args`` as in the operator's schema.  The CPU
    kernel and the fake differ in ``run`` alone."""
    tensors, objective, reduction = args[:8], args[9], args[11]
    dtype = _value_dtype(*tensors)
    value, statistics = _loss_outputs(tensors[1], tensors[3], dtype, objective, reduction)
    return [value, statistics, *_run_loss(None, value, statistics, args, run)]


def _loss_backward(
    upstream: Tensor, *args: Any, run: Any = None, statistics: Tensor | None = None
) -> list[Tensor]:
    return _run_loss(upstream, None, statistics, args, run)


def _run_loss(
    upstream: Tensor | None, value: Tensor | None, statistics: Tensor | None, args: Any, run: Any
) -> list[Tensor]:
    """Makes the gradients' buffers, has them filled, and returns them."""
    tensors, beta, options, grads = args[:8], args[8], args[9:17], args[17]
    out = _gradients(grads, *tensors)
    if run is not None:
        run(
            *tensors, beta, upstream, value, statistics, *out, None, None, 0.0, *options,
            torch.get_num_threads(),
        )  # fmt: skip
    return [g for g in out if g is not None]


def _sample(
    mu: Tensor,
    logvar: Tensor | None,
    scale_tril: Tensor | None,
    noise: Tensor,
    kl: bool,
    run: Any = None,
) -> list[Tensor]:
    z = noise.new_empty(noise.shape, dtype=mu.dtype)
    rows = None
    if kl:
        rows = mu.new_empty((mu.shape[0],), dtype=_value_dtype(mu, logvar, scale_tril))
    if run is not None:
        run(mu, logvar, scale_tril, noise, z, rows, torch.get_num_threads())
    return [z] if rows is None else [z, rows]


def _sample_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor | None,
    scale_tril: Tensor | None,
    noise: Tensor,
    grads: int,
    run: Any = None,
) -> list[Tensor]:
    out = _gradients(grads, mu, logvar, scale_tril)
    if run is not None:
        run(
            grad_z, grad_kl, mu, logvar, scale_tril, noise, *out, torch.get_num_threads()
        )  # fmt: skip
    return [g for g in out if g is not None]


def _register() -> None:
    torch.library.register_fake("vaekern::loss", _loss, lib=_lib)
    torch.library.register_fake("vaekern::loss_backward", _loss_backward, lib=_lib)
    torch.library.register_fake("vaekern::sample", _sample, lib=_lib)
    torch.library.register_fake("vaekern::sample_backward", _sample_backward, lib=_lib)
    for key in ("CPU", "CUDA"):
        device = key.lower()
        _lib.impl("loss", _on(device, _loss, "loss"), key)
        _lib.impl("loss_backward", _on(device, _loss_backward, "loss"), key)
        _lib.impl("sample", _on(device, _sample, "sample"), key)
        _lib.impl("sample_backward", _on(device, _sample_backward, "sample_backward"), key)


def _on(device: str, body: Any, slot: str) -> Any:
    """An operator's implementation: the body with the slot of the backend in use."""
    return lambda *args: body(*args, run=getattr(backends.any_loss_kernels(device), slot))


_register()
_loss_op = torch.ops.vaekern.loss.default  # bound once: the lookup costs more than the check
_loss_backward_op = torch.ops.vaekern.loss_backward.default
_sample_op = torch.ops.vaekern.sample.default
_sample_backward_op = torch.ops.vaekern.sample_backward.default


# ------------------------------------------------------------------ autograd

TWICE = (
    "the gradient of a fused vaekern operator cannot be differentiated again; for a double "
    "backward run the forward pass inside `with vaekern.backends.use('reference'):`, on one "
    "process and the whole batch"
)


def _spread(mask: int, grads: Any, count: int) -> list[Tensor | None]:
    """One entry per differentiable input, None where no gradient was asked for."""
    it = iter(grads)
    return [next(it) if mask >> i & 1 else None for i in range(count)]


class _Once(torch.autograd.Function):
    """Gradients, made to depend on everything they were computed from, that explain themselves when
    they are differentiated again."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(None if g is None else g.detach() for g in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(TWICE)


def _once(grads: Any, *sources: Tensor | None) -> list[Tensor | None]:
    """Under create_graph=True: never a silent None or zero."""
    grads = list(grads)
    return list(_Once.apply(len(grads), *grads, *sources))


class _Held(torch.autograd.Function):
    """x_hat and x, for a loss at an estimate that is held fixed: right for one derivative only."""

    @staticmethod
    def forward(ctx, x_hat, x):
        ctx.save_for_backward(x_hat, x)
        ctx.set_materialize_grads(False)
        return x_hat.view_as(x_hat), x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        return tuple(_once(grads, *ctx.saved_tensors)) if torch.is_grad_enabled() else grads


def differentiable_once(kernel: bool, x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The kernels say so themselves."""
    if kernel or _is_compiling() or _transformed():
        return x_hat, x
    return _Held.apply(x_hat, x)  # type: ignore[no-any-return]


class _Loss(torch.autograd.Function):
    """Through the dispatcher: torch.compile, tracing, dispatch modes, tensor subclasses."""

    @staticmethod
    def forward(ctx, objective, activation, reduction, beta_number, eps, lo, hi, bound, narrow,
                beta, *inputs):  # fmt: skip
        mask = 0
        for i, needed in enumerate(ctx.needs_input_grad[10:]):
            mask |= needed << i
        options = (objective, activation, reduction, beta_number, eps, lo, hi, bound)
        early = _writes_early(reduction, narrow)
        value, statistics, *grads = _loss_op(*inputs, beta, *options, mask if early else 0)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(statistics)
        ctx.mask, ctx.options, ctx.early = mask, options, early
        # the inputs serve a late backward, and what is differentiated twice in eager mode
        ctx.kept = 0 if early and torch.compiler.is_compiling() else len(inputs) + 1
        ctx.save_for_backward(*((*inputs, beta) if ctx.kept else ()), *grads)
        return value, statistics

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:
            return (None,) * 18
        inputs, early = ctx.saved_tensors[: ctx.kept], ctx.saved_tensors[ctx.kept :]
        with torch.no_grad():
            if ctx.early:
                grads = [g * upstream.to(g.dtype) for g in early]
            else:
                grads = _loss_backward_op(upstream, *inputs, *ctx.options, ctx.mask)
        out = _spread(ctx.mask, grads, 8)
        if ctx.kept and torch.is_grad_enabled():
            out = _once(out, upstream, *inputs)
        return (None,) * 10 + tuple(out)


def _writes_early(reduction: int, narrow: bool) -> bool:
    """May the forward write the gradients?  Half precision rounds once, after the upstream factor:
    what GradScaler is for would be lost otherwise."""
    return reduction < _FIRST_ROWWISE and not narrow


class _DirectLoss(torch.autograd.Function):
    """A kernel past the dispatcher; every line here is paid for at 64 x 784."""

    @staticmethod
    def forward(ctx, call, x_hat, x, x_logvar, mu, logvar, scale_tril, prior_mu, prior_logvar):
        kernels, options, early, shape, dtype, statistics, beta, last, running, momentum = call
        like = x_hat if mu is None else mu
        value = torch.empty(shape, dtype=dtype, device=like.device)
        if early:
            empty_like = torch.empty_like
            _, n_x_hat, n_x, n_x_logvar, n_mu, n_logvar, n_tril, n_m, n_p = ctx.needs_input_grad
            grads = (
                empty_like(x_hat) if n_x_hat else None,
                empty_like(x) if n_x else None,
                empty_like(x_logvar) if n_x_logvar else None,
                empty_like(mu) if n_mu else None,
                empty_like(logvar) if n_logvar else None,
                empty_like(scale_tril) if n_tril else None,
                empty_like(prior_mu) if n_m else None,
                empty_like(prior_logvar) if n_p else None,
            )
        else:
            grads = _NONE8
        kernels.loss(
            x_hat, x, x_logvar, mu, logvar, scale_tril, prior_mu, prior_logvar, beta, None, value,
            statistics, *grads, last, running, momentum, *options, torch.get_num_threads(),
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            x_hat, x, x_logvar, mu, logvar, scale_tril, prior_mu, prior_logvar, beta
        )
        ctx.kernels, ctx.options = kernels, options
        ctx.grads = grads if early else None
        ctx.statistics = statistics if getattr(kernels, "takes_statistics", False) else None
        return value

    @staticmethod
    def backward(ctx, upstream):
        if upstream is None:
            return (None,) * 9
        # the first backward gives the forward's buffers away, any later one recomputes
        grads, ctx.grads = ctx.grads, None
        if grads is not None:
            if upstream.is_neg():
                upstream = upstream.resolve_neg()
            ctx.kernels.scale(*grads, upstream, torch.get_num_threads())
        else:
            mask = 0
            for i, needed in enumerate(ctx.needs_input_grad[1:]):
                mask |= needed << i
            args = (upstream, *ctx.saved_tensors, *ctx.options, mask)
            with torch.no_grad():
                if _plain(upstream):
                    found = _loss_backward(*args, run=ctx.kernels.loss, statistics=ctx.statistics)
                else:
                    found = _loss_backward_op(*args)
            grads = _spread(mask, found, 8)
        if torch.is_grad_enabled():  # create_graph=True
            grads = _once(grads, upstream, *ctx.saved_tensors)
        return None, *grads


_NONE8 = (None,) * 8
_native_check: Any = getattr(cpu.core, "check", None)
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_PLAIN = (Tensor, torch.nn.Parameter)


def _transformed() -> bool:
    """Inside torch.func's grad, vmap or jvp: the reference is what they can look into."""
    return not _is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def _plain(*tensors: Tensor | None) -> bool:
    """Plain eager mode and plain tensors: nothing that the dispatcher would have to see."""
    if _is_compiling() or _dispatch_modes():
        return False
    return all(t is None or (type(t) in _PLAIN and not t.is_neg()) for t in tensors)


def direct_loss(
    options: Options,
    beta: Tensor | None,
    x_hat: Tensor,
    x: Tensor,
    x_logvar: Tensor | None,
    mu: Tensor,
    logvar: Tensor | None,
    scale_tril: Tensor | None,
    want_statistics: bool,
    track: Track,
) -> tuple[Tensor, Tensor | None] | None:
    """(value, statistics or None) from the CPU kernel in plain eager mode; None where it is not
    plain or not the CPU's, or where an argument is not as the kernel takes it, for the caller to
    explain."""
    if _is_compiling() or _dispatch_modes() or _transformed():
        return None
    kernels = backends.loss_kernels("cpu")
    if kernels is None or kernels is not cpu.core:
        return None
    # one native call accepts the tensors: 1 narrow, 2 float64; -1 anything out of the ordinary
    flags = _native_check(
        x_hat, x, x_logvar, mu, logvar, scale_tril, track[0], track[1], options[0]
    )
    if flags < 0 or x_hat.is_neg() or x.is_neg() or mu.is_neg():
        return None
    if (logvar is not None and logvar.is_neg()) or (x_logvar is not None and x_logvar.is_neg()):
        return None  # a view that the dispatcher would have to materialise
    dtype = torch.float64 if flags & 2 else torch.float32
    statistics = None
    if want_statistics:
        statistics = _loss_outputs(x, mu, dtype, options[0], 0)[1]
    rowwise = options[2] >= _FIRST_ROWWISE
    early = not rowwise and not flags & 1 and torch.is_grad_enabled()
    shape = x.shape[:1] if rowwise else ()
    call = (kernels, options, early, shape, dtype, statistics, beta, *track)
    value = _DirectLoss.apply(call, x_hat, x, x_logvar, mu, logvar, scale_tril, None, None)
    return value, statistics


class _DirectSample(torch.autograd.Function):
    """mu + exp(logvar / 2) noise, past the dispatcher: at the size of most latents the call is all
    that it costs."""

    @staticmethod
    def forward(ctx, kernels, mu, logvar, noise):
        z = torch.empty(noise.shape, dtype=mu.dtype, device=mu.device)
        kernels.sample(mu, logvar, None, noise, z, None, torch.get_num_threads())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, logvar, noise)
        ctx.kernels = kernels
        return z

    @staticmethod
    def backward(ctx, grad_z):
        if grad_z is None:
            return (None,) * 4
        mu, logvar, noise = ctx.saved_tensors
        _, to_mu, to_logvar, _ = ctx.needs_input_grad
        if _plain(grad_z):
            # with one draw mu's gradient is z's
            same = grad_z.shape == mu.shape and grad_z.dtype is mu.dtype
            grad_mu = torch.empty_like(mu) if to_mu and not same else None
            grad_logvar = torch.empty_like(logvar) if to_logvar else None
            if grad_mu is not None or grad_logvar is not None:
                ctx.kernels.sample_backward(
                    grad_z, None, mu, logvar, None, noise, grad_mu, grad_logvar, None,
                    torch.get_num_threads(),
                )  # fmt: skip
            grads: tuple[Any, ...] = (grad_z if to_mu and same else grad_mu, grad_logvar)
        else:
            mask = to_mu | to_logvar << 1
            with torch.no_grad():
                found = _sample_backward_op(grad_z, None, mu, logvar, None, noise, mask)
            grads = tuple(_spread(mask, found, 3)[:2])
        if torch.is_grad_enabled():  # create_graph=True
            grads = tuple(_once((*grads, None), grad_z, mu, logvar, noise)[:2])
        return None, *grads, None


def direct_sample(mu: Tensor, logvar: Tensor, noise: Tensor | None) -> Tensor | None:
    """z from the CPU kernel in plain eager mode; None as in `direct_loss`."""
    if _is_compiling() or _dispatch_modes() or _transformed():
        return None
    kernels = backends.loss_kernels("cpu")
    if kernels is None or kernels is not cpu.core:
        return None
    # what holds of a loss's reconstruction and its latents holds of z, mu and logvar
    if noise is None or _native_check(noise, mu, None, mu, logvar, None, None, None, 0) < 0:
        return None
    if noise.requires_grad or mu.is_neg() or logvar.is_neg() or noise.is_neg():
        return None
    z: Tensor = _DirectSample.apply(kernels, mu, logvar, noise)
    return z


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, kl, mu, logvar, scale_tril, noise):
        n = ctx.needs_input_grad
        ctx.mask, ctx.kernels = n[2] | n[3] << 1 | n[4] << 2, kernels  # None: not plain
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, logvar, scale_tril, noise)
        if kernels is not None:
            out = _sample(mu, logvar, scale_tril, noise, kl, run=kernels.sample)
        else:
            out = _sample_op(mu, logvar, scale_tril, noise, kl)
        return tuple(out) if kl else out[0]

    @staticmethod
    def backward(ctx, grad_z, grad_kl=None):
        mask = ctx.mask
        if grad_z is None and grad_kl is None:
            return (None,) * 6
        mu, logvar, tril, noise = ctx.saved_tensors
        args = (grad_z, grad_kl, mu, logvar, tril, noise, mask)
        with torch.no_grad():
            if ctx.kernels is not None and _plain(grad_z, grad_kl):
                grads = _sample_backward(*args, ctx.kernels.sample_backward)
            else:
                grads = _sample_backward_op(*args)
        out = _spread(mask, grads, 3)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            out = _once(out, *args[:-1])
        return None, None, *out, None


# ------------------------------------------------------------------ what functional calls


def loss(
    options: Options,
    kernel: bool,
    narrow: bool,  # some input is float16 or bfloat16
    beta: Tensor | None,
    x_hat: Tensor | None = None,
    x: Tensor | None = None,
    x_logvar: Tensor | None = None,
    mu: Tensor | None = None,
    logvar: Tensor | None = None,
    scale_tril: Tensor | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    want_statistics: bool = False,
    track: Track = NO_TRACKING,
) -> tuple[Tensor, Tensor | None]:
    """(value, statistics) as in reference.loss, by the kernel or by the reference; where the
    statistics are not wanted they may be None.  ``track`` is updated as in direct_loss."""
    tensors = (x_hat, x, x_logvar, mu, logvar, scale_tril, prior_mu, prior_logvar)
    if kernel and not _transformed():
        if _plain(*tensors, beta):
            dtype, rowwise = _value_dtype(*tensors), options.reduction >= _FIRST_ROWWISE
            like = x if x is not None else mu
            assert like is not None
            dims = options.reduction == REDUCTIONS["dims"]
            shape = like.shape[1:] if dims else like.shape[:1] if rowwise else ()
            kernels = backends.loss_kernels(like.device.type)
            early = not rowwise and not narrow and torch.is_grad_enabled()
            if early and (ask := getattr(kernels, "writes_gradients", None)) is not None:
                grad_x = x is not None and x.requires_grad
                early = ask(options.objective, x_hat, x, grad_x, dtype is torch.float64)
            statistics, here = None, _in_kernel(track, like)
            later = torch.is_grad_enabled() and getattr(kernels, "takes_statistics", False)
            if want_statistics or here is not track or (later and not dims):
                statistics = _loss_outputs(x, mu, dtype, options.objective, 0)[1]
            call = (kernels, options, early, shape, dtype, statistics, beta, *here)
            value = _DirectLoss.apply(call, *tensors)
            if statistics is not None and here is not track:
                _track(x, statistics, track)
            return value, statistics
        if not torch.is_grad_enabled():  # no gradient is written
            out = _loss_op(*tensors, beta, *options, 0)
        else:
            out = _Loss.apply(*options, narrow, beta, *tensors)
        _track(x, out[1], track)
        return out[0], out[1]
    clamp = (options.logvar_min, options.logvar_max)
    value, found = reference.loss(
        x_hat, x, x_logvar, mu, logvar, scale_tril, prior_mu, prior_logvar,
        options.beta if beta is None else beta,
        objective=OBJECTIVE_NAMES[options.objective],
        activation=ACTIVATION_NAMES[options.activation],
        reduction=REDUCTION_NAMES[options.reduction],
        eps=options.eps,
        logvar_clamp=None if clamp == (-UNBOUNDED, UNBOUNDED) else clamp,
        x_logvar_min=options.x_logvar_min,
    )  # fmt: skip
    _track(x, found, track)
    return value, found


def _in_kernel(track: Track, like: Tensor) -> Track:
    """``track`` where the kernel can update the buffers as they are, else nothing."""
    last, running, _ = track
    if last is None or running is None:
        return track
    plain = last.dtype in (torch.float32, torch.float64) and last.dtype == running.dtype
    dense = last.is_contiguous() and running.is_contiguous()
    return track if plain and dense and last.device == like.device else NO_TRACKING


def _track(x: Tensor | None, statistics: Tensor, track: Track) -> None:
    last, running, momentum = track
    if last is None or running is None or x is None or not x.shape[0]:
        return  # an empty batch says nothing
    with torch.no_grad():
        update(last, running, statistics[3 * x.shape[0] :], momentum)


def sample(
    kernel: bool,
    kl: bool,
    mu: Tensor,
    logvar: Tensor | None,
    scale_tril: Tensor | None,
    noise: Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """z, or (z, KL [B])."""
    if kernel and not _transformed():
        plain = _plain(mu, logvar, scale_tril, noise)
        kernels = backends.loss_kernels(mu.device.type) if plain else None
        return _Sample.apply(kernels, kl, mu, logvar, scale_tril, noise)
    z = reference.reparameterize(mu, logvar, scale_tril, noise)
    if not kl:
        return z
    if scale_tril is not None:
        return z, reference.full_gaussian_kl(mu, scale_tril).flatten(1).sum(1)
    assert logvar is not None
    return z, reference.gaussian_kl(mu, logvar).flatten(1).sum(1)


def update(last: Tensor, running: Tensor, variance: Tensor, momentum: float) -> None:
    """last <- variance; running <- variance the first time (it is 0 until then), then its moving
    average.  The kernels do the same where they are called directly."""
    variance = variance.view(last.shape).to(last.dtype)
    good = variance.isfinite()  # a bad batch leaves the estimates as they were
    weight = torch.where(running > 0, momentum, 1.0).to(running.dtype)
    moved = running.lerp(variance.to(running.dtype), weight)
    running.copy_(torch.where(good, moved, running))
    last.copy_(torch.where(good, variance, last))
