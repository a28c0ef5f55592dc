"""One block of elements of a sample, for all its posterior samples; and how a row is cut up.

Every tensor of a launch lies densely in the same order: x as [B, F], x_hat as [L, B, F].  A row of
F features starts anywhere, so blocks are cut where the flat index is a multiple of 16: there, and
with masks that end there, every load is of 128 bits for any F.  The up to 15 elements at either end
of a row are the two halves of one short masked block, left out where 16 divides F (HOW.aligned).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import terms

EDGE = tl.constexpr(16)  # elements: 32 bytes of half precision, 128 of double


class Data(NamedTuple):
    """What the reconstruction term reads and writes; absent tensors are None."""

    x_hat: Any
    x: Any
    logvar: Any
    grad_x_hat: Any
    grad_x: Any
    grad_logvar: Any


@triton.jit
def body(start, end):
    """[first, last): the part of the flat range [start, end) between multiples of 16."""
    first = (start + EDGE - 1) // EDGE * EDGE
    last = end // EDGE * EDGE
    return tl.multiple_of(first, EDGE), tl.multiple_of(tl.maximum(first, last), EDGE)


@triton.jit
def within(lane, at, last, BLOCK: tl.constexpr):
    """The mask of a block at ``at``, in 32 bits and known to change at multiples of 16 only."""
    return lane < tl.multiple_of(tl.minimum(last - at, BLOCK).to(tl.int32), EDGE)


@triton.jit
def edges(start, end):
    """The rest: where its 2 x 16 elements start, their places from there, and their mask."""
    lane = tl.arange(0, 2 * EDGE)
    first, last = body(start, end)
    at = start // EDGE * EDGE
    index = tl.where(lane < EDGE, at + lane, last + lane - EDGE)
    head = (index >= start) & (index < tl.minimum(first, end))
    tail = (index >= last) & (index < end)
    return at, (index - at).to(tl.int32), tl.where(lane < EDGE, head, tail)


@triton.jit
def load(pointer, at, lane, mask, HOW: tl.constexpr):
    return tl.load(pointer + at + lane, mask, 0.0).to(HOW.C)


@triton.jit
def store(pointer, value, at, lane, mask):
    """Where there is something to be stored in."""
    if pointer is not None:
        tl.store(pointer + at + lane, value.to(pointer.dtype.element_ty), mask)


@triton.jit
def residual(data, x, at, lane, mask, HOW: tl.constexpr):
    """r and the activation's slope; r = 0 outside the mask.  ``at`` includes the posterior
    sample's own offset."""
    value, slope = terms.activate(load(data.x_hat, at, lane, mask, HOW), HOW.activation)
    r = value - x
    if HOW.activation != 0:
        r = tl.where(mask, r, 0.0)
    return r, slope


@triton.jit
def squares(data, at, lane, mask, L, N, HOW: tl.constexpr):
    """sum_l r^2, elementwise."""
    x = load(data.x, at, lane, mask, HOW)
    q = tl.zeros(lane.shape, HOW.C)
    for draw in range(1 if HOW.single else L):
        r, _ = residual(data, x, at + draw * N, lane, mask, HOW)
        q += r * r
    return q


@triton.jit
def write(data, factor, at, lane, mask, L, N, HOW: tl.constexpr):
    """Gradients factor r act' of x_hat and - factor sum_l r of x; returns sum_l r^2."""
    x = load(data.x, at, lane, mask, HOW)
    q = tl.zeros(lane.shape, HOW.C)
    total = tl.zeros(lane.shape, HOW.C)
    for draw in range(1 if HOW.single else L):
        r, slope = residual(data, x, at + draw * N, lane, mask, HOW)
        q += r * r
        total += factor * r
        store(data.grad_x_hat, factor * r * slope, at + draw * N, lane, mask)
    store(data.grad_x, -total, at, lane, mask)
    return q
