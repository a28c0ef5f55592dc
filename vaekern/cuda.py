"""The CUDA kernels of ``vaekern.linalg``: loads them, or says why not, and hands tensors to them.

Like the CPU core they know nothing of torch: pointers, shapes and strides arrive through DLPack's
exchange table, outputs and workspace are torch's, and the launches go to torch's current stream, so
that calls order with everything else there and can be captured in CUDA graphs.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor

from . import reference_linalg


@functools.cache
def _load() -> tuple[Any, str | None]:
    """The module, or None and the reason in one sentence.

    Nothing here runs on import: asking for the device starts CUDA, which a process that forks
    later, or never uses the GPU, must not have done.
    """
    if os.environ.get("VAEKERN_PURE") == "1":
        return None, "VAEKERN_PURE=1 asks for pure Python"
    try:
        kernels = importlib.import_module("vaekern._cuda")
    except ImportError as error:
        return None, _build_reason(error)
    if torch.version.cuda is None:
        return None, "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return None, "torch finds no CUDA device and driver"
    table = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if table is None:
        return None, f"torch {torch.__version__} has no DLPack C exchange table; upgrade torch"
    try:
        kernels.init(table)
        device = torch.cuda.current_device()
        if kernels.probe(device) != 0:
            return None, f"a trial launch on {torch.cuda.get_device_name(device)} went wrong"
    except RuntimeError as error:
        return None, f"{error} (kernels for {kernels.architectures})"
    return kernels, None


def _build_reason(error: ImportError) -> str:
    try:
        from ._build_info import CUDA_REASON
    except ImportError:
        CUDA_REASON = ""
    return CUDA_REASON or f"the CUDA kernels are not built ({error}); reinstall with nvcc"


def unavailable() -> str | None:
    """Why the kernels cannot run here, or None; the first call starts CUDA."""
    return _load()[1]


def details() -> str:
    kernels = _load()[0]
    return f" ({kernels.architectures})" if kernels is not None else ""


def right_svd(J: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """J [B, m, d] on a CUDA device -> S [B, d], V [B, d, d], sweeps, converged and finite [B].

    Nothing waits for the device: where ``finite`` is False the matrix holds NaN or infinity, and S
    and V are NaN. float16, bfloat16 and float32 in any layout; float64 takes plain PyTorch's path,
    because a Gram matrix, which the kernels start from, loses half of its digits.
    """
    if J.dtype == torch.float64:
        return (*reference_linalg.right_svd(J), torch.isfinite(J).flatten(1).all(1))
    kernels = _load()[0]
    B, m, d = J.shape
    with torch.cuda.device(J.device):
        index = J.device.index
        S = J.new_empty((B, d), dtype=torch.float32)
        V = J.new_empty((B, d, d), dtype=torch.float32)
        sweeps = J.new_empty(B, dtype=torch.int32)
        converged = J.new_empty(B, dtype=torch.bool)
        finite = J.new_empty(B, dtype=torch.bool)
        workspace = J.new_empty(kernels.right_svd_workspace(B, m, d, index), dtype=torch.uint8)
        stream = torch.cuda.current_stream().cuda_stream
        kernels.right_svd(J, S, V, sweeps, converged, finite, workspace, index, stream)
    return S, V, sweeps, converged, finite


def assignment(cost: Tensor) -> Tensor:
    """cost [B, d, d] on a CUDA device -> columns [B, d] int64, -1 where a matrix is not finite."""
    kernels = _load()[0]
    with torch.cuda.device(cost.device):
        columns = torch.empty(cost.shape[:2], dtype=torch.int64, device=cost.device)
        stream = torch.cuda.current_stream().cuda_stream
        kernels.assignment(cost, columns, cost.device.index, stream)
    return columns
