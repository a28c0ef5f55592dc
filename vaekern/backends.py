"""Which implementation runs, and why.

One row per backend: the devices it serves and, at run time, the reason it cannot (or None).  The
kernels' calls arrive through the registered operators of ``vaekern.ops``; the reference is called
directly, so that autograd can differentiate it any number of times.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import _checks, cpu


@dataclass(frozen=True)
class Backend:
    name: str
    device: str  # the device type it serves, or "any"
    summary: str
    unavailable: Callable[[], str | None]  # why it cannot run here, or None


BACKENDS = (
    Backend("cpu", "cpu", "vectorised C++ kernels", lambda: cpu.UNAVAILABLE),
    Backend("reference", "any", "plain PyTorch", lambda: None),
)
NAMES = tuple(b.name for b in BACKENDS)


def _choose(device: str, wanted: str | None) -> str:
    for b in BACKENDS:
        if b.device in (device, "any") and wanted in (None, b.name) and b.unavailable() is None:
            return b.name
    return "reference"


_wanted = os.environ.get("VAEKERN_BACKEND") or None
if _wanted is not None:
    _checks.option("the environment variable VAEKERN_BACKEND", _wanted, NAMES)
#: device type -> does a kernel serve it?  Read on every call, written only by ``use``.
_KERNELS: dict[str, bool] = {}


def _refresh() -> None:
    _KERNELS.clear()
    for b in BACKENDS:
        if b.device != "any":
            _KERNELS[b.device] = _choose(b.device, _wanted) != "reference"


_refresh()


def has_kernel(device_type: str) -> bool:
    return _KERNELS.get(device_type, False)


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
    _refresh()
    try:
        yield
    finally:
        _wanted = before
        _refresh()


def active(device: str | torch.device = "cpu") -> str:
    """The name of the backend that serves a device."""
    return _choose(torch.device(device).type, _wanted)


def describe() -> str:
    """One line per backend: what it is, whether it runs, and if not, why."""
    lines = []
    chosen = {active("cpu"), active("cuda") if torch.cuda.is_available() else active("cpu")}
    for b in BACKENDS:
        why = b.unavailable()
        detail = cpu.details() if b.name == "cpu" and why is None else ""
        state = f"unavailable: {why}" if why else ("in use" if b.name in chosen else "available")
        lines.append(f"{b.name:<10} {b.summary}{detail}: {state}")
    if _wanted is not None:
        lines.append(f"(chosen by VAEKERN_BACKEND or backends.use: {_wanted})")
    return "\n".join(lines)
