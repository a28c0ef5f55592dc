"""One wording per mistake: the argument, what was wanted, what came, and the remedy.

The functions here run before anything is computed.  Those on the hot path are a few attribute
reads; the sentences are put together only once something is wrong.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def shape_text(t: Tensor) -> str:
    return str(list(t.shape))


def option(name: str, value: Any, known: Iterable[Any]) -> None:
    """``value`` must be one of ``known``."""
    known = tuple(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), [str(k) for k in known if k is not None], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{hint}")


def what(value: object) -> str:
    return f"a tensor {shape_text(value)}" if isinstance(value, Tensor) else repr(value)


def number(name: str, value: object, remedy: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}; {remedy}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def positive(name: str, value: Any, remedy: str, smallest: float = 0.0) -> None:
    if not smallest < number(name, value, remedy) < math.inf:
        bound = f"above {smallest:g}" if smallest else "positive"
        raise ValueError(f"{name} must be {bound} and finite, got {value!r}; {remedy}")


def variance(value: object) -> Tensor:
    """sigma^2 as a detached float64 tensor."""
    if isinstance(value, Tensor):
        found = value.detach().to(torch.float64) if value.dtype in FLOATS else None
    else:
        found = torch.tensor(number("variance", value, "pass sigma^2"), dtype=torch.float64)
    if found is None or not bool(((found > 0) & found.isfinite()).all()):
        raise ValueError(
            f"variance must be positive and finite, got {value!r}; it is sigma^2, no log"
        )
    return found


def sample_shape(name: str, value: Any) -> torch.Size | None:
    """One sample's shape: a positive number or a sequence of them."""
    if value is None:
        return None
    sizes = (value,) if isinstance(value, int) else value
    ok = isinstance(sizes, (tuple, list)) and all(
        isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes
    )
    if not ok:
        raise ValueError(
            f"{name} must be one sample's shape, such as (1, 28, 28), got {value!r}; "
            "pass x.shape[1:]"
        )
    return torch.Size(sizes)


def beta(value: object) -> float:
    found = number("beta", value, "pass a float or a 0-d tensor")
    if not 0 <= found < math.inf:
        raise ValueError(f"beta must be finite and not negative, got {value!r}; 1 is the ELBO")
    return found


#: eps keeps log(0 + eps) and 1 / (0 + eps) finite in float32.
SMALLEST_EPS = 1e-30


def eps(value: object) -> float:
    positive("eps", value, "it keeps zero residuals finite", SMALLEST_EPS)
    return float(value)  # type: ignore[arg-type]


def beta_tensor(value: Tensor, mu: Tensor) -> Tensor:
    if value.numel() != 1 or value.dtype not in FLOATS:
        raise ValueError(
            f"beta must be a number or a 0-d floating-point tensor, got {shape_text(value)} of "
            f"{value.dtype}; pass e.g. torch.tensor(0.5)"
        )
    if value.requires_grad:
        raise ValueError(
            "beta must not require a gradient, got a tensor that does; pass beta.detach()"
        )
    if value.device != mu.device:
        raise ValueError(
            f"beta must be on the device of mu, got {value.device} and {mu.device}; "
            "move it with beta.to(mu.device)"
        )
    return value


def process_group(value: object) -> None:
    if value is None or value is False:
        return
    available = torch.distributed.is_available()
    if not available or not isinstance(value, torch.distributed.ProcessGroup):
        raise TypeError(
            f"process_group must be None, False or a torch.distributed.ProcessGroup, got {value!r};"
            " pass what torch.distributed.new_group returned to its members, or mesh.get_group()"
        )


def clamp(name: str, bounds: object, unbounded: float) -> tuple[float, float]:
    """(lo, hi) with lo < hi, or None for no bounds."""
    if bounds is None:
        return -unbounded, unbounded
    if (
        not isinstance(bounds, (tuple, list))
        or len(bounds) != 2
        or not all(isinstance(v, (int, float)) for v in bounds)
        or not bounds[0] < bounds[1]
    ):
        raise ValueError(f"{name} must be (lo, hi) with lo < hi, got {bounds!r}; e.g. (-30, 20)")
    return max(float(bounds[0]), -unbounded), min(float(bounds[1]), unbounded)


def not_floating(name: str, t: Any) -> NoReturn:
    """Explain why ``t`` is not a tensor that the operators take."""
    if not isinstance(t, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(t).__name__}; wrap it with torch.as_tensor"
        )
    raise TypeError(
        f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}; "
        f"convert it with {name}.float()"
    )


