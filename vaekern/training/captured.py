"""A step that is recorded once and replayed, or compiled: Python's share of it is paid once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vaekern.training.config import Mode

Function = Callable[..., Sequence[Tensor]]
Replay = Callable[[], object]
#: Records what a call launches, without running it: (its outputs, what runs it again).
Record = Callable[[Callable[[], Sequence[Tensor]]], tuple[Sequence[Tensor], Replay]]

# Steps before the recording: libraries are loaded, the optimiser's state and every workspace exist.
WARM_UP = 3


def choose(mode: Mode, device: torch.device, obstacle: str | None) -> tuple[Mode, str | None]:
    """The mode that `mode` stands for, and a sentence where it is not the one that was asked for.

    Args:
        mode: "auto" takes graphs on a CUDA device where nothing is in the way, else eager.
        device: of the model.
        obstacle: why a step of this run cannot be recorded, or None.

    Example:
        >>> choose("auto", torch.device("cpu"), None)
        ('eager', None)
        >>> choose("graph", torch.device("cpu"), None)
        ('eager', 'steps run eagerly: a CUDA graph needs a CUDA device')
    """
    if mode in ("eager", "compile"):
        return mode, None
    if device.type != "cuda":
        obstacle = "a CUDA graph needs a CUDA device"
    if obstacle is None:
        return "graph", None
    return "eager", None if mode == "auto" else f"steps run eagerly: {obstacle}"


def cuda_graph(body: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Replay]:
    """Record into a CUDA graph. torch's default generators give fresh numbers at each replay."""
    graph = torch.cuda.CUDAGraph()
    # thread_local: a thread that reads batches ahead may pin memory meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = body()
    return outputs, graph.replay


class Captured:
    """A function of tensors that is called often with the same shapes: recorded, then replayed.

    The first calls run as they are. Then one is recorded, and every further call copies its inputs
    into the recorded ones and replays. Its outputs are the same tensors each time: use or copy them
    before the next call. What cannot be recorded runs as it is, after one warning.

    Args:
        function: tensors -> tensors. It may change others, such as weights, in place; it must take
            everything that differs from call to call as an argument.
        record: what records it; `cuda_graph` by default.

    Example:
        >>> def rerun(body):  # a stand-in for a graph
        ...     out = [torch.empty(1)]
        ...     return out, lambda: out[0].copy_(body()[0])
        >>> double = Captured(lambda x: [2 * x], rerun)
        >>> [float(double(torch.tensor([float(i)]))[0]) for i in range(6)]
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """

    def __init__(self, function: Function, record: Record | None = None):
        self.function = function
        self.record = record or cuda_graph
        self.calls = 0
        self.failed = False
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()
        self._replay: Replay | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        self.calls += 1
        if self.failed or self.calls <= WARM_UP:
            return self.function(*inputs)
        if self._replay is None and not self._recorded(inputs):
            return self.function(*inputs)
        if any(a.shape != b.shape for a, b in zip(inputs, self._inputs, strict=True)):
            return self.function(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        assert self._replay is not None
        self._replay()
        return self._outputs

    def _recorded(self, inputs: Sequence[Tensor]) -> bool:
        self._inputs = [each.clone() for each in inputs]
        try:
            self._outputs, self._replay = self.record(lambda: self.function(*self._inputs))
        except RuntimeError as error:
            self.failed = True
            warn_eager("recorded as a CUDA graph", error)
            return False
        return True


class Compiled:
    """`torch.compile` for a function of tensors; where that fails it runs as it is, with a warning.

    Args:
        function: tensors -> tensors, of shapes that do not change.
    """

    def __init__(self, function: Function):
        self.function = function
        self.failed = False
        self._compiled: Function = torch.compile(function, dynamic=False)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if not self.failed:
            try:
                return self._compiled(*inputs)
            except RuntimeError as error:
                self.failed = True
                warn_eager("compiled", error)
        return self.function(*inputs)


def is_compilers(error: BaseException) -> bool:
    """Whether torch.compile raised it. By name: to import the class takes a second."""
    return any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__)


def warn_eager(what: str, error: Exception) -> None:
    """Say that a step could not be made faster, and why."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    warnings.warn(f"steps run eagerly: they cannot be {what} ({reason})", stacklevel=4)
