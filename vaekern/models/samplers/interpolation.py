"""Codes between those of two images."""

from __future__ import annotations

import torch
from torch import Tensor

from vaekern.models.samplers.base import LatentSampler
from vaekern.models.vae import VAE

# Below this sine the arc between two codes is not determined, or all of a straight line.
STRAIGHT = 1e-6


def spherical_interpolation(
    a: Tensor,  # [..., d]
    b: Tensor,  # [..., d]
    ratio: float | Tensor,  # [...] or a number
) -> Tensor:  # [..., d]
    r"""The point at `ratio` of the way from a to b, along the arc between their directions.

    .. math:: \frac{\sin((1 - t) \omega)}{\sin\omega} a + \frac{\sin(t \omega)}{\sin\omega} b,
              \quad \cos\omega = \frac{a \cdot b}{|a| |b|}

    The angle is between the directions, the weights are applied to the codes themselves: codes of
    one length stay at it. Where a and b point the same way, or opposite ways, or one
    of them is zero, the line (1 - t) a + t b is taken. Computed in float64.

    Args:
        a: [..., d] codes at ratio 0.
        b: [..., d] codes at ratio 1.
        ratio: t, a number or a tensor of the codes' leading shape.

    Returns:
        [..., d], in the dtype of a.

    Example:
        >>> a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
        >>> spherical_interpolation(a, b, 0.5)
        tensor([1.4142, 1.4142])

    Source:
        Shoemake 1985; White 2016, Sampling Generative Networks; Ghosh et al. 2020, its code.
    """
    first, second = a.double(), b.double()
    t = torch.as_tensor(ratio, dtype=torch.float64, device=a.device).unsqueeze(-1)
    lengths = first.norm(dim=-1, keepdim=True) * second.norm(dim=-1, keepdim=True)
    cosine = (first * second).sum(-1, keepdim=True) / lengths  # NaN for a code of zero
    angle = torch.acos(cosine.clamp(-1, 1))
    sine = torch.sin(angle)
    arc = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / sine
    # `~(sine > ...)` and not `sine <= ...`: it is true for NaN too.
    return torch.where(~(sine > STRAIGHT), torch.lerp(first, second, t), arc).to(a.dtype)


class InterpolationSampler(LatentSampler):
    """z on the arc between the codes of two different images, drawn at random.

    Args:
        vae: stage 1.
        codes: [N, d] the encoder's means of the images, N at least 2.
        ratio: how far from the first to the second; None draws it from U[0, 1] for each pair.

    Raises:
        ValueError: fewer than two codes, or a ratio outside [0, 1].

    Source:
        Takida et al. 2022, section 6 and table 5: mid-points, and points at random ratios.
    """

    def __init__(self, vae: VAE, codes: Tensor, *, ratio: float | None = 0.5):
        super().__init__(vae)
        if codes.ndim != 2 or len(codes) < 2:
            raise ValueError(
                f"codes must have shape [N, {vae.latent_dim}] with N at least 2, got "
                f"{list(codes.shape)}; interpolation needs two images"
            )
        if ratio is not None and not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be None or lie between 0 and 1, got {ratio}")
        self.codes = codes.detach().to(next(vae.parameters()).device)
        self.ratio = ratio

    def latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        codes = self.codes
        first, second = self.pairs(n, generator=generator)
        ratio: float | Tensor = (
            torch.rand(n, generator=generator, device=codes.device, dtype=torch.float64)
            if self.ratio is None
            else self.ratio
        )
        return spherical_interpolation(codes[first], codes[second], ratio)

    def pairs(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n rows of `codes` and n others, each different from its partner."""
        count, device = len(self.codes), self.codes.device
        first = torch.randint(count, (n,), generator=generator, device=device)
        step = torch.randint(1, count, (n,), generator=generator, device=device)
        return first, (first + step) % count


def interpolation_strips(vae: VAE, a: Tensor, b: Tensor, *, steps: int = 9) -> Tensor:
    """What the decoder makes of the arc from each code to its partner, both ends included.

    Args:
        vae: stage 1, in evaluation mode.
        a: [N, d] codes.
        b: [N, d] their partners.
        steps: codes on each arc, evenly spaced.

    Returns:
        [N, steps, *sample_shape].

    Raises:
        ValueError: fewer than two steps.

    Example:
        >>> import vaekern
        >>> encoder, decoder = vaekern.models.networks.mlp((6,), 2, width=8)
        >>> vae = VAE(encoder, decoder, vaekern.GaussianVAELoss(), latent_dim=2)
        >>> interpolation_strips(vae, torch.randn(3, 2), torch.randn(3, 2), steps=5).shape
        torch.Size([3, 5, 6])

    Source:
        Takida et al. 2022, figure J.9.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, the ends of an arc, got {steps}")
    ratios = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device)
    z = spherical_interpolation(
        a[:, None].expand(-1, steps, -1), b[:, None].expand(-1, steps, -1), ratios
    )
    return vae.decode_in_chunks(z.flatten(0, 1)).unflatten(0, (len(a), steps))
