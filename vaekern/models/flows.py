"""Normalising flows: invertible maps of a draw, whose log-determinants are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FlowKind = Literal["planar", "radial"]


def planar(z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    r"""One planar step: space is stretched along u across the hyperplane w^T z + b = 0.

    .. math:: f(z) = z + \hat u \tanh(w^T z + b), \quad
              \log|\det| = \log |1 + \hat u^T w (1 - \tanh^2(w^T z + b))|,
              \quad \hat u = u + (-1 + \log(1 + e^{w^T u}) - w^T u) \frac{w}{\|w\|^2}

    where the last equation keeps w^T u above -1, so that the step is invertible. With w = 0 it is a
    shift.

    Args:
        z: [..., B, d].
        parameters: [B, 2 d + 1]: u, w and b of each sample.

    Returns:
        (f(z) [..., B, d], log|det| [..., B]).

    Example:
        >>> z, log_det = planar(torch.zeros(1, 2), torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]]))
        >>> z.tolist(), round(float(log_det.exp()), 4)  # 1 + log(1 + e) - 1
        ([[0.0, 0.0]], 1.3133)

    Source: Rezende & Mohamed 2015, Variational Inference with Normalizing Flows, equations 10 to 12
    and appendix A.1.
    """
    d = z.shape[-1]
    u, w, b = parameters[:, :d], parameters[:, d : 2 * d], parameters[:, 2 * d]
    inner = (u * w).sum(-1)
    # w / |w|^2 grows without bound as w vanishes, where any u is allowed: tiny keeps it finite.
    squared = w.square().sum(-1)
    bounded = squared.clamp_min(torch.finfo(w.dtype).tiny ** 0.5)
    u = u + ((F.softplus(inner) - 1.0 - inner) / bounded)[:, None] * w
    kept = squared / bounded  # 1, but for a w that small
    lifted = kept * F.softplus(inner) + (1.0 - kept) * (1.0 + inner)  # 1 + w^T u_hat, above 0
    bend = torch.tanh((w * z).sum(-1) + b)
    # 1 + (lifted - 1)(1 - bend^2), whose digits would go where lifted is small
    squares = bend.square()
    return z + u * bend[..., None], torch.log(squares + lifted * (1.0 - squares))


def radial(z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    r"""One radial step: space is stretched around the point c.

    .. math:: f(z) = z + \hat\beta h (z - c), \quad h = \frac1{\alpha + r}, \quad r = \|z - c\|, \\
              \log|\det| = (d - 1) \log(1 + \hat\beta h) + \log(1 + \hat\beta h - \hat\beta r h^2)

    with alpha = softplus(a) and beta = -alpha + softplus(b), so that the step is invertible: both
    logarithms' arguments are sums of positive numbers, over alpha + r and its square.

    Args:
        z: [..., B, d].
        parameters: [B, d + 2]: c, a and b of each sample.

    Returns:
        (f(z) [..., B, d], log|det| [..., B]).

    Example:
        >>> z, log_det = radial(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 4))  # beta = 0
        >>> z.tolist(), round(float(log_det), 6)
        ([[3.0, 4.0]], 0.0)

    Source: Rezende & Mohamed 2015, Variational Inference with Normalizing Flows, equation 14 and
    appendix A.2.
    """
    d = z.shape[-1]
    c, a, b = parameters[:, :d], parameters[:, d], parameters[:, d + 1]
    alpha, lifted = F.softplus(a), F.softplus(b)  # lifted: beta + alpha
    away = z - c
    # The norm's gradient at 0 is undefined; there the step is linear, and r's weight vanishes.
    r = away.square().sum(-1).clamp_min(torch.finfo(z.dtype).tiny).sqrt()
    whole = alpha + r
    across, along = (r + lifted) / whole, (r * (r + 2.0 * alpha) + alpha * lifted) / whole.square()
    log_det = (d - 1) * torch.log(across) + torch.log(along)
    return z + ((lifted - alpha) / whole)[..., None] * away, log_det


class _Step(NamedTuple):
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    parameters: Callable[[int], int]  # numbers of one step in d dimensions


#: A new kind is a row here and a name in `FlowKind`.
FLOWS: dict[str, _Step] = {
    "planar": _Step(planar, lambda d: 2 * d + 1),
    "radial": _Step(radial, lambda d: d + 2),
}


class Flow(NamedTuple):
    """A chain of steps of one kind, with parameters of its own for every sample.

    Example:
        >>> flow = Flow("planar", torch.randn(8, 10, 5))  # 10 steps in two dimensions
        >>> z, log_det = flow(torch.randn(8, 2))
        >>> z.shape, log_det.shape
        (torch.Size([8, 2]), torch.Size([8]))
    """

    kind: str
    parameters: Tensor  # [B, steps, numbers of one step]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(f(z), log|det df/dz|) for z [..., B, d]."""
        log_det = z.new_zeros(z.shape[:-1])
        for each in self.parameters.unbind(1):
            z, change = FLOWS[self.kind].function(z, each)
            log_det = log_det + change
        return z, log_det


def flow_parameters(kind: str, steps: int, latent_dim: int) -> int:
    """How many numbers a chain takes for each sample."""
    return steps * FLOWS[kind].parameters(latent_dim)
