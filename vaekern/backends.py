"""Which implementation runs, and why.

One row per backend: the devices it serves, the operators it fills and, at run time, the reason it
cannot (or None).  The kernels' calls arrive through the registered operators of ``vaekern.ops`` or
from ``vaekern.linalg``; the reference is called directly, so that autograd can differentiate it any
number of times.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from . import _checks, cpu, cuda, triton

#: The groups of operators: vaekern.ops, and vaekern.linalg.
LOSSES, LINALG = "losses", "linalg"


class LossKernels(Protocol):
    """The slots that a backend of LOSSES fills: every output is allocated by ``vaekern.ops``, which
    gives the arguments by position, absent ones as None.

    loss: x_hat, x, x_logvar, mu, logvar, scale_tril, prior_mu, prior_logvar, beta (one number, or
        None: beta_number), upstream (None in the forward), value and statistics (None in the
        backward; statistics also where unwanted), the gradients of the first eight, last, running,
        momentum (the variance's buffers), then the codes and numbers of ops.Options, threads.
        Tensors have any strides.  With takes_statistics = True the backward gets the forward's
        statistics where it may have them.  Under capture of a CUDA graph, nothing may wait for the
        device.
    scale: eight gradients as ``loss`` made them (float32 or float64), or None; their factor, one
        number on the device; threads.  In place.
    sample: mu, logvar, scale_tril, noise, z, kl, threads.
    sample_backward: grad_z, grad_kl, mu, logvar, scale_tril, noise, gradients of mu, logvar and
        scale_tril, threads.
    writes_gradients: optional; the objective's code, x_hat, x, does x want a gradient, is the
        arithmetic float64?  False: the backward writes the gradients of this loss, not the forward.
    """

    def loss(self, *args: Any) -> None: ...
    def scale(self, *args: Any) -> None: ...
    def sample(self, *args: Any) -> None: ...
    def sample_backward(self, *args: Any) -> None: ...


@dataclass(frozen=True)
class Backend:
    name: str
    device: str  # the device type it serves, or "any"
    summary: str
    operators: tuple[str, ...]  # groups that it fills; the others run on the reference
    unavailable: Callable[[], str | None]  # why it cannot run here, or None
    details: Callable[[], str]  # what to say of it where it runs
    losses: Callable[[], Any] = lambda: None  # the LossKernels, where it fills LOSSES
    #: For tests: does it take CPU tensors too, on an emulation, where it is asked for by name?
    emulated: Callable[[], bool] = lambda: False


BACKENDS = (
    Backend(
        "cpu",
        "cpu",
        "vectorised C++ kernels",
        (LOSSES, LINALG),
        lambda: cpu.UNAVAILABLE,
        cpu.details,
        lambda: cpu.core,
    ),
    Backend(
        "cuda",
        "cuda",
        "CUDA C++ kernels",
        (LOSSES, LINALG),
        cuda.unavailable,
        cuda.details,
        cuda.losses,
    ),
    Backend(
        "triton",
        "cuda",
        "Triton kernels",
        (LOSSES,),
        triton.unavailable,
        triton.details,
        triton.kernels,
        triton.interpreted,
    ),
    Backend("reference", "any", "plain PyTorch", (LOSSES, LINALG), lambda: None, lambda: ""),
)
NAMES = tuple(b.name for b in BACKENDS)


#: Where the CUDA kernels and Triton's could both serve a loss: from how many numbers of x on it is
#: Triton, by the objective's code (ops.OBJECTIVES); the others never.  By reasoning, and still to
#: be measured (benchmarks/README.md): the CUDA kernels cost the host least and take one launch,
#: which is what counts in small losses, and keep rows and columns on the chip at any D; where one
#: pass over the elements is bound by memory, Triton's, compiled for the one case, need fewer
#: registers.
TRITON_FROM = {1: 1 << 26, 2: 1 << 26, 5: 1 << 26}  # gaussian, iso-i, diag-d


class _ByShape:
    """The kernels of two backends: ``large`` from TRITON_FROM on, where it is available."""

    takes_statistics = True

    def __init__(self, small: Any, large: Callable[[], Any]) -> None:
        self._small = small
        self._large = functools.cache(
            large
        )  # asking Triton compiles a kernel: not before it counts
        self.scale, self.sample = small.scale, small.sample
        self.sample_backward = small.sample_backward

    def _of(self, objective: int, x: torch.Tensor | None) -> Any:
        start = TRITON_FROM.get(objective)
        if start is None or x is None or x.numel() < start:
            return self._small
        return self._large() or self._small

    def loss(self, *args: Any) -> None:
        kernels = self._of(args[23], args[1])
        if args[10] is None and not getattr(kernels, "takes_statistics", False):
            args = (*args[:11], None, *args[12:])
        kernels.loss(*args)

    def writes_gradients(
        self,
        objective: int,
        x_hat: torch.Tensor | None,
        x: torch.Tensor | None,
        *rest: bool,
    ) -> bool:
        ask = getattr(self._of(objective, x), "writes_gradients", None)
        return ask is None or bool(ask(objective, x_hat, x, *rest))


def _available_losses(name: str) -> Any:
    found = next((b for b in BACKENDS if b.name == name), None)
    return found.losses() if found is not None and found.unavailable() is None else None


def _serves(b: Backend, device: str, operators: str) -> bool:
    return b.device in (device, "any") and operators in b.operators


def _choose(device: str, operators: str, wanted: str | None) -> Backend:
    for b in BACKENDS:
        emulated = wanted == b.name and operators in b.operators and b.emulated()
        serves = wanted in (None, b.name) and (emulated or _serves(b, device, operators))
        if serves and b.unavailable() is None:
            return b
    return BACKENDS[-1]


_wanted = os.environ.get("VAEKERN_BACKEND") or None
if _wanted is not None:
    _checks.option("the environment variable VAEKERN_BACKEND", _wanted, NAMES)
#: group -> device type -> does a kernel serve it?  And the kernels of LOSSES, None for the
#: reference.  Filled on first use, since asking a GPU starts CUDA, read on every call, and emptied
#: by ``use``.
_KERNELS: dict[str, dict[str, bool]] = {LOSSES: {}, LINALG: {}}
_LOSS_KERNELS: dict[str, Any] = {}


def has_kernel(device_type: str, operators: str = LOSSES) -> bool:
    """Do kernels, rather than the reference, serve a group of operators on this device type?"""
    found = _KERNELS[operators].get(device_type)
    if found is None:
        found = _find(device_type, operators)
        if not torch.compiler.is_compiling():  # which guards what it has read
            _KERNELS[operators][device_type] = found
    return found


def _find(device_type: str, operators: str) -> bool:
    found = _choose(device_type, operators, _wanted).name != "reference"
    if not found and device_type == "cuda" and operators == LOSSES:
        _warn_of_reference()
    return found


# As torch.compiler.assume_constant_result does it, which would import Dynamo: the probes run when
# a function that uses them is compiled, and are no part of it.
_find._dynamo_marked_constant = True  # type: ignore[attr-defined]


_warned = False


def _warn_of_reference() -> None:
    """Once: on a GPU the reference is several times slower than what was to be expected."""
    global _warned
    if _warned or _wanted is not None:
        return
    _warned = True
    warnings.warn(
        f"vaekern's losses run on plain PyTorch on this GPU, for {_why_not('cuda')}; "
        "VAEKERN_BACKEND=reference says that this is wanted",
        stacklevel=2,
    )


def loss_kernels(device_type: str) -> Any:
    """The LossKernels that serve a device type, or None: the reference does."""
    if device_type in _LOSS_KERNELS:
        return _LOSS_KERNELS[device_type]
    row = _choose(device_type, LOSSES, _wanted)
    found = row.losses()
    if _wanted is None and row.name == "cuda":
        found = _ByShape(found, lambda: _available_losses("triton"))
    _LOSS_KERNELS[device_type] = found
    return found


def any_loss_kernels(device_type: str) -> Any:
    """... for the registered operators: a graph made by a kernel is finished by one, wherever its
    ``backward()`` runs."""
    found = loss_kernels(device_type) or _choose(device_type, LOSSES, None).losses()
    if found is None:
        raise RuntimeError(
            f"vaekern's operators have no kernel for {device_type} tensors here: "
            f"{_why_not(device_type)}; call vaekern.functional, which runs plain PyTorch then"
        )
    return found


def _why_not(device_type: str) -> str:
    rows = [b for b in BACKENDS[:-1] if _serves(b, device_type, LOSSES)]
    reasons = [f"{b.name}: {b.unavailable()}" for b in rows]
    return "; ".join(reasons) or "no backend serves them"


def _forget() -> None:
    for known in _KERNELS.values():
        known.clear()
    _LOSS_KERNELS.clear()


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Run the forward passes inside the block on one backend (for tests, benchmarks, double
    backward).

    A backend that cannot run here raises; the choice is the process's, not the thread's.  A graph
    keeps the backend that made it, wherever its ``backward()`` runs.

    Example:
        >>> import torch, vaekern
        >>> mu = torch.ones(2, 3, requires_grad=True)
        >>> with vaekern.backends.use("reference"):
        ...     kl = vaekern.functional.gaussian_kl(mu, torch.zeros(2, 3))
        >>> kl.item()
        1.5
    """
    global _wanted
    _checks.option("backend", name, NAMES)
    why = next(b for b in BACKENDS if b.name == name).unavailable()
    if why is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {why}")
    before, _wanted = _wanted, name
    _forget()
    try:
        yield
    finally:
        _wanted = before
        _forget()


def active(device: str | torch.device = "cpu", operators: str = LOSSES) -> str:
    """The name of the backend that serves a device's ``"losses"`` or ``"linalg"``."""
    return _choose(torch.device(device).type, operators, _wanted).name


def describe() -> str:
    """One line per backend: what it is, whether it runs and for what, and if not, why."""
    lines = []
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for b in BACKENDS:
        why = b.unavailable()
        served = [
            f"{operators} on {device}"
            for device in devices
            for operators in (LOSSES, LINALG)
            if active(device, operators) == b.name
        ]
        state = f"in use: {', '.join(served)}" if served else "available"
        detail = "" if why else b.details()
        lines.append(f"{b.name:<10} {b.summary}{detail}: {f'unavailable: {why}' if why else state}")
    if _wanted is not None:
        lines.append(f"(chosen by VAEKERN_BACKEND or backends.use: {_wanted})")
    return "\n".join(lines)
