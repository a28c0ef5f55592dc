"""From partial sums to the value: in float64, in a fixed order, by the last program that arrives.

The programs of a launch leave partial sums in a workspace of float64 and count themselves in an
integer; whoever finds all the others done adds the sums up, so that no second launch is needed and
the bits do not depend on who that was.  Workspace: ``square`` and ``nll``, one number for each of
``parts`` programs, then the KL and the factor of every sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import terms

# vaekern.ops.REDUCTIONS
NONE = tl.constexpr(3)
DIMS = tl.constexpr(4)

# How a known variance lies over x: launch.SPREADS.
SCALAR = tl.constexpr(0)
SAMPLE = tl.constexpr(1)
FEATURE = tl.constexpr(2)

# Over what the partial sums of a launch are: launch.GROUPS.
ROW = tl.constexpr(0)
ELEMENT = tl.constexpr(1)
COLUMN = tl.constexpr(2)


class Out(NamedTuple):
    """What a launch leaves behind besides gradients; absent tensors are None."""

    value: Any
    statistics: Any
    last: Any
    running: Any
    workspace: Any
    counter: Any


class Weight(NamedTuple):
    """Of each sample's term in the objective: the upstream gradient (None: 1), one number or one
    for each sample, and beta, one number on the device or None."""

    upstream: Any
    beta: Any


@triton.jit
def row_weight(weight, unit, row, mask, REDUCTION: tl.constexpr):
    """d objective / d term of the samples ``row``, before beta; unit: what the reduction makes of
    a term of 1."""
    if weight.upstream is None:
        return tl.where(mask, tl.zeros((), tl.float64) + unit, 0.0)
    elif REDUCTION == NONE:
        return unit * tl.load(weight.upstream + row, mask, 0.0).to(tl.float64)
    else:
        return tl.where(mask, unit * tl.load(weight.upstream).to(tl.float64), 0.0)


@triton.jit
def beta_of(weight, beta_number):
    if weight.beta is None:
        return tl.zeros((), tl.float64) + beta_number
    else:
        return tl.load(weight.beta).to(tl.float64)


@triton.jit
def arrive(counter, programs):
    """Is this the last program?  What the others stored is visible to it then."""
    tl.debug_barrier()  # all of this program's stores come before its count
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1


@triton.jit
def partial(pointer, mask):
    """Another program's number: past the first-level cache, which does not see its stores."""
    return tl.load(pointer, mask, 0.0, cache_modifier=".cg")


@triton.jit
def track(out, place, v, mask, MOMENTUM: tl.constexpr):
    """last <- v; running <- v while it is 0, then its moving average; only where v is finite."""
    if out.last is not None:
        kind = out.last.dtype.element_ty
        v = v.to(kind)
        good = mask & (v - v == 0.0)
        before = tl.load(out.running + place, good, 0.0)
        moved = tl.where(before > 0.0, before + MOMENTUM * (v - before), v)
        tl.store(out.running + place, moved.to(kind), good)
        tl.store(out.last + place, v, good)


@triton.jit
def total_of(workspace, count, ROWS: tl.constexpr):
    """The sum of ``count`` numbers."""
    sums = tl.zeros((ROWS,), tl.float64)
    for i in range(tl.cdiv(count, ROWS)):
        place = i * ROWS + tl.arange(0, ROWS)
        sums += partial(workspace + place, place < count)
    return tl.sum(sums)


@triton.jit
def row_sum(workspace, row, mask, pieces):
    """The sum of each sample's pieces."""
    s = tl.zeros(row.shape, tl.float64)
    for piece in range(pieces):
        s += partial(workspace + row * pieces + piece, mask)
    return s


