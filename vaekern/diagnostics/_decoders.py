"""What is asked of a decoder before its derivative is taken, and what one sample of it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaekern import _checks
from vaekern.diagnostics._checks import check_samples
from vaekern.diagnostics._exact import exact_evaluation

Output = Literal["mean", "raw"]


class Decoder(NamedTuple):
    """A checked decoder: z [B, d] -> x_hat [B, *shape]."""

    function: Callable[[Tensor], Tensor]
    module: nn.Module | None  # whose training flags are turned off meanwhile
    shape: torch.Size  # of one sample of x_hat
    sample_bytes: int  # written by all operators of one sample's forward pass
    output_bytes: int  # of one sample of x_hat


def check_decoder(decoder: Any, z: Tensor, output: Output) -> tuple[Decoder, Tensor]:
    """Run the decoder on one and on two samples; also return z as the decoder wants it.

    The two passes tell whether the output fits, whether samples are decoded independently of one
    another, and, from their difference, what a sample adds to the memory written.
    """
    check_samples("z", z)
    _checks.option("output", output, ("mean", "raw"))
    function, module = _resolve(decoder, output)
    z = _as_parameters(z.detach(), module)
    one, two = z[:1], z[[0, min(1, len(z) - 1)]]
    with exact_evaluation(module, z.device), torch.no_grad():
        alone, written_alone = _written(function, one)
        beside, written_beside = _written(function, two)
    _check_output(alone, one)
    _check_output(beside, two)
    _check_independent(alone[0], beside[0])
    return Decoder(
        function,
        module,
        alone.shape[1:],
        max(written_beside - written_alone, alone.nbytes),
        alone.nbytes,
    ), z


def _resolve(decoder: Any, output: Output) -> tuple[Callable[[Tensor], Tensor], nn.Module | None]:
    """The function that is differentiated, and the module it belongs to."""
    if not isinstance(decoder, nn.Module):
        if not callable(decoder):
            raise TypeError(
                f"decoder must be a module or a function of z, got {type(decoder).__name__}"
            )
        owner = getattr(decoder, "__self__", None)  # of a bound method such as vae.decode
        module = owner if isinstance(owner, nn.Module) else None
        function = decoder
    else:
        module = decoder
        function = getattr(decoder, "decode", decoder)
        missing = getattr(decoder.forward, "__func__", None) is nn.Module.forward
        if function is decoder and missing:
            raise TypeError(
                f"decoder must have a forward or a decode, got {type(decoder).__name__}; pass the "
                "part of it that decodes, such as model.stage1"
            )
    if output == "raw":
        if not (isinstance(decoder, nn.Module) and hasattr(decoder, "decoder")):
            raise ValueError(
                f"output='raw' needs a model with a .decoder, such as a VAE, got "
                f"{type(decoder).__name__}; pass what returns the values before the activation"
            )
        function = decoder.decoder

    def first(z: Tensor) -> Tensor:
        found = function(z)
        # (x_hat, x_logvar) where the decoder predicts its variance
        return found[0] if isinstance(found, (tuple, list)) and found else found

    return first, module


def _as_parameters(z: Tensor, module: nn.Module | None) -> Tensor:
    """z in the dtype of the module's parameters where that loses nothing."""
    parameters = () if module is None else module.parameters()
    like = next((p for p in parameters if p.is_floating_point()), None)
    if like is None:
        return z
    if like.device != z.device:
        raise ValueError(
            f"z must be on the decoder's device, got z on {z.device} and parameters on "
            f"{like.device}; move it with z.to({str(like.device)!r})"
        )
    if torch.promote_types(z.dtype, like.dtype) != like.dtype:
        raise ValueError(
            f"z must have the decoder's precision, got {z.dtype} for parameters of {like.dtype}; "
            "convert one of them, for example with decoder.to(z.dtype)"
        )
    return z.to(like.dtype)


class _WrittenBytes(TorchDispatchMode):
    """Adds up the memory that operators write; views write none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and _storage(t) not in known:
                self.total += t.nbytes
        return result


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _written(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, int]:
    with _WrittenBytes() as written:
        x_hat = function(z)
    return x_hat, written.total


def _check_output(x_hat: Any, z: Tensor) -> None:
    if not isinstance(x_hat, Tensor):
        raise TypeError(
            f"decoder must return a tensor x_hat [B, ...], or a tuple that starts with one, got "
            f"{type(x_hat).__name__}; wrap it in a function that picks the tensor"
        )
    if not x_hat.is_floating_point():
        raise TypeError(
            f"decoder must return floating point, got {x_hat.dtype}, which has no derivative; "
            "return the values before rounding or argmax"
        )
    if x_hat.dim() < 2 or len(x_hat) != len(z) or not x_hat.numel():
        raise ValueError(
            f"decoder must return x_hat [B, ...] with one row or image for each z, got "
            f"{list(x_hat.shape)} for z {list(z.shape)}; keep the batch axis first"
        )


def _check_independent(alone: Tensor, beside: Tensor) -> None:
    """Sample 0 decoded alone and beside another must agree up to rounding.

    All samples are pushed forward at once, so a decoder that mixes them would give sums of
    derivatives. Rounding differs between batch sizes, by far less than the square root of eps.
    """
    scale = float(alone.abs().max().nan_to_num())
    tolerance = torch.finfo(alone.dtype).eps ** 0.5 * max(scale, torch.finfo(alone.dtype).tiny)
    if not torch.allclose(alone, beside, rtol=0, atol=tolerance, equal_nan=True):
        raise ValueError(
            "decoder must give a sample the same output whatever it is batched with, got another "
            "one beside a second sample; batch norm without running statistics and noise drawn "
            "inside the decoder do that, take them out"
        )
