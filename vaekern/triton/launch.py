"""Tensors to launches: the slots of backends.LossKernels for Triton.

Nothing here waits for the device or reads a number from it.  Launches go to torch's current stream;
outputs are torch's, workspace comes from its caching allocator, so that a call can be captured in a
CUDA graph.  The kernels take densely stored tensors in one common order (blocks.py): channels_last
is such an order, what is stored otherwise is copied first.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
from torch import Tensor

from . import full, kl, plan, reductions, sampling
from .blocks import Data
from .kl import Latent
from .plan import Case, Step
from .reductions import Out, Weight

TUNING: plan.Tuning | None = None  # tests set it; None: the device's


@functools.cache
def _tuning(device: torch.device) -> plan.Tuning:
    if device.type != "cuda":
        return plan.Tuning(multiprocessors=4)
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return plan.Tuning(multiprocessors=count)


def run(kernel: Any, programs: int, warps: int, *args: Any) -> None:
    """Every launch passes here."""
    kernel[(programs,)](*args, **options(warps))


def options(warps: int) -> dict[str, int]:
    """With all the registers there are: left to itself ptxas spills a few for the sake of more
    programs at a time."""
    return {"num_warps": warps, "maxnreg": min(65_536 // (32 * warps), 255) // 8 * 8}


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


# ------------------------------------------------------------------ layouts


class Dense:
    """Gives tensors [lead..., features...] in one dense order of the features, ``like``'s own."""

    def __init__(self, like: Tensor, lead: int) -> None:
        strides = like.stride()[lead:]
        order = sorted(range(len(strides)), key=lambda k: -strides[k])
        longer = [k for k in order if like.shape[lead + k] != 1]
        self.order = [k for k in order if like.shape[lead + k] == 1] + longer
        self.identity = longer == sorted(longer)
        self._back: list[tuple[Tensor, Tensor]] = []

    def view(self, t: Tensor, lead: int) -> Tensor:
        if self.identity:
            return t
        return t.permute(*range(lead), *(lead + k for k in self.order))

    def read(self, t: Tensor | None, lead: int) -> Tensor | None:
        return None if t is None else self.view(t, lead).contiguous()

    def write(self, t: Tensor | None, lead: int) -> Tensor | None:
        """Where the kernel writes: the tensor itself, or a buffer that ``finish`` copies."""
        if t is None:
            return None
        view = self.view(t, lead)
        if view.is_contiguous():
            return view
        buffer = torch.empty(view.shape, dtype=t.dtype, device=t.device)
        self._back.append((view, buffer))
        return buffer

    def finish(self) -> None:
        for view, buffer in self._back:
            view.copy_(buffer)


def _spread(x_logvar: Tensor | None, x: Tensor, objective: int) -> int:
    """How a known variance lies over x [B, ...], which has more than one sample or feature."""
    if objective != plan.GAUSSIAN or x_logvar is None or x_logvar.numel() == 1:
        return plan.SCALAR
    if x_logvar.dim() < x.dim() or x_logvar.shape[0] != x.shape[0]:
        return plan.FEATURE
    if x_logvar.numel() == x.shape[0]:
        return plan.SAMPLE
    return plan.ELEMENT_SPREAD if x.shape[0] > 1 else plan.FEATURE


# ------------------------------------------------------------------ counters

_SLOTS = 1024
_counters: dict[torch.device, Tensor] = {}
_slots: dict[tuple[torch.device, int], Tensor] = {}


