"""The squared reconstruction error, split into what the mean misses and what the noise adds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaekern import functional
from vaekern.diagnostics._checks import check_data
from vaekern.diagnostics._decode import CHUNK, decode
from vaekern.diagnostics._model import check_model, encoded, first
from vaekern.models.modes import evaluation_mode


class ReconstructionLosses(NamedTuple):
    """Result of :func:`reconstruction_losses`: means over the data, summed over dimensions."""

    total: Tensor  # [] float64: E |Dec(z) - x|^2
    deterministic: Tensor  # [] float64: |Dec(mu) - x|^2
    stochastic: Tensor  # [] float64: E |Dec(z) - Dec(mu)|^2
    linearized: Tensor | None  # [] float64: sum_j sigma_j^2 |J_j|^2, where Jacobians are given


@torch.no_grad()
def reconstruction_losses(
    model: Any,
    x: Tensor,  # [N, ...]
    *,
    draws: int = 10,
    jacobian: Tensor | None = None,  # [N, D, d]
    chunk_size: int = CHUNK,
    generator: torch.Generator | None = None,
) -> ReconstructionLosses:
    r"""Deterministic and stochastic part of the squared reconstruction error.

    With z = mu(x) + epsilon, epsilon ~ N(0, diag sigma^2(x)), and J the decoder's Jacobian at mu,

    .. math::

        \mathrm{total} &= \mathrm{E}\,|\mathrm{Dec}(z) - x|^2, \\
        \mathrm{deterministic} &= |\mathrm{Dec}(\mu) - x|^2, \\
        \mathrm{stochastic} &= \mathrm{E}\,|\mathrm{Dec}(z) - \mathrm{Dec}(\mu)|^2
            \approx \mathrm{E}\,|J \epsilon|^2 = \sum_j \sigma_j^2 |J_j|^2 = \mathrm{linearized},

    averaged over the data. The stochastic part is what makes a VAE prefer orthogonal columns J_j.
    total = deterministic + stochastic where the decoded noise is unbiased, E Dec(z) = Dec(mu), as
    it is for a linear decoder; what total has beyond the two is twice the product of that bias with
    the deterministic residual.

    Args:
        model: a :class:`vaekern.models.VAE`, or (encode, decode) with encode: x -> (mu, logvar) and
            decode: z -> x_hat, or a tuple that starts with it. Modules are put in evaluation mode
            meanwhile.
        x: [N, ...] data; moved to the model's device in pieces.
        draws: of epsilon for every x; total and stochastic are averages over them.
        jacobian: [N, D, d] of the decoder's mean at mu(x), for linearized: see
            :func:`vaekern.diagnostics.decoder_jacobian`.
        chunk_size: samples decoded at once.
        generator: makes the draws reproducible, on the model's device; they depend on chunk_size.

    Returns:
        Squared errors in squared units of x, without the 1/2 and the 1/sigma_x^2 of a Gaussian
        likelihood. float64; the networks run in their own precision.

    Raises:
        ValueError: no data, a number below 1, or shapes that do not fit.
        TypeError: a model that is neither, or a tensor that is no floating-point tensor.

    Example:
        >>> def encode(x):
        ...     return x + 1, torch.full_like(x, -200.0)  # next to no noise
        >>> losses = reconstruction_losses((encode, lambda z: z), torch.zeros(4, 3))
        >>> float(losses.deterministic), float(losses.total), float(losses.stochastic) < 1e-9
        (3.0, 3.0, True)

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    equations 11 and 13 to 17 and proposition 4.
    """
    parts = check_model("model", model)
    check_data(x, draws=draws, chunk_size=chunk_size)

    def mean(z: Tensor) -> Tensor:
        return first(parts.decode(z))

    sums = torch.zeros(3, dtype=torch.float64)
    linearized, done = 0.0, 0
    with evaluation_mode(*parts.networks):
        for piece in x.split(chunk_size):
            piece = piece if parts.device is None else piece.to(parts.device)
            mu, logvar = encoded(parts.encode, piece)
            centre, piece = decode(mean, mu).double(), piece.double()
            if centre.shape != piece.shape:
                raise ValueError(
                    f"decode must return the shape of x, got {list(centre.shape)} for "
                    f"{list(piece.shape)}; reshape its output"
                )
            sums[1] += float((centre - piece).square().sum())
            for _ in range(draws):
                z = functional.reparameterize(mu, logvar, generator=generator)
                x_hat = decode(mean, z).double()
                sums[0] += float((x_hat - piece).square().sum())
                sums[2] += float((x_hat - centre).square().sum())
            if jacobian is not None:
                J = _rows(jacobian, x, done, piece, mu)
                variance = logvar.double().exp()
                linearized += float((J.square().sum(1) * variance).sum())
            done += len(piece)
    total, deterministic, stochastic = sums / len(x) / torch.tensor([draws, 1, draws])
    return ReconstructionLosses(
        total,
        deterministic,
        stochastic,
        None if jacobian is None else torch.tensor(linearized / len(x), dtype=torch.float64),
    )


def _rows(jacobian: Tensor, x: Tensor, start: int, piece: Tensor, mu: Tensor) -> Tensor:
    """The Jacobians of a piece of x, [B, D, d] float64."""
    expected = (len(x), piece[0].numel(), mu.shape[1])
    if jacobian.shape != expected:
        raise ValueError(
            f"jacobian must be [N, D, d], here {list(expected)}, got {list(jacobian.shape)}; "
            "flatten the dimensions of x into D"
        )
    return jacobian[start : start + len(piece)].to(mu.device).double()
