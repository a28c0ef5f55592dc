"""The definition of every operator in plain PyTorch.

Naive on purpose: each formula stands as in the papers, broadcast over whole tensors, differentiable
by autograd any number of times, and right in float64.  Every kernel is held against this file, and
it is what runs where no kernel does.  It imports nothing of ours.

Shapes: B samples, L posterior samples per input, D = number of features of one sample (all axes
after the batch), d = latent dimensions.  Values are nats; ``logvar`` is log sigma^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def _wide(t: Tensor) -> Tensor:
    """float32 or better: half precision is a storage format here, never an arithmetic one."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _rows(t: Tensor) -> Tensor:  # [B, ...] -> [B]
    return t.flatten(1).sum(1) if t.dim() > 1 else t


def activate(x_hat: Tensor, activation: str | None) -> Tensor:
    if activation == "sigmoid":
        return torch.sigmoid(x_hat)
    if activation == "tanh":
        return torch.tanh(x_hat)
    return x_hat


def squared_residual(x_hat: Tensor, x: Tensor, activation: str | None = None) -> Tensor:
    """E_L (x_hat - x)^2, shape of x.  x_hat is [B, ...] or [L, B, ...]."""
    r = activate(_wide(x_hat), activation) - _wide(x)
    return (r * r).mean(0) if r.dim() > x.dim() else r * r


def gaussian_nll(
    x_hat: Tensor,  # [B, ...] or [L, B, ...]
    x: Tensor,  # [B, ...]
    logvar: Tensor,  # broadcasts to x
    activation: str | None = None,
) -> Tensor:  # [B]
    """1/2 sum_i [ E_L r_i^2 / sigma_i^2 + log sigma_i^2 + log 2 pi ]."""
    logvar = _wide(logvar)
    q = squared_residual(x_hat, x, activation)
    return _rows(0.5 * (q * torch.exp(-logvar) + logvar + LOG_2PI).expand_as(x))


def mle_variance(q: Tensor, covariance: str) -> Tensor:
    """The maximum-likelihood sigma^2, before eps, from q = E_L r^2 (shape of x).

    iso-i: a number; diag-i: [...]; iso-d: [B] and the SUM over the features; diag-d: q itself.
    """
    if covariance == "iso-i":
        return q.mean()
    if covariance == "diag-i":
        return q.mean(0)
    if covariance == "iso-d":
        return _rows(q)
    return q


def mle_nll(
    x_hat: Tensor,  # [B, ...] or [L, B, ...]
    x: Tensor,  # [B, ...]
    covariance: str,  # "iso-i" | "iso-d" | "diag-i" | "diag-d"
    eps: float = 1e-6,
    activation: str | None = None,
) -> Tensor:  # [B]
    """Gaussian NLL at the maximum-likelihood variance; per-sample terms whose mean is the
    objective."""
    q = squared_residual(x_hat, x, activation)
    v = mle_variance(q, covariance)
    features = x[0].numel() if len(x) else max(math.prod(x.shape[1:]), 1)
    if covariance == "iso-d":
        return 0.5 * features * (torch.log(v + eps) - math.log(features) + 1 + LOG_2PI)
    if covariance == "diag-d":
        return _rows(0.5 * (torch.log(v + eps) + 1 + LOG_2PI))
    if covariance == "iso-i":  # no eps: kept at or above the smallest normal number instead
        some = v >= torch.finfo(v.dtype).tiny
        v = torch.where(some, v, torch.finfo(v.dtype).tiny)
        excess = torch.where(some, (q - v) / torch.where(some, v, 1.0), 0.0)
        return _rows(0.5 * (torch.log(v) + 1 + LOG_2PI + excess))
    return _rows(0.5 * (torch.log(v + eps) + 1 + LOG_2PI + (q - v) / (v + eps)))


