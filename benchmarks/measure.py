"""The clock: every variant of a case in one interleaved loop, each warm, each by single calls."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

UNTIMED = 2  # calls that bring a variant's own code and data back into the caches
VISIT_SECONDS = 2e-3  # of timed calls per visit: long against a cache refill, short against drift
MOST_CALLS, FEWEST_CALLS = 20, 2
FEWEST_VISITS = 5


def compiled(function: F) -> F:
    """``torch.compile`` at its best for one case: nothing left from others, shapes known and fixed.

    It specialises on the thread count too, so this comes after ``torch.set_num_threads``."""
    torch._dynamo.reset()
    return cast(F, torch.compile(function, dynamic=False, fullgraph=True))


def forward_backward(
    forward: Callable[[], Tensor | Sequence[Tensor]],
    inputs: Mapping[str, Tensor],
    upstream: Sequence[Tensor] | None = None,
) -> Callable[[], None]:
    """One training step's share of a loss: gradients set to None, forward, backward."""
    leaves = [t for t in inputs.values() if t.requires_grad]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(forward(), upstream)

    return run


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleave(
    variants: Mapping[str, Callable[[], object]], seconds: float, fewest_visits: int = FEWEST_VISITS
) -> dict[str, list[float]]:
    """Durations in seconds of single calls: variant -> list.

    One round visits every variant in turn: ``UNTIMED`` calls, then some timed ones.  What the
    machine does meanwhile (frequency, neighbours) therefore meets all of them alike, and no variant
    is measured with another's data in the caches."""
    clock = time.perf_counter

    def timed(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return clock() - start

    with _no_garbage_collection():
        repeats = {}
        for name, call in variants.items():
            for _ in range(UNTIMED):
                call()
            fitting = VISIT_SECONDS / min(timed(call), timed(call))
            repeats[name] = max(FEWEST_CALLS, min(MOST_CALLS, int(fitting)))
        durations: dict[str, list[float]] = {name: [] for name in variants}
        end, visits = clock() + seconds, 0
        while visits < fewest_visits or clock() < end:
            for name, call in variants.items():
                for _ in range(UNTIMED):
                    call()
                durations[name] += [timed(call) for _ in range(repeats[name])]
            visits += 1
    return durations


def summary(durations: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Minima and medians in us, the others' as multiples of vaekern's, and numbers of calls."""
    row: dict[str, dict[str, float]] = {
        "minimum_us": {name: 1e6 * min(values) for name, values in durations.items()},
        "median_us": {name: 1e6 * statistics.median(values) for name, values in durations.items()},
    }
    for kind in ("minimum", "median"):
        times = row[f"{kind}_us"]
        row[f"{kind}_speedup"] = {
            other: times[other] / times["vaekern"]
            for other in times
            if other not in ("vaekern", "copy")
        }
    row["calls"] = {name: len(values) for name, values in durations.items()}
    return row


_ticks: deque[float] = deque()


def replayed_clock() -> float:
    """pytest-benchmark's timer: it reads the interleaved loop's durations instead of the time.

    pytest-benchmark times one function at a time; this lets its tables and its JSON show what the
    loop above measured."""
    return _ticks.popleft()


def replay(durations: list[float]) -> None:
    _ticks.clear()
    for duration in durations:
        _ticks.extend((0.0, duration))
