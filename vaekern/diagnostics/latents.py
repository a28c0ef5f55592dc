"""Which latent dimensions a Gaussian encoder uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vaekern import _checks
from vaekern.diagnostics._checks import check_samples

Definition = Literal["variance", "std", "posterior"]

# Default threshold of each definition, as published.
THRESHOLDS: dict[str, float] = {"variance": 0.01, "std": 0.5, "posterior": 0.5}
BLOCK_ELEMENTS = 1 << 20  # 8 MB of float64 at a time, whatever N is


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


class EncoderVarianceHistogram(NamedTuple):
    """Result of :func:`encoder_variance_histogram`."""

    counts: Tensor  # [bins] int64, on the CPU: of all N d eigenvalues, those in each bin
    edges: Tensor  # [bins + 1] float64, on the CPU, from 0 to 1
    above: int  # eigenvalues beyond 1, in no bin
    manifold_dimension: float  # mean over the samples of the number of eigenvalues near 0


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
        check_same_samples(mu, logvar)
    if definition not in THRESHOLDS:
        raise ValueError(f"definition must be one of {', '.join(THRESHOLDS)}, got {definition!r}")
    if threshold is not None:
        _check_threshold(threshold)
    if definition == "posterior" and logvar is None:
        raise ValueError('definition="posterior" reads logvar, got None: pass logvar.')
    mask, statistic = activity(mu, logvar, definition, threshold)
    return ActiveUnits(int(mask.sum()), mask, statistic)


def activity(
    mu: Tensor, logvar: Tensor | None, definition: Definition, threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """(mask [d], statistic [d]) of :func:`active_units`, unchecked: never waits for the device."""
    threshold = THRESHOLDS[definition] if threshold is None else threshold
    if definition == "posterior":
        assert logvar is not None
        statistic = _mean_variance(logvar)
        return statistic < threshold, statistic
    statistic = mu.double().var(0, correction=0)
    statistic = statistic.sqrt() if definition == "std" else statistic
    return statistic > threshold, statistic


def check_same_samples(mu: Tensor, logvar: Tensor) -> None:
    """``logvar`` [N, d] of a checked ``mu`` [N, d]."""
    check_samples("logvar", logvar, beside=("mu", mu))
    if len(logvar) != len(mu):
        raise ValueError(f"logvar must hold as many samples as mu, got {len(logvar)} and {len(mu)}")


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold must be positive and finite, got {threshold}")


@torch.no_grad()
def encoder_variance_spectrum(
    logvar: Tensor | None = None,  # [N, d]
    *,
    scale_tril: Tensor | None = None,  # [N, d, d]
    threshold: float = THRESHOLDS["posterior"],
) -> EncoderVarianceSpectrum:
    r"""Mean encoder variance of each latent dimension, sorted, split into active and passive.

    .. math:: v_j = \mathrm{E}_x \exp(\mathrm{logvar}_j(x))

    For a decoder that is linear near the data, with Jacobian columns :math:`J_j` that are
    orthogonal, the best encoder has :math:`v_j = 1 / (1 + |J_j|^2 / \gamma)`: it goes to 0 with the
    decoder variance gamma where the dimension is used (active), and is 1 where it is not (passive).
    A converged model shows two groups and nothing between.

    With a full covariance :math:`\Sigma_z = L L^T`, v_j is the mean of the j-th smallest eigenvalue
    of :math:`\Sigma_z(x)`. Eigenvectors differ from sample to sample, so the values belong to
    ranks, not to latent dimensions.

    Args:
        logvar: [N, d] encoder log-variances, log sigma^2, over a data set, or
        scale_tril: L [N, d, d]; what stands above the diagonal is ignored.
        threshold: v below it counts as active.

    Returns:
        The variances [d] ascending in float64, the dimension each belongs to (with scale_tril its
        rank, 0 to d - 1), and both counts.

    Raises:
        ValueError: a shape other than [N, d] or [N, d, d], both or neither of the two, values that
            are not finite, a bad threshold.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> spectrum = encoder_variance_spectrum(torch.tensor([[0.0, -9.0, -7.0]]))
        >>> spectrum.order.tolist(), spectrum.active, spectrum.passive
        ([1, 2, 0], 2, 1)

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models", section 4, figure 2 and
    appendix I.
    """
    _check_threshold(threshold)
    sums, count = [], 0
    for values in _eigenvalues(logvar, scale_tril):
        sums.append(values.sum(0))
        count += len(values)
    variance, order = torch.sort(torch.stack(sums).sum(0) / count)
    active = int((variance < threshold).sum())
    return EncoderVarianceSpectrum(variance, order, active, len(variance) - active)


@torch.no_grad()
def encoder_variance_histogram(
    logvar: Tensor | None = None,  # [N, d]
    *,
    scale_tril: Tensor | None = None,  # [N, d, d]
    bins: int = 50,
    threshold: float = THRESHOLDS["posterior"],
) -> EncoderVarianceHistogram:
    r"""Histogram of the eigenvalues of the encoder's covariance, and how many are near 0.

    .. math::

        \hat r = \mathrm{E}_x \#\{ j : \lambda_j(x) < \mathrm{threshold} \},
        \quad \lambda_j(x) \text{ the eigenvalues of } \Sigma_z(x)

    :math:`\Sigma_z` is diag exp(logvar), whose eigenvalues are the variances themselves, or
    L L^T. Where the model has converged to a small decoder variance, r eigenvalues go to 0 and the
    others to 1: the histogram has two heaps, and r-hat estimates the dimension of the manifold on
    which the data lie. Values in between say that it has not, and that r-hat depends on the
    threshold. Unlike :func:`encoder_variance_spectrum`, which averages each dimension over the data
    first, this sees a dimension that is used for some of the data only.

    Args:
        logvar: [N, d] encoder log-variances, log sigma^2, over a data set, or
        scale_tril: L [N, d, d]; what stands above the diagonal is ignored.
        bins: how many, of equal width, over [0, 1].
        threshold: an eigenvalue below it counts as near 0.

    Returns:
        Counts over all samples, the bins' edges, the number of eigenvalues above 1, and r-hat.

    Raises:
        ValueError: as :func:`encoder_variance_spectrum`, or bins below 1.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> logvar = torch.tensor([[-9.0, -7.0, 0.0], [-9.0, -0.01, -0.01]])
        >>> histogram = encoder_variance_histogram(logvar, bins=2)
        >>> histogram.counts.tolist(), histogram.manifold_dimension
        ([3, 3], 1.5)

    Source: Dai and Wipf 2019, section 3, figure 15 and appendices C and I.
    """
    _check_threshold(threshold)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    above = near_zero = samples = 0
    counts = torch.zeros(bins, dtype=torch.int64)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    for values in _eigenvalues(logvar, scale_tril):
        inside = values[values <= 1]
        # by comparison with the edges that are returned; only the last bin holds its upper edge
        places = torch.bucketize(inside, edges.to(values.device), right=True) - 1
        counts += torch.bincount(places.clamp_(max=bins - 1), minlength=bins).cpu()
        above += values.numel() - len(inside)
        near_zero += int((values < threshold).sum())
        samples += len(values)
    return EncoderVarianceHistogram(counts, edges, above, near_zero / samples)


def _eigenvalues(logvar: Tensor | None, scale_tril: Tensor | None) -> Iterator[Tensor]:
    """The eigenvalues of every sample's covariance, [n, d] float64, in blocks of samples."""
    if (logvar is None) == (scale_tril is None):
        which = "neither" if logvar is None else "both"
        raise ValueError(f"exactly one of logvar and scale_tril must be given, got {which}")
    if logvar is not None:
        check_samples("logvar", logvar)
        for block in logvar.split(max(1, BLOCK_ELEMENTS // logvar.shape[1])):
            yield block.double().exp()
        return
    if (
        not isinstance(scale_tril, Tensor)
        or scale_tril.ndim != 3
        or (scale_tril.shape[1] != scale_tril.shape[2])
    ):
        raise ValueError(
            f"scale_tril must have shape [N, d, d], got {_checks.what(scale_tril)}; stack the "
            "Cholesky factors of all samples"
        )
    check_samples("scale_tril", scale_tril.flatten(1))
    for block in scale_tril.split(max(1, BLOCK_ELEMENTS // scale_tril[0].numel())):
        # singular values of L, squared: forming L L^T would lose the small eigenvalues
        yield torch.linalg.svdvals(block.double().tril()).square_().flip(1)


def _mean_variance(logvar: Tensor) -> Tensor:
    return logvar.double().exp().mean(0)
