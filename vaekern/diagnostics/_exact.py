"""A model as its derivative should see it: evaluation mode, full precision, plain operators."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vaekern.models.modes import evaluation_mode

#: What ``fp32_precision`` says where float32 is multiplied as float32; "none" inherits that.
FULL = ("none", "ieee")


@contextmanager
def exact_evaluation(module: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Inside, ``module`` evaluates deterministically, in full precision and differentiably.

    Every submodule is in evaluation mode, autocast is off, float32 is multiplied as float32 (no
    TF32, no bfloat16), attention runs on the operators that have forward derivatives, and nothing
    is compiled. All of it is put back at the end, also after an error: each submodule gets the
    training flag that it had.
    """
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(module))
        stack.enter_context(_full_precision())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_no_fused_encoder_layers())
        # torch.compile gives up for good a function that it first meets inside a transform. Where
        # the compiler is not even imported, nothing is compiled; importing it takes a second.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """Torch has old switches and new ones over the same state, and reading an old one raises where
    the two disagree, also inside torch's own kernels: so both are set, and both put back."""
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    switches: tuple[Any, ...] = (
        torch.backends,
        cudnn,
        cudnn.conv,
        cudnn.rnn,
        torch.backends.cuda.matmul,
        mkldnn,
        mkldnn.conv,
        mkldnn.rnn,
        mkldnn.matmul,
    )
    before = [switch.fp32_precision for switch in switches]
    old_matmul, old_cudnn = _old_matmul_switch(), _old_cudnn_switch()
    try:
        if old_matmul is not None:
            torch.set_float32_matmul_precision("highest")
        if old_cudnn is not None:
            cudnn.allow_tf32 = False
        for switch in switches:
            if switch.fp32_precision not in FULL:
                switch.fp32_precision = "ieee"
        yield
    finally:
        if old_matmul is not None:
            torch.set_float32_matmul_precision(old_matmul)
        if old_cudnn is not None:
            cudnn.allow_tf32 = old_cudnn
        for switch, precision in zip(switches, before, strict=True):
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


def _old_matmul_switch() -> str | None:
    """None where the user has set the new switches to something that the old one cannot say."""
    try:
        _ = torch.backends.cuda.matmul.allow_tf32
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _old_cudnn_switch() -> bool | None:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


@contextmanager
def _no_fused_encoder_layers() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
