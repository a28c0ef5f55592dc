"""Objectives with one factor for each feature: diag-i, and a learned variance for each feature.

Bytes and launches, of N elements of s bytes each, forward with gradient:

- diag-i of up to HELD_ROWS samples: one launch, 3 N s: a program owns a column tile, whose
  residuals stay in registers between the sums and the gradients.
- diag-i of more: two launches, sums of chunks of rows, then gradients: 5 N s, less what the cache
  holds.
- known variance: 3 N s in one launch, and for more than one chunk of rows a second one over the
  features alone, for logvar's gradient.

Where F is not a multiple of 16 a column tile's rows start anywhere, and loads are of one element a
thread, next to its neighbours'.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import blocks, kl, reductions, terms

# What a launch does: launch.MODES.
WHOLE = tl.constexpr(4)  # all samples of a tile: sums, then gradients
CHUNKS = tl.constexpr(5)  # the sums of a chunk of rows; with a known variance also its gradients
REST = tl.constexpr(6)  # what follows from the chunks' sums


@triton.jit
def tile_mask(row0, end, here, HOW: tl.constexpr):
    row = tl.arange(0, HOW.rows)
    return (row < tl.minimum(end - row0, HOW.rows).to(tl.int32))[:, None] & here[None, :]


@triton.jit
def uneven(weight, unit, row0, end, HOW: tl.constexpr):
    row = row0 + tl.arange(0, HOW.rows)
    return row_weights(weight, unit, row, row < end, HOW)[:, None]


@triton.jit
def row_weights(weight, unit, row, mask, HOW: tl.constexpr):
    return reductions.row_weight(weight, unit, row, mask, HOW.reduction).to(HOW.C)


@triton.jit
def columns_kernel(
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
    piece: tl.int64,  # samples of a chunk
    pieces: tl.int64,  # chunks
    d: tl.int64,
    kl_programs: tl.int64,
    columns,  # workspace of HOW.C: [chunks, F] sums of q, and with uneven weights of w q
    tiles: tl.int64,
    HOW: tl.constexpr,
):
    """Programs: those of the KL, then one for each chunk of rows and tile of columns."""
    program = tl.program_id(0) - kl_programs
    beta = reductions.beta_of(weight, beta_number)
    if program < 0:
        if latent.mu is not None:
            kl.kl_rows(latent, out.workspace + 2 * tiles, weight, unit, beta, B, d, HOW)
    else:
        chunk = program // tiles
        tile = program - chunk * tiles
        column = tl.arange(0, HOW.block)
        f = tile.to(tl.int64) * HOW.block + column
        here = f < F
        narrow = F.to(tl.int32)
        if HOW.aligned:
            narrow = tl.multiple_of(narrow, blocks.EDGE)
            here = column < tl.multiple_of(
                tl.minimum(F - tile.to(tl.int64) * HOW.block, HOW.block).to(tl.int32), blocks.EDGE
            )
        lane = tl.arange(0, HOW.rows)[:, None] * narrow + column[None, :]
        start = chunk.to(tl.int64) * piece
        end = tl.minimum(start + piece, B)
        corner = tile.to(tl.int64) * HOW.block
        count = tl.cdiv(end - start, HOW.rows)
        inverse = 1.0 / L.to(HOW.C)
        even = row_weights(weight, unit, start, start < B, HOW)
        raw = tl.full((HOW.block,), 0.0, HOW.C)
        if data.logvar is not None:
            raw = tl.load(data.logvar + f, here, 0.0).to(HOW.C)

        # ---- sums of q down the columns
        q = tl.full((HOW.block,), 0.0, HOW.C)
        wq = q
        x = tl.full((HOW.rows, HOW.block), 0.0, HOW.C)
        r, slope = x, x
        if HOW.mode == REST:
            for c in range(pieces):
                q += tl.load(columns + c * F + f, here, 0.0)
                if HOW.uneven:
                    wq += tl.load(columns + (pieces + c) * F + f, here, 0.0)
        elif HOW.keep > 0:
            mask = tile_mask(start, end, here, HOW)
            x = blocks.load(data.x, start * F + corner, lane, mask, HOW)
            r, slope = blocks.residual(data, x, start * F + corner, lane, mask, HOW)
            q = tl.sum(r * r, 0)
            if HOW.uneven:
                wq = tl.sum(uneven(weight, unit, start, end, HOW) * (r * r), 0)
        else:
            sums = tl.full((HOW.rows, HOW.block), 0.0, HOW.C)
            weighted = tl.full((HOW.rows, HOW.block), 0.0, HOW.C)
            for i in range(count):
                row0 = start + i * HOW.rows
                mask = tile_mask(row0, end, here, HOW)
                if HOW.objective == terms.GAUSSIAN:
                    _, a, _ = terms.element(raw, raw, HOW.objective, HOW.eps, HOW.x_logvar_min)
                    w = even
                    if HOW.uneven:
                        w = uneven(weight, unit, row0, end, HOW)
                    factor = a[None, :] * (w * inverse)
                    squares = blocks.write(data, factor, row0 * F + corner, lane, mask, L, N, HOW)
                else:
                    squares = blocks.squares(data, row0 * F + corner, lane, mask, L, N, HOW)
                sums += squares
                if HOW.uneven:
                    weighted += uneven(weight, unit, row0, end, HOW) * squares
            q = tl.sum(sums, 0) * inverse
            if HOW.uneven:
                wq = tl.sum(weighted, 0) * inverse
        if HOW.mode == CHUNKS:
            tl.store(columns + chunk * F + f, q, here)
            if HOW.uneven:
                tl.store(columns + (pieces + chunk) * F + f, wq, here)
        else:
            # ---- what follows for the columns
            samples = B.to(HOW.C)
            mean = q / samples
            v = raw if HOW.objective == terms.GAUSSIAN else mean
            value, a, change = terms.element(mean, v, HOW.objective, HOW.eps, HOW.x_logvar_min)
            weights = even * samples
            if HOW.uneven:
                weights = even * 0.0
                for i in range(tl.cdiv(B, HOW.finish_rows)):
                    row = i * HOW.finish_rows + tl.arange(0, HOW.finish_rows)
                    weights += tl.sum(row_weights(weight, unit, row, row < B, HOW))
            if chunk == 0:
                total = tl.sum(tl.where(here, value, 0.0).to(tl.float64))
                features = tl.sum(here.to(tl.float64))
                tl.store(out.workspace + tile, tl.sum(q.to(tl.float64)) * L)
                nll = B.to(tl.float64) * terms.element_value(total, features, HOW.objective)
                tl.store(out.workspace + tiles + tile, nll)
                if HOW.objective == terms.GAUSSIAN:
                    g = 0.5 * weights * change
                    if HOW.uneven:
                        g = tl.where(raw < HOW.x_logvar_min, 0.0, 0.5 * (weights - a * wq))
                    blocks.store(data.grad_logvar, g, corner, column, here)
                else:
                    if out.statistics is not None:
                        kind = out.statistics.dtype.element_ty
                        tl.store(out.statistics + 3 * B + f, mean.to(kind), here)
                    reductions.track(out, f, mean, here, HOW.momentum)
            # ---- the gradients, where they had to wait
            if HOW.gradients and HOW.objective != terms.GAUSSIAN:
                shared = a * 0.0
                if HOW.uneven:  # uneven upstream weights also move the shared estimate
                    shared = -a * (a * (wq - weights * v)) / samples
                if HOW.keep > 0:
                    w = even
                    if HOW.uneven:
                        w = uneven(weight, unit, start, end, HOW)
                    mask = tile_mask(start, end, here, HOW)
                    factor = (a[None, :] * w + shared[None, :]) * r
                    blocks.store(data.grad_x_hat, factor * slope, start * F + corner, lane, mask)
                    blocks.store(data.grad_x, -factor, start * F + corner, lane, mask)
                else:
                    for i in range(count):  # backwards: what was read last is still in the cache
                        row0 = start + (count - 1 - i) * HOW.rows
                        mask = tile_mask(row0, end, here, HOW)
                        w = even
                        if HOW.uneven:
                            w = uneven(weight, unit, row0, end, HOW)
                        factor = (a[None, :] * w + shared[None, :]) * inverse
                        blocks.write(data, factor, row0 * F + corner, lane, mask, L, N, HOW)
    if HOW.mode != CHUNKS:
        if reductions.arrive(out.counter, tl.num_programs(0)):
            reductions.finish(
                out, weight, unit, data.logvar, data.grad_logvar, beta, B, F, L, tiles, 1, HOW
            )
