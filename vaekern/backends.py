"""Which implementation runs, and why.

One row per backend: the devices it serves, the operators it fills and, at run time, the reason it
cannot (or None).  The kernels' calls arrive through the registered operators of ``vaekern.ops`` or
from ``vaekern.linalg``; the reference is called directly, so that autograd can differentiate it any
number of times.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import _checks, cpu, cuda

#: The groups of operators: vaekern.ops, and vaekern.linalg.
LOSSES, LINALG = "losses", "linalg"


@dataclass(frozen=True)
class Backend:
    name: str
    device: str  # the device type it serves, or "any"
    summary: str
    operators: tuple[str, ...]  # groups that it fills; the others run on the reference
    unavailable: Callable[[], str | None]  # why it cannot run here, or None
    details: Callable[[], str]  # what to say of it where it runs


BACKENDS = (
    Backend(
        "cpu",
        "cpu",
        "vectorised C++ kernels",
        (LOSSES, LINALG),
        lambda: cpu.UNAVAILABLE,
        cpu.details,
    ),
    Backend("cuda", "cuda", "CUDA C++ kernels", (LINALG,), cuda.unavailable, cuda.details),
    Backend("reference", "any", "plain PyTorch", (LOSSES, LINALG), lambda: None, lambda: ""),
)
NAMES = tuple(b.name for b in BACKENDS)


def _choose(device: str, operators: str, wanted: str | None) -> str:
    for b in BACKENDS:
        if b.device not in (device, "any") or wanted not in (None, b.name):
            continue
        if operators in b.operators and b.unavailable() is None:
            return b.name
    return "reference"


_wanted = os.environ.get("VAEKERN_BACKEND") or None
if _wanted is not None:
    _checks.option("the environment variable VAEKERN_BACKEND", _wanted, NAMES)
#: group -> device type -> does a kernel serve it?  Filled on first use, since asking a GPU starts
#: CUDA, read on every call, and emptied by ``use``.
_KERNELS: dict[str, dict[str, bool]] = {LOSSES: {}, LINALG: {}}


def has_kernel(device_type: str, operators: str = LOSSES) -> bool:
    """Do kernels, rather than the reference, serve a group of operators on this device type?"""
    known = _KERNELS[operators]
    found = known.get(device_type)
    if found is None:
        found = known[device_type] = _choose(device_type, operators, _wanted) != "reference"
    return found


def _forget() -> None:
    for known in _KERNELS.values():
        known.clear()


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
    return _choose(torch.device(device).type, operators, _wanted)


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