def _counter(device: torch.device) -> Tensor:
    """An integer that is 0 between launches: one for each stream, since launches on a stream run
    one after the other; a captured graph, which may run beside anything, gets its own."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    found = _slots.get((device, stream))
    if found is None:
        found = _new_slot(device, stream)
    return found


def _new_slot(device: torch.device, stream: int) -> Tensor:
    used = sum(key[0] == device for key in _slots)
    if used >= _SLOTS:
        return torch.zeros(1, dtype=torch.int32, device=device)
    if device not in _counters:
        _counters[device] = torch.zeros(32 * _SLOTS, dtype=torch.int32, device=device)
    found = _slots[device, stream] = _counters[device][32 * used]
    return found


# ------------------------------------------------------------------ the loss


def loss(
    x_hat: Tensor | None, x: Tensor | None, x_logvar: Tensor | None, mu: Tensor | None,
    logvar: Tensor | None, scale_tril: Tensor | None, prior_mu: Tensor | None,
    prior_logvar: Tensor | None, beta: Tensor | None, upstream: Tensor | None,
    value: Tensor | None, statistics: Tensor | None, grad_x_hat: Tensor | None,
    grad_x: Tensor | None, grad_x_logvar: Tensor | None, grad_mu: Tensor | None,
    grad_logvar: Tensor | None, grad_scale_tril: Tensor | None, grad_prior_mu: Tensor | None,
    grad_prior_logvar: Tensor | None, last: Tensor | None, running: Tensor | None,
    momentum: float, objective: int, activation: int, reduction: int, beta_number: float,
    eps: float, logvar_min: float, logvar_max: float, x_logvar_min: float, threads: int,
) -> None:  # fmt: skip
    """See backends.LossKernels."""
    like = x if x is not None else mu
    assert like is not None
    outputs = (
        value, statistics, grad_x_hat, grad_x, grad_x_logvar, grad_mu, grad_logvar,
        grad_scale_tril, grad_prior_mu, grad_prior_logvar,
    )  # fmt: skip
    B = like.shape[0]
    if B == 0 or not any(t is not None for t in outputs):
        for t in outputs:
            if t is not None:
                t.zero_()
        return
    device = like.device
    wide = any(
        t is not None and t.dtype is torch.float64
        for t in (x_hat, x, x_logvar, mu, logvar, scale_tril, prior_mu, prior_logvar)
    )
    if upstream is not None and upstream.dim():
        upstream = upstream.contiguous()
    with _on(device):
        # ---- layouts
        data, arranged = Data(None, None, None, None, None, None), []
        spread, L, F = plan.SCALAR, 1, 1
        if x is not None:
            assert x_hat is not None
            F = x.numel() // B
            lead = x_hat.dim() - x.dim() + 1
            L = x_hat.shape[0] if lead == 2 else 1
            spread = _spread(x_logvar, x, objective)
            order = Dense(x_hat, lead)
            lv_lead = int(x_logvar is not None and x_logvar.dim() == x.dim())
            features = spread in (plan.FEATURE, plan.ELEMENT_SPREAD)
            data = Data(
                order.read(x_hat, lead), order.read(x, 1),
                order.read(x_logvar, lv_lead) if features else _flat(x_logvar),
                order.write(grad_x_hat, lead), order.write(grad_x, 1),
                order.write(grad_x_logvar, lv_lead) if features else grad_x_logvar,
            )  # fmt: skip
            arranged.append(order)
        latent, d = Latent(*[None] * 8), 1
        if mu is not None and scale_tril is None:
            d = mu.numel() // B
            order = Dense(mu, 1)
            latent = Latent(
                order.read(mu, 1), order.read(logvar, 1), order.read(prior_mu, 1),
                order.read(prior_logvar, 1), order.write(grad_mu, 1), order.write(grad_logvar, 1),
                order.write(grad_prior_mu, 1), order.write(grad_prior_logvar, 1),
            )  # fmt: skip
            arranged.append(order)
        elif mu is not None:
            assert scale_tril is not None
            d = mu.shape[1]
            order, square = Dense(mu, 2), Dense(scale_tril, 3)  # no features to be reordered
            latent = Latent(
                order.read(mu, 2), square.read(scale_tril, 3), None, None,
                order.write(grad_mu, 2), square.write(grad_scale_tril, 3), None, None,
            )  # fmt: skip
            arranged += [order, square]

        case = Case(
            wide, objective, activation, reduction, eps, logvar_min, logvar_max, x_logvar_min,
            momentum, spread, B, F, L, d, mu is not None and scale_tril is None,
            scale_tril is not None, value is not None,
            grad_x_hat is not None or grad_x is not None, grad_x is not None,
            grad_x_logvar is not None, TUNING or _tuning(device),
        )  # fmt: skip
        weight = Weight(upstream, beta)
        if reduction == DIMS:
            _dims(case, latent, weight, value, arranged[-1])
        else:
            tracked = _Tracked(case, arranged[0], statistics, last, running, x, device)
            _launch(case, data, latent, weight, beta_number, value, tracked)
            tracked.finish(momentum)
        for order in arranged:
            order.finish()


BATCHMEAN, MEAN, DIMS = 0, 2, 4  # vaekern.ops.REDUCTIONS


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


class _Tracked:
    """Statistics and the variance's buffers; where the features are stored in another order than
    diag-i's variance is wanted in, they are put in order afterwards."""

    def __init__(
        self, case: Case, order: Dense, statistics: Tensor | None, last: Tensor | None,
        running: Tensor | None, x: Tensor | None, device: torch.device,
    ) -> None:  # fmt: skip
        self.wanted, self.buffers, self.order, self.x = statistics, (last, running), order, x
        self.reorder = case.objective == plan.DIAG_I and not order.identity
        self.statistics, self.last, self.running = statistics, last, running
        alone = case.objective == plan.DIAG_I and case.reduction == plan.REDUCTION_NONE
        if (statistics is None and alone and case.forward) or (
            self.reorder and (statistics is not None or last is not None)
        ):
            dtype = torch.float64 if case.wide else torch.float32
            self.statistics = torch.empty(3 * case.B + case.F, dtype=dtype, device=device)
        if self.reorder:
            self.last = self.running = None

    def finish(self, momentum: float) -> None:
        if not self.reorder or self.statistics is None:
            return
        assert self.x is not None
        B, shape = self.x.shape[0], self.x.shape[1:]
        ordered = torch.empty(shape, dtype=self.statistics.dtype, device=self.statistics.device)
        view = self.order.view(ordered, 0)
        view.copy_(self.statistics[3 * B :].view(view.shape))
        if self.wanted is not None:
            self.wanted[: 3 * B].copy_(self.statistics[: 3 * B])
            self.wanted[3 * B :].copy_(ordered.flatten())
        last, running = self.buffers
        if last is not None and running is not None:
            from ..ops import update

            update(last, running, ordered, momentum)


