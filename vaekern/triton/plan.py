"""Which launches a call of the loss takes: from shapes and options to kernels and sizes.

A plan depends on no tensor, so it is made once for every case and kept.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import triton.language as tl

from . import columns, elements, rows

#: vaekern.ops.OBJECTIVES, spelled out; 0 is the KL alone.
GAUSSIAN, ISO_I, ISO_D, DIAG_I, DIAG_D = range(1, 6)
REDUCTION_NONE = 3
#: How a known variance lies over x, and over what a launch's partial sums are.
SCALAR, SAMPLE, FEATURE, ELEMENT_SPREAD = range(4)
ROW, ELEMENT, COLUMN = range(3)
#: What a launch does: rows.py, columns.py.
SUMS, KNOWN, HELD, FACTORS, WHOLE, CHUNKS, REST = range(7)


class Tuning(NamedTuple):
    """Sizes, in elements of float32 (half as many of float64).  Tests shrink them, so that small
    tensors take every branch."""

    multiprocessors: int = 132
    block: int = 2048  # of a row, at a time
    longest_piece: int = 32768  # of a row, for one program
    keep: int = 32768  # of a row or column tile, in a program's registers
    held_rows: int = 512  # samples whose column tile may stay in registers
    chunk: int = 256  # samples of a chunk of columns, at least
    chunks: int = 16  # at most
    kl_block: int = 1024
    finish_rows: int = 512


class How(NamedTuple):
    """What is fixed when a kernel is compiled."""

    C: Any
    objective: int
    activation: int
    reduction: int
    eps: float
    logvar_min: float
    logvar_max: float
    x_logvar_min: float
    momentum: float
    tiny: float
    has_kl: bool
    spread: int
    group: int = ROW
    mode: int = SUMS
    single: bool = True  # one posterior sample
    gradients: bool = False
    factors: bool = False  # the last program writes the factors for another launch
    uneven: bool = False  # an upstream gradient for each sample, in columns
    aligned: bool = False  # F is a multiple of 16
    block: int = 16
    rows: int = 1
    keep: int = 0
    longer: bool = False  # rows are longer than keep
    kl_rows: int = 1
    kl_block: int = 16
    finish_rows: int = 16


class Case(NamedTuple):
    """What a plan depends on."""

    wide: bool
    objective: int
    activation: int
    reduction: int
    eps: float
    logvar_min: float
    logvar_max: float
    x_logvar_min: float
    momentum: float
    spread: int
    B: int
    F: int
    L: int
    d: int
    diagonal_kl: bool
    full_kl: bool
    forward: bool
    data_gradients: bool  # of x_hat or x
    x_gradient: bool
    logvar_gradient: bool
    tuning: Tuning


class Step(NamedTuple):
    """One launch."""

    kernel: Any
    programs: int
    warps: int
    piece: int
    pieces: int
    kl_programs: int
    tiles: int
    how: How


class Plan(NamedTuple):
    steps: tuple[Step, ...]
    workspace: int  # numbers of float64
    columns: int  # numbers of the arithmetic's type
    kl_at: int  # where the KL's rows are in the workspace
    keeps_variance: bool  # a later step reads the variance that an earlier one found


def power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def kl_tile(d: int, wide: bool, tuning: Tuning) -> tuple[int, int]:
    """Rows and columns of a tile of latents."""
    size = tuning.kl_block // (2 if wide else 1)
    block = min(power_of_two(d), size)
    return max(size // block, 1), block


def _fitting(c: Case, size: int) -> int:
    """Of ``size`` elements of float32 in registers: double takes two, an activation's slope and
    arithmetic another two or three, a second gradient some."""
    return size // (2 if c.wide else 1) // (2 if c.activation else 1)


def _kept(c: Case) -> int:
    """Elements of a row or column tile that stay in registers."""
    size = _fitting(c, c.tuning.keep)
    return size // (2 if c.activation or c.x_gradient else 1) // (1 if c.F % 16 == 0 else 2)


def _warps(c: Case, kept: int) -> int:
    """For 64 elements of float32 a thread, or half as many where each takes more."""
    each = 32 if c.wide or c.activation or c.x_gradient else 64
    return min(max(power_of_two(kept // (32 * each)), 4), 16)


@functools.lru_cache(4096)
def make(case: Case) -> Plan:
    c, t = case, case.tuning
    kl_rows, kl_block = kl_tile(c.d, c.wide, t)
    kl_programs = ceil_div(c.B, kl_rows) if c.diagonal_kl else 0
    how = How(
        tl.float64 if c.wide else tl.float32,
        *c[1:9],
        tiny=2.2250738585072014e-308 if c.wide else 1.1754943508222875e-38,
        has_kl=c.diagonal_kl or c.full_kl,
        spread=c.spread,
        single=c.L == 1,
        gradients=c.data_gradients or c.logvar_gradient,
        uneven=c.reduction == REDUCTION_NONE and not c.forward,
        aligned=c.F % 16 == 0,
        kl_rows=kl_rows,
        kl_block=kl_block,
        finish_rows=min(power_of_two(max(c.B, 16)), t.finish_rows),
    )
    known_columns = c.objective == GAUSSIAN and c.spread == FEATURE
    if c.objective == DIAG_I or (known_columns and c.logvar_gradient):
        return _columns(c, how, kl_programs)
    if c.objective == DIAG_D or known_columns or c.spread == ELEMENT_SPREAD:
        step = _elements(c, how, kl_programs)
        return _plan(c, [step], c.B * step.pieces)
    return _rows(c, how, kl_programs)


def _plan(c: Case, steps: list[Step], parts: int, columns: int = 0, keeps: bool = False) -> Plan:
    """``parts``: partial sums that the last launch reads, see reductions.py."""
    return Plan(tuple(steps), 2 * parts + 2 * c.B, columns, 2 * parts, keeps)


def _split(c: Case, block: int) -> tuple[int, int]:
    """Elements and number of a row's pieces: enough programs to fill the device."""
    wanted = ceil_div(4 * c.tuning.multiprocessors, c.B)
    least = ceil_div(c.F, c.tuning.longest_piece)
    pieces = min(max(wanted, least), ceil_div(c.F, block))
    piece = ceil_div(ceil_div(c.F, pieces), block) * block
    return piece, ceil_div(c.F, piece)


