"""The Frechet distance between two samples, each taken as a Gaussian."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from vaekern.diagnostics._checks import check_samples


@torch.no_grad()
def frechet_distance(
    features_a: Tensor,  # [N, d]
    features_b: Tensor,  # [M, d]
) -> Tensor:  # []
    r"""Squared Frechet (2-Wasserstein) distance between Gaussians fitted to two samples.

    .. math::

        \mathrm{FD} = |m_a - m_b|^2
            + \mathrm{tr}\left(S_a + S_b - 2 (S_a S_b)^{1/2}\right)

    with the sample means m and covariances S (divisor N - 1). With Inception features this is the
    FID; with any other features it is not, and carries another name.

    The trace of the root is the sum of the singular values of :math:`S_a^{1/2} S_b^{1/2}`, whose
    two factors come from symmetric eigendecompositions. Taking those singular values directly,
    rather than roots of the eigenvalues of a product, keeps full precision when covariances are
    singular, as they are with features that are always zero.

    Args:
        features_a: [N, d] features of one sample.
        features_b: [M, d] features of the other.

    Returns:
        A 0-d float64 tensor, in the squared unit of the features; 0 when both are the same.

    Warns:
        UserWarning: a sample has no more rows than dimensions: its covariance is singular, and the
            distance comes out too large.

    Raises:
        ValueError: shapes or devices that do not fit, fewer than 2 samples, or values that are not
            finite.
        TypeError: an argument that is no floating-point tensor.

    Example:
        >>> a = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> round(float(frechet_distance(a, a + 1)), 4), round(float(frechet_distance(a, a)), 6)
        (4.0, 0.0)

    Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local
    Nash equilibrium", equation 6; Dowson and Landau 1982 for the distance.
    """
    check_samples("features_a", features_a, at_least=2)
    check_samples("features_b", features_b, at_least=2, beside=("features_a", features_a))
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        count, dims = features.shape
        if count <= dims:
            warnings.warn(
                f"{name} holds {count} samples of {dims} dimensions, so its covariance is singular "
                f"and the Frechet distance is biased upwards; use more than {dims} samples",
                stacklevel=3,  # no_grad's wrapper stands between this frame and the caller's
            )
    mean_a, covariance_a = _moments(features_a)
    mean_b, covariance_b = _moments(features_b)
    overlap = torch.linalg.svdvals(_root(covariance_a) @ _root(covariance_b)).sum()
    distance = (mean_a - mean_b).square().sum()
    distance = distance + covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return torch.clamp(distance, min=0)  # rounding alone can take it below


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues that rounding made negative are zero."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
