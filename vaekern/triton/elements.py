"""Objectives with one factor for each element: a variance known for each element or feature, and
diag-d; also each sample's own value at diag-i's variance.

Bytes and launches, of N elements of s bytes each, forward with gradient: one launch; diag-d 3 N s,
known variance for each element 5 N s (reads x_hat, x and logvar, writes two gradients).
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import blocks, kl, reductions, terms


@triton.jit
def elements_block(data, weight, origin, at, lane, mask, L, N, HOW: tl.constexpr):
    """(2 NLL - constant, sum_l r^2) of a block, whose gradients are written."""
    x = blocks.load(data.x, at, lane, mask, HOW)
    v = x
    if data.logvar is not None:
        v = blocks.load(data.logvar, at - origin, lane, mask, HOW)
    inverse = 1.0 / L.to(HOW.C)
    if HOW.single:
        r, slope = blocks.residual(data, x, at, lane, mask, HOW)
        q = r * r
    else:
        q = blocks.squares(data, at, lane, mask, L, N, HOW)
    mean = q * inverse
    value, a, change = terms.element(mean, v, HOW.objective, HOW.eps, HOW.x_logvar_min)
    if HOW.gradients:
        factor = a * (weight * inverse)
        if HOW.single:
            blocks.store(data.grad_x_hat, factor * r * slope, at, lane, mask)
            blocks.store(data.grad_x, -factor * r, at, lane, mask)
        else:
            blocks.write(data, factor, at, lane, mask, L, N, HOW)
        if HOW.objective == terms.GAUSSIAN:
            blocks.store(data.grad_logvar, (0.5 * weight) * change, at, lane, mask)
    return tl.where(mask, value, 0.0), q


@triton.jit
def elements_kernel(
    data,
    latent,
    out,
    weight,
    unit: tl.float64,
    beta_number: tl.float64,
    B: tl.int64,
    F: tl.int64,
    L: tl.int64,
    N: tl.int64,
    piece: tl.int64,
    pieces: tl.int64,
    d: tl.int64,
    kl_programs: tl.int64,
    HOW: tl.constexpr,
):
    """Programs: as those of rows_kernel."""
    program = tl.program_id(0) - kl_programs
    beta = reductions.beta_of(weight, beta_number)
    parts = B * pieces
    if program < 0:
        if latent.mu is not None:
            kl.kl_rows(latent, out.workspace + 2 * parts, weight, unit, beta, B, d, HOW)
    else:
        b = program // pieces
        start = b * F + (program - b * pieces) * piece
        end = tl.minimum(start + piece, (b + 1) * F)
        origin = b * F if HOW.spread == reductions.FEATURE else b * 0  # of logvar
        w = reductions.row_weight(weight, unit, b, True, HOW.reduction).to(HOW.C)
        first, last = blocks.body(start, end)
        lane = tl.arange(0, HOW.block)
        nll = tl.full((HOW.block,), 0.0, HOW.C)
        square = tl.full((HOW.block,), 0.0, HOW.C)
        for i in range(tl.cdiv(last - first, HOW.block)):
            at = tl.multiple_of(first + i * HOW.block, blocks.EDGE)
            mask = blocks.within(lane, at, last, HOW.block)
            value, q = elements_block(data, w, origin, at, lane, mask, L, N, HOW)
            nll += value
            square += q
        total = tl.sum(nll.to(tl.float64))
        s = tl.sum(square.to(tl.float64))
        if not HOW.aligned:
            at, edge, mask = blocks.edges(start, end)
            value, q = elements_block(data, w, origin, at, edge, mask, L, N, HOW)
            total += tl.sum(value.to(tl.float64))
            s += tl.sum(q.to(tl.float64))
        tl.store(out.workspace + program, s)
        tl.store(out.workspace + parts + program, total)
    if reductions.arrive(out.counter, tl.num_programs(0)):
        reductions.finish(
            out, weight, unit, data.logvar, data.grad_logvar, beta, B, F, L, parts, pieces, HOW
        )
