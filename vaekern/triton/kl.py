"""The KL: of diagonal Gaussians as programs of the reconstruction's launch, per dimension, and of
full covariances.

Bytes: reads mu and logvar, writes their gradients, once: 4 tensors of the latents' size (full
covariance: L and its gradient).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import reductions, terms


class Latent(NamedTuple):
    """What the KL reads and writes, all dense [B, d]; absent tensors are None."""

    mu: Any
    logvar: Any
    prior_mu: Any
    prior_logvar: Any
    grad_mu: Any
    grad_logvar: Any
    grad_prior_mu: Any
    grad_prior_logvar: Any


@triton.jit
def put(pointer, place, value, mask):
    if pointer is not None:
        tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask)


@triton.jit
def tile(latent, place, mask, weight, HOW: tl.constexpr):
    """KL of a tile; writes the gradients, weight = d objective / d KL."""
    shift = tl.load(latent.mu + place, mask, 0.0).to(HOW.C)
    logvar = tl.load(latent.logvar + place, mask, 0.0).to(HOW.C)
    if latent.prior_mu is not None:
        shift -= tl.load(latent.prior_mu + place, mask, 0.0).to(HOW.C)
    prior_logvar = latent.prior_logvar
    if latent.prior_logvar is not None:
        prior_logvar = tl.load(latent.prior_logvar + place, mask, 0.0).to(HOW.C)
    value, of_mu, of_logvar, of_prior = terms.gaussian_kl(
        shift, logvar, prior_logvar, HOW.logvar_min, HOW.logvar_max
    )
    half = 0.5 * weight
    put(latent.grad_mu, place, half * of_mu, mask)
    put(latent.grad_logvar, place, half * of_logvar, mask)
    put(latent.grad_prior_mu, place, -half * of_mu, mask)
    put(latent.grad_prior_logvar, place, half * of_prior, mask)
    return tl.where(mask, 0.5 * value, 0.0)


@triton.jit
def kl_rows(latent, rows_out, weight, unit, beta, B, d, HOW: tl.constexpr):
    """KL of HOW.kl_rows samples, into rows_out[b]."""
    row = tl.program_id(0).to(tl.int64) * HOW.kl_rows + tl.arange(0, HOW.kl_rows)
    here = row < B
    w = (beta * reductions.row_weight(weight, unit, row, here, HOW.reduction)).to(HOW.C)
    total = tl.full((HOW.kl_rows, HOW.kl_block), 0.0, HOW.C)
    for i in range(tl.cdiv(d, HOW.kl_block)):
        j = i * HOW.kl_block + tl.arange(0, HOW.kl_block)
        mask = here[:, None] & (j < d)[None, :]
        total += tile(latent, row[:, None] * d + j[None, :], mask, w[:, None], HOW)
    tl.store(rows_out + row, tl.sum(total.to(tl.float64), 1), here)


@triton.jit
def kl_dims_kernel(
    latent, value, upstream, unit: tl.float64, B: tl.int64, d: tl.int64,
    HOW: tl.constexpr,
):  # fmt: skip
    """Mean over the batch of each dimension's KL; upstream [d] in the backward."""
    j = tl.program_id(0).to(tl.int64) * HOW.kl_block + tl.arange(0, HOW.kl_block)
    here = j < d
    w = tl.full((HOW.kl_block,), 0.0, HOW.C)
    if upstream is not None:
        w = (unit * tl.load(upstream + j, here, 0.0).to(tl.float64)).to(HOW.C)
    total = tl.full((HOW.kl_rows, HOW.kl_block), 0.0, HOW.C)
    for i in range(tl.cdiv(B, HOW.kl_rows)):
        row = i * HOW.kl_rows + tl.arange(0, HOW.kl_rows)
        mask = (row < B)[:, None] & here[None, :]
        total += tile(latent, row[:, None].to(tl.int64) * d + j[None, :], mask, w[None, :], HOW)
    put(value, j, tl.sum(total.to(tl.float64), 0) * unit, here)