def _launch(
    case: Case, data: Data, latent: Latent, weight: Weight, beta_number: float,
    value: Tensor | None, tracked: _Tracked,
) -> None:  # fmt: skip
    c, made = case, plan.make(case)
    like = data.x if data.x is not None else latent.mu
    device = like.device
    workspace = torch.empty(made.workspace, dtype=torch.float64, device=device)
    columns = None
    if made.columns:
        kind = torch.float64 if c.wide else torch.float32
        columns = torch.empty(made.columns, dtype=kind, device=device)
    if c.full_kl:
        _full_kl(c, latent, workspace[made.kl_at :], weight, beta_number)
        latent = Latent(*[None] * 8)
    out = Out(value, tracked.statistics, tracked.last, tracked.running, workspace, _counter(device))
    for i, step in enumerate(made.steps):
        if made.keeps_variance and i == 1:
            assert tracked.statistics is not None
            data = data._replace(logvar=tracked.statistics[3 * c.B :])
            out = out._replace(last=None, running=None)
        _step(c, step, data, latent, out, weight, beta_number, columns)


def _unit(c: Case) -> float:
    """What the reduction makes of a term of 1."""
    if c.reduction in (BATCHMEAN, DIMS):
        return 1.0 / c.B
    if c.reduction == MEAN:
        return 1.0 / (c.B * (c.F if c.objective else c.d))
    return 1.0


def _step(
    c: Case, step: Step, data: Data, latent: Latent, out: Out, weight: Weight, beta: float,
    columns: Tensor | None,
) -> None:  # fmt: skip
    extra = (columns, step.tiles) if step.tiles else ()
    run(
        step.kernel, step.programs, step.warps, data, latent, out, weight, _unit(c), beta, c.B,
        c.F, c.L, c.B * c.F, step.piece, step.pieces, c.d, step.kl_programs, *extra, step.how,
    )  # fmt: skip


def _how(wide: bool, d: int, tuning: plan.Tuning) -> plan.How:
    """For the kernels that know no objective."""
    rows, block = plan.kl_tile(d, wide, tuning)
    return _bare(wide)._replace(kl_rows=rows, kl_block=block)


@functools.cache
def _bare(wide: bool) -> plan.How:
    C = triton.language.float64 if wide else triton.language.float32
    return plan.How(C, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, False, 0)


