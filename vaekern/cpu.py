"""The native CPU core: loads it, or says why not, and hands tensors to it.

The core knows nothing of torch: it reads pointers, shapes, strides and dtypes through DLPack's C
exchange table, which torch publishes on its Tensor type, so a call costs no Python per tensor.
"""

from __future__ import annotations

import importlib
import os

import torch  # first: the core shares the OpenMP run time that torch has loaded
from torch import Tensor

UNAVAILABLE: str | None = None  # the reason, in one sentence


def _load():  # type: ignore[no-untyped-def]
    global UNAVAILABLE
    if os.environ.get("VAEKERN_PURE") == "1":
        UNAVAILABLE = "VAEKERN_PURE=1 asks for pure Python"
        return None
    try:
        _core = importlib.import_module("vaekern._core")
    except ImportError as error:
        UNAVAILABLE = build_reason(error)
        return None
    table = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if table is None:
        UNAVAILABLE = f"torch {torch.__version__} has no DLPack C exchange table; upgrade torch"
        return None
    _core.init(table, Tensor, torch.nn.Parameter)
    return _core


def build_reason(error: ImportError) -> str:
    """Why there is no core: what the build noted, else what the loader says."""
    try:
        from ._build_info import REASON
    except ImportError:
        REASON = ""
    return REASON or f"the native core is not built ({error}); reinstall with a C++ compiler"


core = _load()


def details() -> str:
    return f" ({core.isa()}, {torch.get_num_threads()} threads)" if core is not None else ""
