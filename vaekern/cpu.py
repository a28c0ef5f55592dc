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


def right_svd(J: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """J [B, m, d] -> S, V, sweeps [B], converged [B] and whether the sample was finite [B]."""
    batch, _, d = J.shape
    dtype = torch.promote_types(J.dtype, torch.float32)
    S, V = torch.empty(batch, d, dtype=dtype), torch.empty(batch, d, d, dtype=dtype)
    status = torch.empty(batch, dtype=torch.int64)
    core.right_svd(J, S, V, status.data_ptr(), torch.get_num_threads())
    return S, V, (status.abs() - 1).int(), status > 0, status != 0


def assignment(cost: Tensor) -> Tensor:
    """cost [B, d, d] -> columns [B, d], -1 where a sample was not finite."""
    columns = torch.empty(cost.shape[:2], dtype=torch.int64)
    core.assignment(cost, columns.data_ptr(), torch.get_num_threads())
    return columns
