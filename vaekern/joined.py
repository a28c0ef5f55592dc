"""One batch in several parts: on several processes, in micro-batches, or both.

A loss of the joined batch needs two things that no part knows: the number of samples, and for the
batch-coupled objectives the statistic over all of them.  Both travel in one vector of float64,
(sums, count), which parts add up and processes all-reduce once, in the forward; nothing is
communicated in the backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .ops import REDUCTIONS

if TYPE_CHECKING:
    from .nn import GaussianVAELoss

_SAME = 1e-4  # two evaluations of one network differ by roundings, two draws of its noise by more


class Joined(NamedTuple):
    """What is known of the joined batch."""

    sums: Tensor  # float64 [1] or [D]: of the objective's statistic, over all samples
    samples: Tensor  # float64, 0-d: their number
    ranks: int  # processes over whose losses the gradient is averaged


def totals(statistics: Tensor, batch: int) -> Tensor:
    """(sums, count) of one part, from its statistics vector (reference.loss)."""
    means = statistics[3 * batch :].double()
    sums = means * batch if batch else torch.zeros_like(means)
    return torch.cat([sums, sums.new_full((1,), batch)])


def join(part: Tensor, group: object | None) -> Joined:
    """Adds up the processes' (sums, count): the one collective of a loss."""
    ranks = 1
    if group is not None:
        torch.distributed.all_reduce(part, group=group)  # type: ignore[arg-type]
        ranks = torch.distributed.get_world_size(group)  # type: ignore[arg-type]
    return Joined(part[:-1], part[-1], ranks)


def mean(joined: Joined) -> Tensor:
    """The statistic's mean over the joined batch; 0 where that is empty."""
    return joined.sums / joined.samples.clamp_min(1)


def tracked(joined: Joined) -> Tensor:
    """... NaN where it is empty, which leaves the buffers as they were."""
    return joined.sums / joined.samples


def samples_share(joined: Joined, batch: int) -> Tensor:
    """A part's mean over its samples times this, averaged over the processes and summed over a
    process's parts, is the joined batch's mean."""
    return batch * joined.ranks / joined.samples.clamp_min(1)


def share(joined: Joined, reduction: int, batch: int, dtype: torch.dtype) -> Tensor | float:
    """The same for a value of any reduction."""
    if reduction == REDUCTIONS["none"]:
        return 1.0
    if reduction == REDUCTIONS["sum"]:
        return float(joined.ranks)
    return samples_share(joined, batch).to(dtype)


def with_gradient(share: Tensor, whole: Tensor) -> Tensor:
    """The joined value, on every process, whose gradients average to its own.

    Where ``whole`` is the mean over the processes of ``share``, the mean of the gradients of any
    function of the result is that function's gradient: nothing is communicated in the backward.
    """
    return share + (whole - share).detach()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: object) -> Tensor:
        ctx.group = group
        total = part.clone()
        torch.distributed.all_reduce(total, group=group)  # type: ignore[arg-type]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _Sum.apply(grad.contiguous(), ctx.group), None


def sum_with_gradient(part: Tensor, group: object) -> Tensor:
    """The sum over the processes, for what each goes on to compute from it by itself.

    The gradient of a process's part comes from all of them: the backward has an all-reduce too.
    """
    total: Tensor = _Sum.apply(part, group)
    return total


class Parts:
    """The micro-batches of one batch: collected in the first pass, weighed in the second."""

    def __init__(self) -> None:
        self.joined: Joined | None = None  # from the second pass on
        self.collected: Tensor | None = None
        self.samples: list[int] = [0, 0]  # of either pass
        self.squares: list[Tensor | float] = [0.0, 0.0]
        self.track: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0)
        self.group: object | None = None

    def add(self, statistics: Tensor, batch: int) -> None:
        again = self.joined is not None
        self.samples[again] += batch
        square = statistics[batch : 2 * batch].double().sum()
        self.squares[again] = self.squares[again] + square
        if not again:
            part = totals(statistics, batch)
            self.collected = part if self.collected is None else self.collected + part

    def check(self) -> None:
        if self.samples[0] != self.samples[1]:
            raise RuntimeError(
                f"step must give the loss the same samples in both passes, got {self.samples[0]} "
                f"in the first and {self.samples[1]} in the second; call the loss once for each "
                "micro-batch, and nowhere else in between"
            )
        first, second = (float(square) for square in self.squares)
        if abs(first - second) > _SAME * abs(first):
            raise RuntimeError(
                f"step must compute the same residuals in both passes, got squares of sum "
                f"{first:g} and {second:g}; torch's own generators are replayed, so reset any "
                "other inside step, and draw noise outside a compiled model"
            )


def accumulate(
    loss_fn: GaussianVAELoss,
    step: Callable[[Any], Tensor],
    micro_batches: Iterable[Any],
    model: Any,
) -> Iterator[Tensor]:
    """See GaussianVAELoss.accumulate."""
    if loss_fn._parts is not None:
        raise RuntimeError(
            "the loss already accumulates, got another accumulate inside; finish or close the first"
        )
    batches = list(micro_batches)
    parts = loss_fn._parts = Parts()
    try:
        with torch.no_grad(), _replayed():
            for batch in batches:
                step(batch)
        if parts.collected is None:
            raise RuntimeError(
                f"step must call this loss, got none in {len(batches)} micro-batches; give every "
                "process at least one (an empty one will do), and accumulate with the loss that "
                "step uses"
            )
        parts.joined = join(parts.collected, parts.group)
        loss_fn._track(parts.joined, parts.track)
        for i, batch in enumerate(batches):
            with _exchange(model, last=i == len(batches) - 1):
                yield step(batch)
        parts.check()
    finally:
        loss_fn._parts = None


def _replayed() -> contextlib.AbstractContextManager[None]:
    """torch's own generators continue after the block as if it had drawn nothing."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices)


@contextlib.contextmanager
def _exchange(model: Any, *, last: bool) -> Iterator[None]:
    """Processes exchange gradients once, with the last micro-batch."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(last)
        yield
    elif last or not hasattr(model, "no_sync"):  # a module of one process alone
        yield
    else:  # DistributedDataParallel
        with model.no_sync():
            yield
