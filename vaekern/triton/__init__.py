"""The Triton backend of ``vaekern.ops``: what a GPU runs where there is no CUDA toolkit.

    terms.py       the maths of every objective
    blocks.py      one block of elements; how rows of any length are cut up
    rows.py elements.py columns.py    the loops, by the group that an objective's statistic is over
    kl.py full.py sampling.py         the KL, full covariances, z = mu + sigma noise
    reductions.py  partial sums -> value, statistics, factors
    plan.py        which launches a call takes, and their sizes
    launch.py      tensors -> launches: the slots of backends.LossKernels

Triton itself is imported on first use only: it comes with torch's builds for CUDA, and is absent
elsewhere.  With TRITON_INTERPRET=1 set before that, its interpreter runs the kernels on CPU
tensors, for tests: ``vaekern.backends.use("triton")`` then serves them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

import torch

OLDEST = (8, 0)  # compute capability: bfloat16, and what the tests compile for


def interpreted() -> bool:
    """Does Triton's interpreter run the kernels, on CPU tensors?"""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run here, or None; the first call starts CUDA and compiles one."""
    if os.environ.get("VAEKERN_PURE") == "1":
        return "VAEKERN_PURE=1 asks for pure Python"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; torch's builds for CUDA bring it, or pip install triton"
    if interpreted():
        return None
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device and driver"
    device = torch.cuda.current_device()
    found = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if found < OLDEST:
        return f"{name} has compute capability {found[0]}.{found[1]}, and the kernels want 8.0"
    try:
        kernels().probe(torch.device("cuda", device))
    except Exception as error:  # Triton raises what its compilers, linker and driver happen to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"a trial launch on {name} went wrong: {reason}"
    return None


def details() -> str:
    if unavailable() is not None:
        return ""
    triton = importlib.import_module("triton")
    return f" ({triton.__version__}{', interpreted' if interpreted() else ''})"


def kernels() -> Any:
    """The slots of backends.LossKernels."""
    return importlib.import_module("vaekern.triton.launch")
