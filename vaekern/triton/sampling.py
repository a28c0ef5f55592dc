"""z = mu + sigma noise (or mu + L noise) with the KL to N(0, I) in the same launch, and its
backward: one launch each, every tensor moved once.

The noise is drawn by torch.randn and read here: the same bits as the reference's, fresh numbers at
each replay of a CUDA graph (torch's generator is registered with the graph), and z can be
recomputed under checkpointing.  It costs one launch and 2 tensors of the latents' size, which is
small beside the data's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import terms
from .kl import put


class Draw(NamedTuple):
    """What sampling reads and writes, all dense; absent tensors are None."""

    mu: Any  # [B, d]
    spread: Any  # logvar [B, d] or scale_tril [B, d, d]
    noise: Any  # [L, B, d]
    z: Any  # [L, B, d]
    kl: Any  # [B]
    grad_z: Any  # [L, B, d]
    grad_kl: Any  # [B]
    grad_mu: Any
    grad_spread: Any


@triton.jit
def sample_kernel(
    draw, B: tl.int64, d: tl.int64, L: tl.int64, BACKWARD: tl.constexpr, HOW: tl.constexpr
):
    """A diagonal posterior.  d mu = sum_l g + k mu; d logvar = 1/2 sigma sum_l g noise + k / 2
    (e^logvar - 1), with g and k the gradients of z and of the KL."""
    row = tl.program_id(0).to(tl.int64) * HOW.kl_rows + tl.arange(0, HOW.kl_rows)
    here = row < B
    total = tl.full((HOW.kl_rows, HOW.kl_block), 0.0, HOW.C)
    k = tl.full((HOW.kl_rows,), 0.0, HOW.C)
    if draw.grad_kl is not None:
        k = tl.load(draw.grad_kl + row, here, 0.0).to(HOW.C)
    for i in range(tl.cdiv(d, HOW.kl_block)):
        j = i * HOW.kl_block + tl.arange(0, HOW.kl_block)
        mask = here[:, None] & (j < d)[None, :]
        place = row[:, None] * d + j[None, :]
        mu = tl.load(draw.mu + place, mask, 0.0).to(HOW.C)
        logvar = tl.load(draw.spread + place, mask, 0.0).to(HOW.C)
        sigma = terms.exp(0.5 * logvar)
        excess, minus_one = terms.exp_excess(logvar)
        if BACKWARD:
            of_mu = tl.full((HOW.kl_rows, HOW.kl_block), 0.0, HOW.C)
            of_logvar = of_mu
            if draw.grad_z is not None:
                product = of_mu
                for s in range(L):
                    g = tl.load(draw.grad_z + s * B * d + place, mask, 0.0).to(HOW.C)
                    e = tl.load(draw.noise + s * B * d + place, mask, 0.0).to(HOW.C)
                    of_mu += g
                    product += g * e
                of_logvar += 0.5 * sigma * product
            if draw.grad_kl is not None:
                of_mu += k[:, None] * mu
                of_logvar += 0.5 * k[:, None] * minus_one
            put(draw.grad_mu, place, of_mu, mask)
            put(draw.grad_spread, place, of_logvar, mask)
        else:
            total += tl.where(mask, mu * mu + excess, 0.0)
            for s in range(L):
                e = tl.load(draw.noise + s * B * d + place, mask, 0.0).to(HOW.C)
                put(draw.z, s * B * d + place, mu + sigma * e, mask)
    if draw.kl is not None:
        kl = 0.5 * tl.sum(total.to(tl.float64), 1)
        tl.store(draw.kl + row, kl.to(draw.kl.dtype.element_ty), here)