def floating(*, required: bool = False, **tensors: Tensor | None) -> None:
    """Real floating-point dense tensors on one device; None is left out unless ``required``."""
    first_name, device = "", None
    for name, t in tensors.items():
        if t is None and not required:
            continue
        if not isinstance(t, Tensor) or t.dtype not in FLOATS:
            not_floating(name, t)
        if t.layout is not torch.strided:
            raise ValueError(
                f"{name} must be a dense tensor, got {t.layout}; convert it with {name}.to_dense()"
            )
        if device is None:
            first_name, device = name, t.device
        elif t.device != device:
            raise ValueError(
                f"{name} must be on the device of {first_name}, got {t.device} and {device}; "
                f"move it with {name}.to({first_name}.device)"
            )


def reconstruction(x_hat: Tensor, x: Tensor) -> None:
    """x_hat [B, ...] or [L, B, ...] beside x [B, ...]."""
    if x.dim() == 0:
        raise ValueError("x must have a batch axis, got a 0-d tensor; add one with x.unsqueeze(0)")
    if x_hat.shape != x.shape and (x_hat.dim() != x.dim() + 1 or x_hat.shape[1:] != x.shape):
        raise ValueError(
            f"x_hat must have the shape of x, with at most one leading axis of posterior samples, "
            f"got x_hat {shape_text(x_hat)} and x {shape_text(x)}; reshape the decoder's output"
        )
    if x_hat.shape[0] == 0 and x_hat.dim() > x.dim():
        raise ValueError(
            f"x_hat must hold at least one posterior sample, got x_hat {shape_text(x_hat)}; "
            "drop the leading axis or draw a sample"
        )
    if x.shape[0] and not x.numel():
        raise ValueError(
            f"x must have at least one feature per sample, got x {shape_text(x)}; "
            "check how the batch was sliced"
        )


def broadcasts(name: str, t: Tensor, to_name: str, to: Tensor) -> None:
    """``t`` must broadcast to the shape of ``to`` without changing it."""
    ok = t.dim() <= to.dim() and all(
        a == b or a == 1 for a, b in zip(reversed(t.shape), reversed(to.shape), strict=False)
    )
    if ok:
        return
    remedy = f"reshape it so that it broadcasts to {to_name}"
    if t.dim() == 1 and len(t) == to.shape[0]:
        ones = ", ".join(["1"] * (to.dim() - 1))
        remedy = f"for one value per sample reshape it to [{len(t)}, {ones}]"
    raise ValueError(
        f"{name} must broadcast to the shape of {to_name}, got {name} {shape_text(t)} and "
        f"{to_name} {shape_text(to)}; {remedy}"
    )


def same_shape(name: str, t: Tensor, to_name: str, to: Tensor) -> None:
    if t.shape != to.shape:
        raise ValueError(
            f"{name} must have the shape of {to_name}, got {name} {shape_text(t)} and "
            f"{to_name} {shape_text(to)}; check which half of the encoder's output each one is"
        )


def latent(mu: Tensor, logvar: Tensor | None, scale_tril: Tensor | None) -> None:
    """The encoder's output: mu with either logvar of its shape or scale_tril [B, d, d]."""
    if mu.dim() == 0:
        raise ValueError(
            "mu must have a batch axis, got a 0-d tensor; add one with mu.unsqueeze(0)"
        )
    if (logvar is None) == (scale_tril is None):
        what = "neither" if logvar is None else "both"
        raise ValueError(
            f"exactly one of logvar and scale_tril must be given, got {what}; pass logvar = "
            "log sigma^2 for a diagonal encoder, scale_tril = L [B, d, d] for a full one"
        )
    if logvar is not None:
        same_shape("logvar", logvar, "mu", mu)
    elif scale_tril is not None and (
        mu.dim() != 2 or scale_tril.shape != (*mu.shape, mu.shape[-1])
    ):
        raise ValueError(
            f"scale_tril must be [B, d, d] beside mu [B, d], got scale_tril "
            f"{shape_text(scale_tril)} and mu {shape_text(mu)}; flatten the latents first"
        )


def same_batch(x: Tensor, mu: Tensor) -> None:
    if x.shape[0] != mu.shape[0]:
        raise ValueError(
            f"x and mu must have the same batch size, got x {shape_text(x)} and mu "
            f"{shape_text(mu)}; x_hat carries posterior samples in a leading axis, mu does not"
        )


def buffers(last: Tensor, x: Tensor) -> None:
    """The module's running variance is updated where the data are."""
    if last.device != x.device:
        raise ValueError(
            f"the loss must be on the device of x, got its buffers on {last.device} and x on "
            f"{x.device}; move it with loss_fn.to(x.device)"
        )


def finite(**tensors: Tensor | None) -> None:
    """The opt-in check of ``check_finite=True``; it synchronises the device."""
    for name, t in tensors.items():
        if t is None:
            continue
        bad = int((~torch.isfinite(t)).sum())
        if bad:
            raise ValueError(
                f"{name} must be finite, got {bad} NaN or infinite of {t.numel()} values; lower "
                "the learning rate, clip gradients, or bound the encoder by logvar_clamp=(-30, 20)"
            )
