"""The gate before the clock: a variant is right in value and in every gradient, or is not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# A float32 operation is off by at most u = 2^-24 of its result.  A value here is a chain of at most
# some twenty of them per element (difference, square, exp or log at 2 u each, products) followed by
# sums, whose error grows by u per level of the summation tree: at most 23 levels for the 6.3 10^6
# elements of the largest case.  20 + 23 < 64.  This is the worst case, not the typical one: another
# machine's order of summation stays inside, a dropped factor, row or tail does not.
TOLERANCE = 64 * 2.0**-24


Outputs = Tensor | Sequence[Tensor]


class WrongResult(AssertionError):
    """A variant disagrees with the float64 reference: its time would mean nothing."""


def check(
    variants: Mapping[str, Callable[[], Outputs]],
    truth: Callable[..., Outputs],
    inputs: Mapping[str, Tensor],
    upstream: Sequence[Tensor] | None = None,
    scales: Mapping[str, float] | None = None,
) -> None:
    """Hold each variant's outputs and gradients against ``truth`` of the inputs in float64.

    variants: name -> forward() of the tensors in ``inputs``, which it closes over.
    truth: truth(**inputs) -> outputs, differentiable.
    upstream: the outputs' gradients; None for scalars.
    scales: by name ("output 0", or an input for its gradient): the sum of the absolute terms that
        the entry adds up, where these cancel; it is added to the entry's own size, and the error
        counts relative to both.  Default: the largest entry of the array.
    """
    wide = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in inputs.items()}
    expected = _evaluate(lambda: truth(**wide), wide, upstream)
    for variant, forward in variants.items():
        for name, found in _evaluate(forward, inputs, upstream).items():
            want = expected[name]
            if found.shape != want.shape:
                raise WrongResult(
                    f"{variant}: {name} has shape {list(found.shape)}, not {list(want.shape)}"
                )
            scale = (scales or {}).get(name, float(want.abs().max()))
            # the smallest normal number: below it float32 has no relative accuracy
            allowed = TOLERANCE * (want.abs() + scale) + torch.finfo(torch.float32).tiny
            error = (found.double() - want).abs()
            if not bool((error <= allowed).all()):  # NaN is wrong too
                raise WrongResult(
                    f"{variant}: {name} is off by {float((error / allowed).max()):.3g} times what "
                    "rounding explains; nothing was timed"
                )


def _evaluate(
    forward: Callable[[], Outputs],
    inputs: Mapping[str, Tensor],
    upstream: Sequence[Tensor] | None,
) -> dict[str, Tensor]:
    leaves = {name: t for name, t in inputs.items() if t.requires_grad}
    found = forward()
    outputs = [found] if isinstance(found, Tensor) else list(found)
    given = None
    if upstream is not None:
        given = [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), given)
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return results | dict(zip(leaves, gradients, strict=True))
