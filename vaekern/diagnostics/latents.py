"""Which latent dimensions a Gaussian encoder uses."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vaekern.diagnostics._checks import check_samples

Definition = Literal["variance", "std", "posterior"]

# Default threshold of each definition, as published.
THRESHOLDS: dict[str, float] = {"variance": 0.01, "std": 0.5, "posterior": 0.5}


class ActiveUnits(NamedTuple):
    """Result of :func:`active_units`."""

    active: int
    mask: Tensor  # [d] bool
    statistic: Tensor  # [d] float64: what was compared with the threshold


class EncoderVarianceSpectrum(NamedTuple):
    """Result of :func:`encoder_variance_spectrum`."""

    variance: Tensor  # [d] float64, ascending: the active dimensions come first
    order: Tensor  # [d] int64: variance[i] belongs to latent dimension order[i]
    active: int
    passive: int


@torch.no_grad()
def active_units(
    mu: Tensor,  # [N, d]
    logvar: Tensor | None = None,  # [N, d]
    *,
    definition: Definition = "variance",
    threshold: float | None = None,
) -> ActiveUnits:
    r"""Count the latent dimensions that carry information about the data.

    With the encoder q(z | x) = N(mu(x), diag exp(logvar(x))) and statistics over the N data points,
    dimension j is active when

    - ``"variance"``: :math:`\mathrm{Var}_x\,\mu_j(x) > 0.01` (Burda et al.),
    - ``"std"``: :math:`\mathrm{Std}_x\,\mu_j(x) > 0.5` (Rolinek et al.), 25 times stricter,
    - ``"posterior"``: :math:`\mathrm{E}_x \exp(\mathrm{logvar}_j(x)) < 0.5`: halfway between the
      two values, 0 (active) and 1 (passive), that Dai and Wipf prove for a converged model. Needs
      ``logvar``; the other two leave it unread.

    Variances divide by N and are computed in float64.

    Args:
        mu: [N, d] encoder means over a data set.
        logvar: [N, d] encoder log-variances, log sigma^2.
        definition: which of the three.
        threshold: replaces the published one.

    Returns:
        The number of active dimensions, their mask [d], and the statistic [d] in float64.

    Raises:
        ValueError: shapes that do not match, values that are not finite, an unknown definition, a
            threshold that is not positive, or ``"posterior"`` without ``logvar``.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> mu = torch.tensor([[1.0, 0.05, 0.2], [-1.0, -0.05, -0.2]])
        >>> active_units(mu).active, active_units(mu, definition="std").mask.tolist()
        (2, [True, False, False])

    Source: Burda et al. 2016, "Importance weighted autoencoders", section 5.2; Rolinek et al. 2019,
    "Variational autoencoders pursue PCA directions (by accident)", section 5.2; Dai and Wipf 2019,
    "Diagnosing and enhancing VAE models", section 4 and appendix I.
    """
    check_samples("mu", mu)
    if logvar is not None:
        check_samples("logvar", logvar, beside=("mu", mu))
        if len(logvar) != len(mu):
            raise ValueError(
                f"logvar must hold as many samples as mu, got {len(logvar)} and {len(mu)}"
            )
    if definition not in THRESHOLDS:
        raise ValueError(f"definition must be one of {', '.join(THRESHOLDS)}, got {definition!r}")
    threshold = THRESHOLDS[definition] if threshold is None else threshold
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold must be positive and finite, got {threshold}")
    if definition == "posterior":
        if logvar is None:
            raise ValueError('definition="posterior" reads logvar, got None: pass logvar.')
        statistic = _mean_variance(logvar)
        mask = statistic < threshold
    else:
        statistic = mu.double().var(0, correction=0)
        statistic = statistic.sqrt() if definition == "std" else statistic
        mask = statistic > threshold
    return ActiveUnits(int(mask.sum()), mask, statistic)


@torch.no_grad()
def encoder_variance_spectrum(
    logvar: Tensor,  # [N, d]
    *,
    threshold: float = THRESHOLDS["posterior"],
) -> EncoderVarianceSpectrum:
    r"""Mean encoder variance of each latent dimension, sorted, split into active and passive.

    .. math:: v_j = \mathrm{E}_x \exp(\mathrm{logvar}_j(x))

    For a decoder that is linear near the data, with Jacobian columns :math:`J_j` that are
    orthogonal, the best encoder has :math:`v_j = 1 / (1 + |J_j|^2 / \gamma)`: it goes to 0 with the
    decoder variance gamma where the dimension is used (active), and is 1 where it is not (passive).
    A converged model shows two groups and nothing between.

    Args:
        logvar: [N, d] encoder log-variances, log sigma^2, over a data set.
        threshold: v below it counts as active.

    Returns:
        The variances [d] ascending in float64, the dimension each belongs to, and both counts.

    Raises:
        ValueError: a shape other than [N, d], values that are not finite, a bad threshold.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> spectrum = encoder_variance_spectrum(torch.tensor([[0.0, -9.0, -7.0]]))
        >>> spectrum.order.tolist(), spectrum.active, spectrum.passive
        ([1, 2, 0], 2, 1)

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models", section 4, figure 2 and
    appendix I.
    """
    check_samples("logvar", logvar)
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold must be positive and finite, got {threshold}")
    variance, order = torch.sort(_mean_variance(logvar))
    active = int((variance < threshold).sum())
    return EncoderVarianceSpectrum(variance, order, active, len(variance) - active)


def _mean_variance(logvar: Tensor) -> Tensor:
    return logvar.double().exp().mean(0)
