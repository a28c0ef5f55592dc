"""Objectives with one factor for each sample, or one for all: a known variance of that kind, iso-d
and iso-i; and the KL alone.

Bytes and launches, of N elements of s bytes each, forward with gradient:

- known variance: one launch, 3 N s (reads x_hat and x, writes the gradient).
- iso-d: one launch, 3 N s while a row's residuals stay in registers; what is longer than KEEP is
  read again from the L2 cache.  With few long rows, which would leave multiprocessors idle, two
  launches: sums, then gradients, and 5 N s where N does not fit the cache.
- iso-i: two launches and 5 N s, for every gradient waits for the total.

The KL runs in the first launch's own programs.  The last program to arrive sums up (reductions.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import blocks, kl, reductions, terms

# What a launch does with the rows: launch.MODES.
SUMS = tl.constexpr(0)  # sum r^2
KNOWN = tl.constexpr(1)  # gradients with a factor that is known, summing r^2 on the way
HELD = tl.constexpr(2)  # sum r^2 over the whole row, then its gradients
FACTORS = tl.constexpr(3)  # gradients with the factors of an earlier launch


@triton.jit
def sums(data, start, end, L, N, HOW: tl.constexpr):
    """sum r^2 over the flat range [start, end)."""
    first, last = blocks.body(start, end)
    lane = tl.arange(0, HOW.block)
    total = tl.full((HOW.block,), 0.0, HOW.C)
    for i in range(tl.cdiv(last - first, HOW.block)):
        at = tl.multiple_of(first + i * HOW.block, blocks.EDGE)
        mask = blocks.within(lane, at, last, HOW.block)
        total += blocks.squares(data, at, lane, mask, L, N, HOW)
    s = tl.sum(total.to(tl.float64))
    if not HOW.aligned:
        at, edge, mask = blocks.edges(start, end)
        s += tl.sum(blocks.squares(data, at, edge, mask, L, N, HOW).to(tl.float64))
    return s


@triton.jit
def gradients(data, factor, start, end, L, N, HOW: tl.constexpr):
    """The gradients of [start, end), and sum r^2 over it.  From the end to the start: what an
    earlier pass read last is still in the cache."""
    first, last = blocks.body(start, end)
    lane = tl.arange(0, HOW.block)
    total = tl.full((HOW.block,), 0.0, HOW.C)
    count = tl.cdiv(last - first, HOW.block)
    for i in range(count):
        at = tl.multiple_of(first + (count - 1 - i) * HOW.block, blocks.EDGE)
        mask = blocks.within(lane, at, last, HOW.block)
        total += blocks.write(data, factor, at, lane, mask, L, N, HOW)
    s = tl.sum(total.to(tl.float64))
    if not HOW.aligned:
        at, edge, mask = blocks.edges(start, end)
        s += tl.sum(blocks.write(data, factor, at, edge, mask, L, N, HOW).to(tl.float64))
    return s


@triton.jit
def held(data, weight, start, end, L, N, F, HOW: tl.constexpr):
    """A whole row: its sum, its factor, its gradients.  The residuals of its first HOW.keep
    elements never leave the registers; the rest comes from the cache the second time."""
    first, last = blocks.body(start, end)
    kept = tl.minimum(first + HOW.keep, last)
    lane = tl.arange(0, HOW.keep)
    mask = blocks.within(lane, first, kept, HOW.keep)
    x = blocks.load(data.x, first, lane, mask, HOW)
    r, slope = blocks.residual(data, x, first, lane, mask, HOW)
    s = tl.sum((r * r).to(tl.float64))
    if not HOW.aligned:
        at, edge, ends = blocks.edges(start, tl.minimum(kept, end) if HOW.longer else end)
        s += tl.sum(blocks.squares(data, at, edge, ends, L, N, HOW).to(tl.float64))
    if HOW.longer:
        s += sums(data, kept, end, L, N, HOW)
    factor = row_factor(weight, s, L, F, HOW)
    if HOW.longer:
        gradients(data, factor, kept, end, L, N, HOW)
    if not HOW.aligned:
        blocks.write(data, factor, at, edge, ends, L, N, HOW)
    blocks.store(data.grad_x_hat, factor * r * slope, first, lane, mask)
    blocks.store(data.grad_x, -factor * r, first, lane, mask)
    return s


@triton.jit
def row_factor(weight, s, L, F, HOW: tl.constexpr):
    inverse = 1.0 / L.to(HOW.C)
    s = s.to(HOW.C) * inverse
    return weight * terms.row_factor(s, s, F.to(HOW.C), HOW.objective, HOW.eps) * inverse


@triton.jit
def rows_kernel(
    data,
    latent,
    out,
    weight,
    unit: tl.float64,
    beta_number: tl.float64,
    B: tl.int64,
    F: tl.int64,
    L: tl.int64,
    N: tl.int64,  # B * F
    piece: tl.int64,  # elements of a row for each program
    pieces: tl.int64,
    d: tl.int64,
    kl_programs: tl.int64,
    HOW: tl.constexpr,
):
    """Programs: those of the KL, then ``pieces`` for each sample."""
    program = tl.program_id(0) - kl_programs
    beta = reductions.beta_of(weight, beta_number)
    parts = B * pieces
    if program < 0:
        if latent.mu is not None:
            kl.kl_rows(latent, out.workspace + 2 * parts, weight, unit, beta, B, d, HOW)
    else:
        if HOW.objective != 0:
            b = program // pieces
            start = b * F + (program - b * pieces) * piece
            end = tl.minimum(start + piece, (b + 1) * F)
            if HOW.mode == SUMS:
                s = sums(data, start, end, L, N, HOW)
            else:
                w = reductions.row_weight(weight, unit, b, True, HOW.reduction).to(HOW.C)
                if HOW.mode == KNOWN:
                    place = b if HOW.spread == reductions.SAMPLE else b * 0
                    raw = tl.load(data.logvar + place).to(HOW.C)
                    a = terms.row_factor(
                        w, terms.bounded(raw, HOW.x_logvar_min), w, HOW.objective, HOW.eps
                    )
                    s = gradients(data, w * a / L.to(HOW.C), start, end, L, N, HOW)
                elif HOW.mode == FACTORS:
                    a = tl.load(out.workspace + 2 * parts + B + b)
                    s = gradients(data, a.to(HOW.C), start, end, L, N, HOW)
                elif HOW.keep > 0:
                    s = held(data, w, start, end, L, N, F, HOW)
                else:
                    s = sums(data, start, end, L, N, HOW)
                    gradients(data, row_factor(w, s, L, F, HOW), start, end, L, N, HOW)
            tl.store(out.workspace + program, s)
    if HOW.mode != FACTORS:
        if reductions.arrive(out.counter, tl.num_programs(0)):
            reductions.finish(
                out, weight, unit, data.logvar, data.grad_logvar, beta, B,
                F if HOW.objective != 0 else d, L, parts, pieces, HOW,
            )  # fmt: skip