def _full_how(how: plan.How, d: int) -> plan.How:
    block = max(plan.power_of_two(d), 16)
    return how._replace(block=block, rows=max(2048 // block, 1))


def _full_kl(c: Case, latent: Latent, out: Tensor, weight: Weight, beta: float) -> None:
    how = _full_how(_bare(c.wide)._replace(reduction=c.reduction), c.d)
    run(full.full_kl_kernel, c.B, 4, latent, out, weight, _unit(c), beta, c.B, c.d, how)


def _dims(c: Case, latent: Latent, weight: Weight, value: Tensor | None, order: Dense) -> None:
    """Per latent dimension, without beta."""
    if c.full_kl:
        out = torch.empty(c.B, c.d, dtype=torch.float64, device=latent.mu.device)
        _full_kl(c, latent, out, weight, 1.0)
        if value is not None:
            value.copy_(out.sum(0) / c.B)
        return
    how = _how(c.wide, c.d, c.tuning)._replace(
        reduction=c.reduction, logvar_min=c.logvar_min, logvar_max=c.logvar_max
    )
    how = how._replace(kl_block=min(how.kl_block, 64), kl_rows=16)
    upstream = None if weight.upstream is None else order.read(weight.upstream, 0)
    run(
        kl.kl_dims_kernel, plan.ceil_div(c.d, how.kl_block), 4, latent, order.write(value, 0),
        upstream, _unit(c), c.B, c.d, how,
    )  # fmt: skip


# ------------------------------------------------------------------ scale


def scale(*args: Any) -> None:
    """Eight gradients, their factor, threads; see backends.LossKernels."""
    *grads, factor, _ = args
    buffers = [g for g in grads if g is not None and g.numel()]
    if not buffers:
        return
    device = buffers[0].device
    tuning = TUNING or _tuning(device)
    with _on(device):
        for i in range(0, len(buffers), 4):
            some = buffers[i : i + 4]
            sizes = [g.numel() for g in some] + [0] * (4 - len(some))
            programs = min(plan.ceil_div(max(sizes), tuning.block), 8 * tuning.multiprocessors)
            run(
                reductions.scale_kernel, programs, 4, *some, *[None] * (4 - len(some)), *sizes,
                factor, tuning.block,
            )  # fmt: skip


# ------------------------------------------------------------------ sampling


def sample(
    mu: Tensor, logvar: Tensor | None, scale_tril: Tensor | None, noise: Tensor, z: Tensor,
    kl: Tensor | None, threads: int,
) -> None:  # fmt: skip
    _sample(mu, logvar, scale_tril, noise, z, kl, None, None, None, None)


def sample_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor | None,
    scale_tril: Tensor | None, noise: Tensor, grad_mu: Tensor | None, grad_logvar: Tensor | None,
    grad_scale_tril: Tensor | None, threads: int,
) -> None:  # fmt: skip
    grad_spread = grad_logvar if scale_tril is None else grad_scale_tril
    _sample(
        mu, logvar, scale_tril, noise, None, None, grad_z, grad_kl, grad_mu, grad_spread
    )  # fmt: skip


def _sample(
    mu: Tensor, logvar: Tensor | None, scale_tril: Tensor | None, noise: Tensor,
    z: Tensor | None, kl: Tensor | None, grad_z: Tensor | None, grad_kl: Tensor | None,
    grad_mu: Tensor | None, grad_spread: Tensor | None,
) -> None:  # fmt: skip
    B = mu.shape[0]
    if mu.numel() == 0 or noise.numel() == 0:
        for t in (kl, grad_mu, grad_spread):
            if t is not None:
                t.zero_()
        return
    d, lead = mu.numel() // B, 1 + noise.dim() - mu.dim()
    L = noise.shape[0] if lead == 2 else 1
    wide = any(t is not None and t.dtype is torch.float64 for t in (mu, logvar, scale_tril))
    tuning = TUNING or _tuning(mu.device)
    how = _how(wide, d, tuning)
    backward = z is None
    with _on(mu.device):
        if scale_tril is None:
            order = square = Dense(mu, 1)
            spread, at = logvar, 1
        else:
            order, square = Dense(mu, 2), Dense(scale_tril, 3)
            spread, at = scale_tril, 3
        skip = 0 if scale_tril is None else 1  # lead axes that count as features
        draw = sampling.Draw(
            order.read(mu, 1 + skip), square.read(spread, at), order.read(noise, lead + skip),
            order.write(z, lead + skip), kl, order.read(grad_z, lead + skip), _flat(grad_kl),
            order.write(grad_mu, 1 + skip), square.write(grad_spread, at),
        )  # fmt: skip
        if scale_tril is None:
            programs = plan.ceil_div(B, how.kl_rows)
            run(sampling.sample_kernel, programs, 4, draw, B, d, L, backward, how)
        else:
            run(full.full_sample_kernel, B, 4, draw, B, d, L, backward, _full_how(how, d))
        order.finish()
        if square is not order:
            square.finish()


# ------------------------------------------------------------------ the probe


def probe(device: torch.device) -> None:
    """Compiles and runs one kernel, and makes the counters; raises what goes wrong."""
    with _on(device):
        _counter(device)
    a = torch.full((1,), 2.0, device=device)
    scale(a, *[None] * 7, torch.full((), 1.5, device=device), 1)
    if float(a) != 3.0:
        raise RuntimeError(f"it gave {float(a)} for 2 x 1.5")
