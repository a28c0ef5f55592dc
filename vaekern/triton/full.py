"""Posteriors of full covariance, N(mu, L L^T): the KL to N(0, I), and sampling.

One program for each sample, which reads its L once: B d^2 s bytes, and as many for L's gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import reductions
from .kl import put


@triton.jit
def tile(tril, b, j, d, HOW: tl.constexpr):
    """The rows j of L: places, mask, values (0 above the diagonal) and the diagonal's elements."""
    k = tl.arange(0, HOW.block)
    inside = (j < d)[:, None] & (k < d)[None, :]
    place = (b * d + j.to(tl.int64))[:, None] * d + k[None, :]
    t = tl.load(tril + place, inside & (k[None, :] <= j[:, None]), 0.0).to(HOW.C)
    on = k[None, :] == j[:, None]
    return place, inside, t, on, tl.sum(tl.where(on, t, 0.0), 1)


@triton.jit
def divergence(mu, t, diagonal, j, d):
    """1/2 (|L_j|^2 + mu_j^2 - 1) - log L_jj of the rows j, in float64."""
    wide = t.to(tl.float64)
    s = mu.to(tl.float64) * mu.to(tl.float64) - 1.0 + tl.sum(wide * wide, 1)
    return tl.where(j < d, 0.5 * s - tl.log(diagonal.to(tl.float64)), 0.0)


@triton.jit
def divergence_slope(t, on, diagonal):
    """d KL / d L."""
    return t - tl.where(on, 1.0 / diagonal[:, None], 0.0)


@triton.jit
def full_kl_kernel(
    latent,  # logvar and its gradient are L [B, d, d]
    kl_out,  # [B], or for HOW.reduction "dims" [B, d], of float64
    weight,
    unit: tl.float64,
    beta_number: tl.float64,
    B: tl.int64,
    d: tl.int64,
    HOW: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    beta = reductions.beta_of(weight, beta_number)
    DIMS: tl.constexpr = HOW.reduction == reductions.DIMS
    total = beta * 0.0
    for i in range(tl.cdiv(d, HOW.rows)):
        j = i * HOW.rows + tl.arange(0, HOW.rows)
        mu = tl.load(latent.mu + b * d + j, j < d, 0.0).to(HOW.C)
        place, inside, t, on, diagonal = tile(latent.logvar, b, j, d, HOW)
        kl = divergence(mu, t, diagonal, j, d)
        if DIMS:
            tl.store(kl_out + b * d + j, kl, j < d)
            w = tl.full((HOW.rows,), 0.0, tl.float64)
            if weight.upstream is not None:
                w += beta * unit * tl.load(weight.upstream + j, j < d, 0.0).to(tl.float64)
        else:
            total += tl.sum(kl)
            w = beta * reductions.row_weight(weight, unit, b + j * 0, j < d, HOW.reduction)
        each = w.to(HOW.C)
        put(latent.grad_mu, b * d + j, each * mu, j < d)
        change = each[:, None] * divergence_slope(t, on, diagonal)
        below = tl.arange(0, HOW.block)[None, :] <= j[:, None]
        put(latent.grad_logvar, place, tl.where(below, change, 0.0), inside)
    if not DIMS:
        tl.store(kl_out + b, total)


@triton.jit
def full_sample_kernel(
    draw, B: tl.int64, d: tl.int64, L: tl.int64, BACKWARD: tl.constexpr, HOW: tl.constexpr
):
    """z_j = mu_j + sum_k L_jk noise_k; d L_jk = sum_l g_j noise_k + k (L_jk - [j = k] / L_jj)."""
    b = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HOW.block)
    total = (b * 0).to(tl.float64)
    k = (b * 0).to(HOW.C)
    if draw.grad_kl is not None:
        k = tl.load(draw.grad_kl + b).to(HOW.C)
    for i in range(tl.cdiv(d, HOW.rows)):
        j = i * HOW.rows + tl.arange(0, HOW.rows)
        mu = tl.load(draw.mu + b * d + j, j < d, 0.0).to(HOW.C)
        place, inside, t, on, diagonal = tile(draw.spread, b, j, d, HOW)
        of_mu = k * mu
        of_tril = k * t
        if draw.grad_kl is not None:
            of_tril = k * divergence_slope(t, on, diagonal)
        for s in range(L):
            at = (s * B + b) * d
            e = tl.load(draw.noise + at + column, column < d, 0.0).to(HOW.C)
            if not BACKWARD:
                z = mu + tl.sum(t * e[None, :], 1)
                put(draw.z, at + j, z, j < d)
            elif draw.grad_z is not None:
                g = tl.load(draw.grad_z + at + j, j < d, 0.0).to(HOW.C)
                of_mu += g
                of_tril += g[:, None] * e[None, :]
        if BACKWARD:
            put(draw.grad_mu, b * d + j, of_mu, j < d)
            below = column[None, :] <= j[:, None]
            put(draw.grad_spread, place, tl.where(below, of_tril, 0.0), inside)
        elif draw.kl is not None:
            total += tl.sum(divergence(mu, t, diagonal, j, d))
    if draw.kl is not None:
        tl.store(draw.kl + b, total.to(draw.kl.dtype.element_ty))
