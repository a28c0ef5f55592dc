"""The Jacobian of a decoder, chunk by chunk in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

from vaekern import _checks
from vaekern.diagnostics._decoders import Decoder, Output, check_decoder
from vaekern.diagnostics._exact import exact_evaluation

Mode = Literal["auto", "forward", "reverse"]

MEMORY_BUDGET = 1 << 28  # bytes
# What a chunk's Jacobian takes up at once: itself, the directions it is put together from, and the
# float64 copy that whoever reads it may make.
COPIES = 4


class _Chunks(NamedTuple):
    samples: int
    directions: int  # pushed through together, of d


def decoder_jacobian(
    decoder: Any,
    z: Tensor,  # [N, d]
    *,
    output: Output = "mean",
    mode: Mode = "auto",
    flatten: bool = True,
    chunk_size: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:  # [N, D, d]
    r"""Derivative of the decoder's output with respect to the latent, for every sample.

    .. math:: J_{n,ij} = \frac{\partial \hat x_i}{\partial z_j}(z_n)

    The decoder is evaluated in evaluation mode and in full float32 (or float64) precision: batch
    norm uses its running statistics, dropout is off, autocast and TF32 are off. Every submodule's
    own training flag and the global settings are put back afterwards, also after an error. The
    derivative is taken in forward mode, of the whole batch in all d directions at once.

    Args:
        decoder: what maps z [B, d] to x_hat [B, ...] or to a tuple that starts with x_hat: a
            module, a model with a ``decode`` such as :class:`vaekern.models.VAE`, or any function.
            Training flags are looked after for modules and their bound methods; in other functions
            call ``.eval()`` yourself. The decoder must treat samples independently.
        z: [N, d] latents. No gradient flows back to z or to parameters: z is detached.
        output: of a model with ``decode``, ``"mean"`` is what ``decode`` returns, the mean of
            p(x|z) after the output activation; ``"raw"`` is what its ``.decoder`` returns, before
            the activation that the loss applies. Any other decoder has one output, ``"mean"``.
        mode: ``"forward"`` costs about d decodings, ``"reverse"`` one backward pass for each of the
            D outputs; ``"auto"`` is forward, and reverse with a warning where an operator of the
            decoder has no forward derivative.
        flatten: [N, D, d] with D all values of one x_hat; ``False`` gives [N, \*shape, d].
        chunk_size: samples decoded at once; by default as many as ``memory_budget`` allows.
        memory_budget: bytes for a chunk's activations and Jacobian. An estimate: all that the
            operators of one sample's forward pass write, measured on the decoder itself, for the
            sample and for each of its d directions, and four times the sample's Jacobian. Where
            one sample exceeds it, its directions are pushed through in parts. The returned Jacobian
            is N D d values whatever the budget: see :func:`decoder_jacobian_chunks`.

    Returns:
        J in the dtype of x_hat, in units of x_hat per unit of z. In memory the samples of one
        direction may lie together (a view of [d, N, D]).

    Raises:
        TypeError: z or x_hat is no floating-point tensor, or the decoder is not callable.
        ValueError: z of another shape or with NaN, on another device or more precise than the
            decoder; x_hat without a batch axis first; samples that depend on one another; an output
            that does not depend on z; options outside their range.
        NotImplementedError: ``mode="forward"`` for a decoder without a forward derivative.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 0.0]])
        >>> decoder_jacobian(lambda z: z @ weight.T, torch.zeros(5, 2))[0].tolist()
        [[1.0, 2.0], [0.0, 3.0], [4.0, 0.0]]

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    section 3.3, where z is the encoder's mean.
    """
    count = len(z) if isinstance(z, Tensor) and z.dim() else 0
    whole: Tensor | None = None
    done = 0
    for J in decoder_jacobian_chunks(
        decoder,
        z,
        output=output,
        mode=mode,
        flatten=flatten,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    ):
        if len(J) == count:
            return J
        if whole is None:
            # the layout of the chunks, so that each is copied in runs as long as they can be
            whole = J.new_empty((J.shape[-1], count, *J.shape[1:-1])).movedim(0, -1)
        whole[done : done + len(J)] = J
        done += len(J)
    assert whole is not None
    return whole


def decoder_jacobian_chunks(
    decoder: Any,
    z: Tensor,  # [N, d]
    *,
    output: Output = "mean",
    mode: Mode = "auto",
    flatten: bool = True,
    chunk_size: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> Iterator[Tensor]:  # of [b, D, d]
    r"""The Jacobians of :func:`decoder_jacobian` in the order of z, a chunk of samples at a time.

    .. math:: J_{n,ij} = \frac{\partial \hat x_i}{\partial z_j}(z_n)

    Arguments are checked at the call. Between chunks the decoder and the global settings are as the
    caller left them.

    Args:
        decoder, z, output, mode, flatten, chunk_size, memory_budget: as there.

    Returns:
        An iterator over J [b, D, d] (or [b, \*shape, d]); read one chunk, drop it, take the next.

    Raises:
        TypeError, ValueError, NotImplementedError: as there.

    Example:
        >>> chunks = decoder_jacobian_chunks(torch.tanh, torch.zeros(5, 2), chunk_size=2)
        >>> [J.shape for J in chunks]
        [torch.Size([2, 2, 2]), torch.Size([2, 2, 2]), torch.Size([1, 2, 2])]

    Source: as there.
    """
    _checks.option("mode", mode, ("auto", "forward", "reverse"))
    if chunk_size is not None:
        _whole("chunk_size", chunk_size, "samples", "leave it out to follow memory_budget")
    _whole("memory_budget", memory_budget, "bytes", f"{MEMORY_BUDGET} by default")
    checked, z = check_decoder(decoder, z, output)
    differentiate = _choose(checked, z[:1], mode)
    chunks = _plan(checked, z, chunk_size, memory_budget)

    def chunk(part: Tensor) -> Tensor:
        with exact_evaluation(checked.module, z.device):
            J = differentiate(checked.function, part, chunks.directions)
        return J.flatten(1, -2) if flatten else J

    def generate() -> Iterator[Tensor]:
        for part in z.split(chunks.samples):
            yield chunk(part)  # and hold on to nothing while the next one is made

    return generate()


def _whole(name: str, value: object, unit: str, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number of {unit}, got {value!r}; {remedy}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}; {remedy}")


def _plan(decoder: Decoder, z: Tensor, chunk_size: int | None, budget: int) -> _Chunks:
    count, d = z.shape
    jacobian = COPIES * decoder.output_bytes * d
    samples = chunk_size or budget // ((1 + d) * decoder.sample_bytes + jacobian)
    samples = min(max(samples, 1), count)
    directions = (budget // samples - jacobian) // decoder.sample_bytes - 1
    return _Chunks(samples, min(max(directions, 1), d))


Differentiate = Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]


def _choose(decoder: Decoder, one: Tensor, mode: Mode) -> Differentiate:
    """Forward or reverse, tried out in one direction of one sample."""
    with exact_evaluation(decoder.module, one.device):
        if mode != "reverse":
            try:
                _forward(decoder.function, one, 1, only=1)
                return _forward
            except _NoForwardDerivative as error:
                if mode == "forward":
                    raise NotImplementedError(
                        f"decoder has no forward derivative ({error}); use mode='reverse', or "
                        "give its autograd.Function jvp, setup_context and generate_vmap_rule"
                    ) from error.__cause__
                reason = str(error)
        _reverse(decoder.function, one, 1, only=1)
    if mode == "auto":
        warnings.warn(
            f"decoder has no forward derivative ({reason}), so its Jacobian takes "
            f"{decoder.shape.numel()} backward passes for every chunk; give its autograd.Function "
            "jvp, setup_context and generate_vmap_rule, or say mode='reverse'",
            stacklevel=3,
        )
    return _reverse


class _NoForwardDerivative(Exception):
    """Some operator of the decoder cannot be differentiated in forward mode."""


# How torch says so, by the kind of operator; it has no type for it.
_UNSUPPORTED = ("setup_context", "does not have vmap support", "data pointer of Tensor")


def _forward(
    function: Callable[[Tensor], Tensor], z: Tensor, directions: int, only: int | None = None
) -> Tensor:  # [b, *shape, d]
    """Push basis vectors of all samples through, ``directions`` of them together."""
    basis = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[:only]

    def push(direction: Tensor) -> Tensor:
        return jvp(function, (z,), (direction.expand_as(z),), strict=True)[1]

    J: Tensor | None = None
    try:
        for start in range(0, len(basis), directions):
            with torch.no_grad():  # parameters record nothing; forward derivatives do not mind
                pushed = vmap(push)(basis[start : start + directions])
            if len(pushed) == len(basis):
                return pushed.movedim(0, -1)
            if J is None:
                J = pushed.new_empty((len(basis), *pushed.shape[1:]))
            J[start : start + directions] = pushed
    except NotImplementedError as error:
        raise _NoForwardDerivative(_first_line(error)) from error
    except RuntimeError as error:
        text = str(error)
        if "independent of the inputs" in text:
            raise ValueError(_INDEPENDENT) from None
        if "random operation" in text:
            raise ValueError(
                "decoder must be deterministic, but it draws random numbers in evaluation mode; "
                "take the noise out or draw it before"
            ) from None
        if any(words in text for words in _UNSUPPORTED):
            raise _NoForwardDerivative(_first_line(error)) from error
        raise
    assert J is not None
    return J.movedim(0, -1)


_INDEPENDENT = (
    "decoder must be differentiable, but its output does not depend on z as far as autograd can "
    "see; take detach(), NumPy, rounding or inference mode out of it"
)


def _reverse(
    function: Callable[[Tensor], Tensor], z: Tensor, directions: int, only: int | None = None
) -> Tensor:  # [b, *shape, d]
    """Pull each output back; one pass serves all samples, as none depends on another."""
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        x_hat = function(z)
        flat = x_hat.flatten(1)
        J = flat.new_empty((flat.shape[1], *z.shape))
        for i in range(flat.shape[1] if only is None else only):
            row = flat[:, i].sum()
            pulled = (
                torch.autograd.grad(row, z, retain_graph=True, allow_unused=True)[0]
                if row.requires_grad
                else None
            )
            if pulled is None:
                raise ValueError(_INDEPENDENT)
            J[i] = pulled
    return J.movedim(0, 1).unflatten(1, x_hat.shape[1:])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")[:200]
