"""What regularised autoencoders charge for their decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def decoder_weights(decoder: nn.Module) -> Tensor:
    r"""The squared norm of a decoder's weights, without biases and normalisation layers.

    .. math:: \sum_W \|W\|_F^2

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> _ = nn.init.ones_(layer.weight)
        >>> float(decoder_weights(layer).detach())
        6.0

    Source: Ghosh et al. 2020, From Variational to Deterministic Autoencoders, section 3.1 (Tikhonov
    regularisation, RAE-L2). Their code sums over the transposed convolutions alone.
    """
    squares = [w.square().sum() for w in decoder.parameters() if w.dim() > 1]
    if not squares:
        return torch.zeros(())
    return torch.stack(squares).sum()


def jacobian_norm(x_hat: Tensor, z: Tensor, probe: Tensor) -> Tensor:
    r"""|J^T v|^2 of every sample: for v ~ N(0, I) an unbiased estimate of |J|_F^2, J = d x_hat/d z.

    .. math:: \mathbb{E}_v \|J^\top v\|^2 = \mathrm{tr}(J^\top \mathbb{E}[v v^\top] J) = \|J\|_F^2

    Args:
        x_hat: [..., *sample_shape], computed from
        z: [..., d], which requires a gradient.
        probe: v, of x_hat's shape.

    Returns:
        [...], differentiable once more. Where batch norm in training mode joins the samples, it is
        of all x_hat with respect to each z: more than the norm of a sample's own Jacobian, by less
        the larger the batch, as in the code released with RAE.

    Example:
        >>> z = torch.zeros(1, 2, requires_grad=True)
        >>> x_hat = z @ torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> float(jacobian_norm(x_hat, z, torch.ones(1, 3)).detach())
        25.0

    Source: Hutchinson 1990, A stochastic estimator of the trace of the influence matrix.
    """
    (gradient,) = torch.autograd.grad(x_hat, z, probe, create_graph=True)
    return gradient.square().sum(-1)


def gradient_norm(x_hat: Tensor, z: Tensor) -> Tensor:
    r"""|d/dz sum_i x_hat_i^2|^2 = |2 J^T x_hat|^2 of every sample.

    What the code released with RAE computes where the paper writes |grad D(z)|^2: one
    vector-Jacobian product with 2 x_hat, not the norm of the Jacobian.

    Args:
        x_hat: [..., *sample_shape], computed from
        z: [..., d], which requires a gradient.

    Returns:
        [...], differentiable once more.

    Example:
        >>> z = torch.ones(1, 2, requires_grad=True)
        >>> float(gradient_norm(3.0 * z, z).detach())  # x_hat = (3, 3), 2 J^T x_hat = (18, 18)
        648.0

    Source: Ghosh et al. 2020, From Variational to Deterministic Autoencoders, and its code.
    """
    (gradient,) = torch.autograd.grad(x_hat.square().sum(), z, create_graph=True)
    return gradient.square().sum(-1)


def _probed(x_hat: Tensor, z: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(x_hat.shape, generator=generator, dtype=x_hat.dtype, device=x_hat.device)
    return jacobian_norm(x_hat, z, noise)


#: [...] for (x_hat, z, generator): what needs the decoder's derivative.
_GRADIENTS: dict[str, Callable[[Tensor, Tensor, torch.Generator | None], Tensor]] = {
    "jacobian": _probed,
    "vector-jacobian": lambda x_hat, z, generator: gradient_norm(x_hat, z),
}
PENALTIES = ("l2", *_GRADIENTS)


class DecoderPenalty(NamedTuple):
    """weight times one of `PENALTIES`.

    - "l2": the decoder's weights (`decoder_weights`);
    - "jacobian": the decoder's Jacobian at z, by one random probe a sample (`jacobian_norm`);
    - "vector-jacobian": the released form of the same (`gradient_norm`).

    Means over the batch, and over several draws of z.
    """

    kind: str
    weight: float

    def __call__(
        self,
        decode: Callable[[Tensor], Tensor],
        decoder: nn.Module,
        z: Tensor,
        x_hat: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """weight times the penalty.

        Args:
            decode: z -> the mean of x.
            decoder: the module in it.
            z: [B, d].
            x_hat: decode(z), which is used where it has a graph.
            generator: of the probes.
        """
        if self.kind == "l2":
            return self.weight * decoder_weights(decoder)
        if not (z.requires_grad and x_hat.requires_grad):  # a validation, a frozen encoder
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                x_hat = decode(z)
                found = _GRADIENTS[self.kind](x_hat, z, generator)
            return self.weight * (found if torch.is_grad_enabled() else found.detach()).mean()
        return self.weight * _GRADIENTS[self.kind](x_hat, z, generator).mean()

    def describe(self) -> dict[str, Any]:
        """The arguments of `DecoderPenalty`."""
        return self._asdict()
