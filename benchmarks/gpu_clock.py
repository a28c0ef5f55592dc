"""Time on a GPU: replays of CUDA graphs, single calls between events, and the host's share.

The same interface times single calls on a CPU, for the dry run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...]
Call = Callable[[Any], Any]

WARM_UP_SECONDS = 0.2  # clocks and caches settle
REPLAY_SECONDS = 0.02  # of one replay: long against its launch
MOST_CALLS = 200  # in one graph
PAST_THE_CACHE = 3  # the inputs of one round exceed the L2 cache this many times
MOST_COPIES = 16


@dataclass(frozen=True)
class Timing:
    """microseconds of one call; how: "graph" (replays), "single" (calls between two events) or
    "estimate" (extrapolated from fewer matrices, since all would have taken too long)."""

    us: float
    how: str
    repeats: int
    lowest_us: float
    highest_us: float
    matrices: int | None = None  # that an estimate was made from

    def record(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


def _timing(seconds: Sequence[float], how: str) -> Timing:
    us = [1e6 * s for s in seconds]
    return Timing(statistics.median(us), how, len(us), min(us), max(us))


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def _on_gpu(inputs: Inputs) -> bool:
    return _tensors(inputs)[0].device.type == "cuda"


def _clone(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.clone()
    return tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in inputs)


def copies(inputs: Inputs, most: int = MOST_COPIES) -> list[Any]:
    """Equal inputs at different addresses, so many that a round of them does not fit the cache."""
    if not _on_gpu(inputs):
        return [inputs]
    tensors = _tensors(inputs)
    cache = torch.cuda.get_device_properties(tensors[0].device).L2_cache_size
    bytes_ = sum(t.numel() * t.element_size() for t in tensors)
    count = min(most, math.ceil(PAST_THE_CACHE * cache / max(1, bytes_)))
    return [inputs, *(_clone(inputs) for _ in range(count - 1))]


def single(call: Call, inputs: Sequence[Any], seconds: float, fewest: int = 1) -> Timing:
    """Calls one by one, each between two events: what includes waits of the host."""
    clock = _event_clock if _on_gpu(inputs[0]) else _host_clock
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < fewest or (time.perf_counter() < end and len(times) < MOST_CALLS):
        times.append(clock(call, inputs[len(times) % len(inputs)]))
    return _timing(times, "single")


def _event_clock(call: Call, x: Inputs) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call(x)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _host_clock(call: Call, x: Inputs) -> float:
    start = time.perf_counter()
    call(x)
    return time.perf_counter() - start


def graph(call: Call, inputs: Sequence[Any], seconds: float) -> Timing:
    """Replays of a CUDA graph that holds one or more rounds over the inputs."""
    if not _on_gpu(inputs[0]):
        return single(call, inputs, seconds)
    estimate = single(call, inputs, WARM_UP_SECONDS, fewest=3).us / 1e6
    rounds = max(1, round(min(REPLAY_SECONDS / estimate, MOST_CALLS) / len(inputs)))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for _ in range(rounds):
            for x in inputs:
                call(x)
    calls = rounds * len(inputs)
    end = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < end:
        captured.replay()
        torch.cuda.synchronize()

    def replay(_: Any) -> None:
        captured.replay()

    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        times.append(_event_clock(replay, inputs[0]) / calls)
    return _timing(times, "graph")


def host(call: Call, x: Inputs, calls: int = 100) -> float:
    """Microseconds of Python and launching in one call that nothing waits for."""
    for _ in range(3):
        call(x)
    if _on_gpu(x):
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call(x)
    us = (time.perf_counter() - start) / calls * 1e6
    if _on_gpu(x):
        torch.cuda.synchronize()
    return us


def bounded(call: Call, inputs: Sequence[Tensor], seconds: float, limit: float) -> Timing:
    """``single``, unless all matrices would take longer than ``limit`` seconds, as the time of some
    predicts: then the prediction."""
    batch = len(inputs[0])
    call(inputs[0][:1])  # handles and libraries are loaded outside the clock
    for few in (8, 64):
        if few >= batch:
            break
        one = single(call, [inputs[0][:few]], 0.0)
        predicted = one.us * batch / few
        if predicted / 1e6 <= limit:
            break
        if few == 64 or one.us / 1e6 > limit / 4:
            return Timing(predicted, "estimate", 1, predicted, predicted, few)
    return single(call, inputs, seconds)
