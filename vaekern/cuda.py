"""The CUDA kernels: loads them, or says why not, and hands tensors to them.

Like the CPU core they know nothing of torch: pointers, shapes and strides arrive through DLPack's
exchange table, outputs and workspace are torch's, and the launches go to torch's current stream, so
that calls order with everything else there and can be captured in CUDA graphs.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import warnings
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
        why = None
        if kernels.probe(device) != 0:
            why = f"a trial launch on {torch.cuda.get_device_name(device)} went wrong"
    except RuntimeError as error:
        why = f"{error} (kernels for {kernels.architectures})"
    if why is not None:  # built, and there is a device: not what the user expects
        warnings.warn(
            f"vaekern's CUDA kernels cannot run here: {why}; the next backend serves GPU tensors",
            stacklevel=2,
        )
        return None, why
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


class Losses:
    """The slots of ``backends.LossKernels`` for tensors of any CUDA device, on its current
    stream."""

    #: The backward takes the forward's statistics, which spare it a pass where they are a variance.
    takes_statistics = True

    def __init__(self, native: Any) -> None:
        self._native = native
        self._workspaces: dict[tuple[int, int], int] = {}
        self._early: dict[tuple[int, ...], bool] = {}

    def loss(self, *args: Any) -> None:
        x, mu = args[1], args[3]
        like = mu if x is None else x
        index, shape = like.device.index, like.shape
        key = (shape[0], math.prod(shape[1:]))
        size = self._workspaces.get(key)
        if size is None:
            size = self._workspaces[key] = self._native.loss_workspace(*key)
        workspace = torch.empty(size, dtype=torch.uint8, device=like.device)
        _launch(self._native.loss, index, *args, workspace)

    def writes_gradients(
        self, objective: int, x_hat: Tensor | None, x: Tensor | None, grad_x: bool, double: bool
    ) -> bool:
        """Does the forward write the gradients at the cost of three tensors?  Where the variance
        belongs to more than a block can hold, the backward does, from the statistics."""
        if x_hat is None or x is None:
            return True
        samples = x_hat.shape[0] if x_hat.dim() > x.dim() else 1
        index = x.device.index
        key = (objective, samples, x.shape[0], math.prod(x.shape[1:]), grad_x, double, index)
        early = self._early.get(key)
        if early is None:
            early = self._early[key] = bool(self._native.writes_gradients(*key))
        return early

    def scale(self, *args: Any) -> None:
        _launch(self._native.scale, args[8].device.index, *args)

    def sample(self, *args: Any) -> None:
        _launch(self._native.sample, args[0].device.index, *args)

    def sample_backward(self, *args: Any) -> None:
        _launch(self._native.sample_backward, args[2].device.index, *args)


def _launch(call: Any, index: int, *args: Any) -> None:
    if index == torch.cuda.current_device():
        call(*args, index, torch._C._cuda_getCurrentRawStream(index))
        return
    with torch.cuda.device(index):  # another device of the machine
        call(*args, index, torch._C._cuda_getCurrentRawStream(index))


@functools.cache
def losses() -> Losses | None:
    kernels = _load()[0]
    return None if kernels is None else Losses(kernels)


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