@triton.jit
def finish(out, weight, unit, logvar, grad_logvar, beta, B, F, L, parts, pieces, HOW: tl.constexpr):
    """Value, statistics, the variance's buffers, and what every sample adds to the gradient of a
    known variance or needs as its gradients' factor.

    F: the features, or the latent dimensions where there is no reconstruction term; pieces: partial
    sums of each sample.
    """
    REDUCTION: tl.constexpr = HOW.reduction
    OBJECTIVE: tl.constexpr = HOW.objective
    ROWS: tl.constexpr = HOW.finish_rows
    D = F.to(tl.float64)
    samples = B.to(tl.float64)
    square = out.workspace
    nll = square + parts
    kl = nll + parts

    mean = samples * 0.0  # of q over everything
    v = mean
    spread_nll = mean  # a column objective's value, spread evenly over the samples
    if OBJECTIVE != 0:
        mean = total_of(square, parts, ROWS) / (L * samples * D)
    if HOW.group == COLUMN:
        spread_nll = total_of(nll, parts, ROWS) / samples
    if OBJECTIVE == terms.ISO_I:
        v = tl.where(mean < HOW.tiny, HOW.tiny, mean)
    shared = mean * 0.0
    if (OBJECTIVE == terms.ISO_I) and (REDUCTION == NONE) and HOW.factors:
        # uneven upstream weights also move the shared estimate; even ones cancel exactly
        weights = tl.zeros((ROWS,), tl.float64)
        weighted = tl.zeros((ROWS,), tl.float64)
        for i in range(tl.cdiv(B, ROWS)):
            row = i * ROWS + tl.arange(0, ROWS)
            w = row_weight(weight, unit, row, row < B, REDUCTION)
            weights += w
            weighted += w * row_sum(square, row, row < B, pieces) / L
        shared = (tl.sum(weights) - tl.sum(weighted) / (D * v)) / samples

    total = tl.zeros((ROWS,), tl.float64)
    slope = tl.zeros((ROWS,), tl.float64)
    for i in range(tl.cdiv(B, ROWS)):
        row = i * ROWS + tl.arange(0, ROWS)
        mask = row < B
        s = tl.zeros((ROWS,), tl.float64)
        value = tl.zeros((ROWS,), tl.float64)
        divergence = tl.zeros((ROWS,), tl.float64)
        if OBJECTIVE == 0:
            pass
        elif HOW.group == COLUMN:
            s += mean * D
            value += spread_nll
        else:
            s += row_sum(square, row, mask, pieces) / L
            known = tl.zeros((ROWS,), tl.float64)
            if HOW.group == ELEMENT:
                value = terms.element_value(row_sum(nll, row, mask, pieces), D, OBJECTIVE)
            else:
                if OBJECTIVE == terms.GAUSSIAN:
                    place = row if HOW.spread == SAMPLE else row * 0
                    raw = tl.load(logvar + place, mask, 0.0).to(tl.float64)
                    known = terms.bounded(raw, HOW.x_logvar_min)
                    if grad_logvar is not None:
                        w = row_weight(weight, unit, row, mask, REDUCTION)
                        g = 0.5 * w * (D - s * tl.exp(-known))
                        g = tl.where(mask & (raw >= HOW.x_logvar_min), g, 0.0)
                        slope += g
                        if HOW.spread == SAMPLE:
                            tl.store(
                                grad_logvar + row,
                                g.to(HOW.C).to(grad_logvar.dtype.element_ty),
                                mask,
                            )
                # below the guard there is no residual to speak of: every term is the mean
                at = s
                if OBJECTIVE == terms.ISO_I:
                    at = tl.where(mean < HOW.tiny, D * v, s)
                value = terms.row_value(at, known, v, D, OBJECTIVE, HOW.eps)
                if HOW.factors:
                    w = row_weight(weight, unit, row, mask, REDUCTION)
                    if OBJECTIVE == terms.ISO_I:  # and w / v may overflow
                        factor = tl.where(mean < HOW.tiny, 0.0, (w + shared) / v)
                    else:
                        factor = w * terms.row_factor(s, known, D, OBJECTIVE, HOW.eps)
                    tl.store(kl + B + row, factor / L, mask)
        if HOW.has_kl:
            divergence += partial(kl + row, mask)
        term = tl.where(mask, value, 0.0)
        if HOW.has_kl:
            term += beta * divergence
        total += term
        if out.value is not None:
            if REDUCTION == NONE:
                tl.store(out.value + row, term.to(out.value.dtype.element_ty), mask)
        if out.statistics is not None:
            kind = out.statistics.dtype.element_ty
            tl.store(out.statistics + row, value.to(kind), mask)
            tl.store(out.statistics + B + row, s.to(kind), mask)
            tl.store(out.statistics + 2 * B + row, divergence.to(kind), mask)
    if out.value is not None:
        if REDUCTION != NONE:
            tl.store(out.value, (tl.sum(total) * unit).to(out.value.dtype.element_ty))
    if (OBJECTIVE != 0) and (OBJECTIVE != terms.DIAG_I):  # whose columns did this themselves
        if grad_logvar is not None:
            if (HOW.group == ROW) and (HOW.spread != SAMPLE):
                tl.store(grad_logvar, tl.sum(slope).to(HOW.C).to(grad_logvar.dtype.element_ty))
        if out.statistics is not None:
            tl.store(out.statistics + 3 * B, mean.to(out.statistics.dtype.element_ty))
        track(out, 0, mean, mean == mean, HOW.momentum)
    tl.store(out.counter, 0)


@triton.jit
def scale_kernel(
    a, b, c, d, na: tl.int64, nb: tl.int64, nc: tl.int64, nd: tl.int64, factor,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients times a number that the device holds, in place; nothing moves where it is 1."""
    f = tl.load(factor)
    if f != 1.0:
        if a is not None:
            scale_one(a, na, f, BLOCK)
        if b is not None:
            scale_one(b, nb, f, BLOCK)
        if c is not None:
            scale_one(c, nc, f, BLOCK)
        if d is not None:
            scale_one(d, nd, f, BLOCK)


@triton.jit
def scale_one(p, n, f, BLOCK: tl.constexpr):
    kind = p.dtype.element_ty
    for at in range(tl.program_id(0).to(tl.int64) * BLOCK, n // BLOCK * BLOCK,
                    tl.num_programs(0).to(tl.int64) * BLOCK):  # fmt: skip
        place = tl.multiple_of(at, BLOCK) + tl.arange(0, BLOCK)
        tl.store(p + place, tl.load(p + place) * f.to(kind))
    if tl.program_id(0) == 0:
        place = n // BLOCK * BLOCK + tl.arange(0, BLOCK)
        tl.store(p + place, tl.load(p + place, place < n) * f.to(kind), place < n)
