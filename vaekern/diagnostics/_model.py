"""What diagnostics of both halves take: a VAE, or two functions that do what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaekern import functional
from vaekern.models.posterior import Posterior
from vaekern.models.vae import VAE

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # x to (mu, logvar)


class Model(NamedTuple):
    """What :func:`check_model` found."""

    encode: Encode
    decode: Callable[[Tensor], Any]  # z to the mean of p(x|z), or to a tuple that starts with it
    posterior: Callable[[Tensor], Posterior]
    nll: Callable[[Tensor, Tensor], Tensor]  # x and z to -log p(x|z) [B], in the dtype of x
    device: torch.device | None  # None: wherever x is
    networks: tuple[object, ...]  # to be put in evaluation mode


def check_model(name: str, model: Any) -> Model:
    """A :class:`vaekern.models.VAE` or (encode, decode)."""
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        encode, decode = model
        owners = (getattr(part, "__self__", None) for part in model)
        return Model(
            encode,
            decode,
            lambda x: Posterior(*encoded(encode, x)),
            lambda x, z: _gaussian_nll(decode(z), x),
            None,
            (*model, *owners),
        )
    if isinstance(model, VAE):
        like = next(model.parameters(), None)
        return Model(
            model.encode,
            model.decode,
            model.posterior,
            lambda x, z: model.score(x, z).nll,
            None if like is None else like.device,
            (model,),
        )
    remedy = "pass its stage1" if hasattr(model, "stage1") else "pass vae, or two functions"
    raise TypeError(
        f"{name} must be a VAE or a pair (encode, decode), got {type(model).__name__}; {remedy}"
    )


def _gaussian_nll(found: Any, x: Tensor) -> Tensor:
    """-log p(x|z) of each row, from what decode returned."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(
            f"decode must return (x_hat, x_logvar), got {type(found).__name__}; return the log "
            "sigma^2 of p(x|z) beside its mean"
        )
    x_hat, x_logvar = (each.to(x.dtype) for each in found)
    return functional.gaussian_nll(x_hat, x, x_logvar, reduction="none")


def encoded(encode: Encode, x: Tensor) -> tuple[Tensor, Tensor]:
    """(mu [B, d], logvar [B, d]) of a batch, checked."""
    found = encode(x)
    if (
        not isinstance(found, tuple)
        or len(found) != 2
        or not all(isinstance(t, Tensor) and t.dim() == 2 and len(t) == len(x) for t in found)
        or found[0].shape != found[1].shape
    ):
        raise ValueError(
            f"encode must return (mu, logvar), both [{len(x)}, d], got {_shapes(found)}; pass a "
            "function that returns the two tensors"
        )
    return found


def first(output: Any) -> Tensor:
    """x_hat of a decoder that may predict its variance beside it."""
    return output[0] if isinstance(output, tuple) else output


def _shapes(found: object) -> str:
    if isinstance(found, tuple):
        return "(" + ", ".join(map(_shapes, found)) + ")"
    return str(list(found.shape)) if isinstance(found, Tensor) else type(found).__name__