def _elements(c: Case, how: How, kl_programs: int) -> Step:
    block = max(min(power_of_two(c.F), _fitting(c, c.tuning.block)), 16)
    piece, pieces = _split(c, block)
    how = how._replace(group=ELEMENT, block=block)
    return Step(
        elements.elements_kernel, kl_programs + c.B * pieces, 4, piece, pieces, kl_programs, 0, how
    )


def _rows(c: Case, how: How, kl_programs: int) -> Plan:
    t = c.tuning
    if c.objective == 0:
        step = Step(rows.rows_kernel, max(kl_programs, 1), 4, 0, 0, kl_programs, 0, how)
        return _plan(c, [step], 0)
    block = max(min(power_of_two(c.F), _fitting(c, t.block)), 16)
    piece, pieces = _split(c, block)
    how = how._replace(block=block)
    mode, factors = SUMS, False
    if c.data_gradients:
        keep = _kept(c)
        if c.objective == GAUSSIAN:
            mode = KNOWN
        elif c.objective == ISO_D and (c.B >= t.multiprocessors // 2 or c.F <= 2 * keep):
            mode, piece, pieces = HELD, c.F, 1
            keep = max(min(power_of_two(c.F), keep), 16)
            # long rows of activations that start anywhere would spill; several posterior samples
            # have no place in registers
            if c.L == 1 and (c.F <= keep or how.aligned or not c.activation):
                how = how._replace(keep=keep, longer=c.F > keep)
        else:
            factors = True
    how = how._replace(mode=mode, factors=factors)
    warps = _warps(c, how.keep)
    programs = c.B * pieces
    first = Step(
        rows.rows_kernel, kl_programs + programs, warps, piece, pieces, kl_programs, 0, how
    )
    steps = [first]
    if factors:
        how = how._replace(mode=FACTORS, factors=False)
        steps.append(first._replace(programs=programs, kl_programs=0, how=how))
    return _plan(c, steps, programs)


def _columns(c: Case, how: How, kl_programs: int) -> Plan:
    t = c.tuning
    keep = _kept(c)
    width = 32
    while width < 128 and ceil_div(c.F, 2 * width) >= 2 * t.multiprocessors:
        width *= 2
    width = min(width, max(power_of_two(c.F), 16))
    all_rows = power_of_two(c.B)
    known = c.objective == GAUSSIAN
    fits = c.B <= t.held_rows
    while fits and not known and width > 16 and all_rows * width > keep:
        width //= 2
    held = fits and not known and c.L == 1 and all_rows * width <= keep
    height = all_rows if held else min(all_rows, max(_fitting(c, t.block) // width, 1))
    while height > 1 and height * c.F >= 1 << 31:  # places inside a tile have 32 bits
        height, held = height // 2, False
    tiles = ceil_div(c.F, width)
    rows_of_chunk, chunks = c.B, 1
    if not fits:
        rows_of_chunk = max(t.chunk, ceil_div(c.B, t.chunks))
        chunks = ceil_div(c.B, rows_of_chunk)
    # the sums alone, where each sample's own value is asked for: it takes a launch of its own
    alone = c.objective == DIAG_I and c.reduction == REDUCTION_NONE and c.forward
    how = how._replace(
        group=COLUMN, block=width, rows=height, keep=height * width if held else 0,
        has_kl=how.has_kl and not alone,
    )  # fmt: skip
    here = 0 if alone else kl_programs
    warps = _warps(c, height * width) if held else 4
    first = Step(
        columns.columns_kernel, here + chunks * tiles, warps, rows_of_chunk, chunks, here, tiles,
        how._replace(mode=WHOLE if chunks == 1 else CHUNKS),
    )  # fmt: skip
    steps = [first]
    if chunks > 1:
        again = chunks if how.gradients and not known else 1
        steps.append(
            first._replace(programs=again * tiles, kl_programs=0, how=how._replace(mode=REST))
        )
    parts = tiles
    if alone:
        step = _elements(c, how._replace(has_kl=c.diagonal_kl or c.full_kl), kl_programs)
        step = step._replace(how=step.how._replace(spread=FEATURE))
        parts = c.B * step.pieces
        steps.append(step)
    buffers = chunks * c.F * (2 if how.uneven else 1) if chunks > 1 else 0
    plan = _plan(c, steps, parts, buffers, alone)
    return plan._replace(workspace=max(plan.workspace, 2 * tiles + 2 * c.B))