def known_variance(
    v: Tensor,  # [1] (iso-i) or [D] (diag-i): mle_variance of the whole batch
    diagonal: bool,
    features: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(logvar, excess), of dtype, with which the -i modes' mle_nll of a part of the batch is its
    gaussian_nll at logvar, plus excess for each sample.  The gradient for x_hat is the same too."""
    if not diagonal:  # zero residuals: a variance of 1 leaves their gradient at zero
        tiny = torch.finfo(dtype).tiny
        none = v < tiny
        excess = torch.where(none, 0.5 * features * (math.log(tiny) + 1), 0.0).sum()
        return torch.log(torch.where(none, 1.0, v)).to(dtype), excess.to(dtype)
    return torch.log(v + eps).to(dtype), (0.5 * eps / (v + eps)).sum().to(dtype)


def exp_excess(t: Tensor) -> Tensor:
    """e^t - 1 - t without cancellation: its series below |t| = 0.1, expm1 above."""
    small = t.abs() < 0.1
    s = torch.where(small, t, 0.0)
    series = torch.zeros_like(t)
    for n in range(11, 1, -1):  # Horner: s^2/2! + s^3/3! + ... + s^11/11!
        series = (series + 1 / math.factorial(n)) * s
    return torch.where(small, series * s, torch.expm1(t) - t)


def gaussian_kl(
    mu: Tensor,  # [B, ...]
    logvar: Tensor,  # [B, ...]
    prior_mu: Tensor | None = None,  # broadcasts to mu
    prior_logvar: Tensor | None = None,  # broadcasts to mu
) -> Tensor:  # [B, ...], per dimension
    """KL(N(mu, sigma^2) || N(m, s^2)) = 1/2 [ (mu - m)^2 / s^2 + e^t - 1 - t ], t = log sigma^2 -
    log s^2."""
    shift, t = _wide(mu), _wide(logvar)
    if prior_mu is not None:
        shift = shift - _wide(prior_mu)
    square = shift * shift
    if prior_logvar is not None:
        t = t - _wide(prior_logvar)
        square = square * torch.exp(-_wide(prior_logvar))
    return 0.5 * (square + exp_excess(t))


def full_gaussian_kl(mu: Tensor, scale_tril: Tensor) -> Tensor:  # [B, d], [B, d, d] -> [B, d]
    """KL(N(mu, L L^T) || N(0, I)), split as 1/2 (|L_j|^2 + mu_j^2 - 1) - log L_jj over the rows j
    of L."""
    mu, tril = _wide(mu), torch.tril(_wide(scale_tril))
    diagonal = torch.diagonal(tril, dim1=-2, dim2=-1)
    return 0.5 * (tril.square().sum(-1) + mu * mu - 1) - torch.log(diagonal)


def reparameterize(
    mu: Tensor,  # [B, ...]
    logvar: Tensor | None,  # [B, ...], or
    scale_tril: Tensor | None,  # [B, d, d]
    noise: Tensor,  # [B, ...] or [L, B, ...], standard normal
) -> Tensor:  # shape of noise, dtype of mu
    """z = mu + exp(logvar / 2) noise, or mu + L noise."""
    if scale_tril is not None:
        spread = torch.einsum("bij,...bj->...bi", torch.tril(_wide(scale_tril)), _wide(noise))
    else:
        assert logvar is not None
        spread = torch.exp(0.5 * _wide(logvar)) * _wide(noise)
    return (_wide(mu) + spread).to(mu.dtype)


def _reduce(rows: Tensor, features: int, reduction: str) -> Tensor:  # [B] -> scalar or [B]
    if reduction == "none":
        return rows
    total = rows.sum()
    if reduction == "sum" or len(rows) == 0:
        return total
    return total / (len(rows) * (features if reduction == "mean" else 1))


def loss(
    x_hat: Tensor | None,
    x: Tensor | None,
    x_logvar: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor | None,
    scale_tril: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    beta: Tensor | float,
    *,
    objective: str | None,  # None | "gaussian" | "iso-i" | "iso-d" | "diag-i" | "diag-d"
    activation: str | None,
    reduction: str,
    eps: float,
    logvar_clamp: tuple[float, float] | None,
    x_logvar_min: float,
) -> tuple[Tensor, Tensor]:
    """Reconstruction + beta KL, either part optional; and the statistics, detached, as one vector:
    [ reconstruction [B], E_L |r|^2 [B], KL [B], variance ([1], or D numbers for diag-i) ]."""
    rows = kl_rows = None
    features, statistics = 1, []
    if x_hat is not None:
        assert x is not None
        assert objective is not None
        features = math.prod(x.shape[1:])
        q = squared_residual(x_hat.detach(), x.detach(), activation)
        if objective == "gaussian":
            assert x_logvar is not None
            rows = gaussian_nll(x_hat, x, _wide(x_logvar).clamp_min(x_logvar_min), activation)
        else:
            rows = mle_nll(x_hat, x, objective, eps, activation)
        v = q.mean(0).flatten() if objective == "diag-i" else q.mean().reshape(1)
        statistics = [rows.detach(), _rows(q), v]
    if mu is not None:
        if scale_tril is not None:
            kl = full_gaussian_kl(mu, scale_tril)
        else:
            assert logvar is not None
            if logvar_clamp is not None:
                logvar = _wide(logvar).clamp(*logvar_clamp)
            kl = gaussian_kl(mu, logvar, prior_mu, prior_logvar)
        if reduction == "dims":
            return kl.sum(0) / max(len(kl), 1), kl.new_zeros(0)
        kl_rows = _rows(kl)
        if x_hat is None:
            features = math.prod(mu.shape[1:])
    if rows is None:
        assert kl_rows is not None
        total, zero = beta * kl_rows, torch.zeros_like(kl_rows)
        statistics = [zero, zero, kl_rows.detach(), zero[:0]]
    else:
        total = rows if kl_rows is None else rows + beta * kl_rows
        kl_part = torch.zeros_like(rows) if kl_rows is None else kl_rows
        statistics = [statistics[0], statistics[1], kl_part.detach(), statistics[2]]
    return _reduce(total, features, reduction), torch.cat([s.to(total.dtype) for s in statistics])
