"""The kernel distance between two samples: the KID, where the features are Inception's."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaekern._optional import require
from vaekern.diagnostics._checks import check_samples

SUBSETS = 100
SUBSET_SIZE = 1000


class KernelDistance(NamedTuple):
    """Result of :func:`kernel_distance`, 0-d float64 tensors."""

    mean: Tensor
    std: Tensor  # over the subsets


class _Given(nn.Module):
    """torchmetrics wants a network; the features are there already."""

    def forward(self, features: Tensor) -> Tensor:
        return features


def kernel_distance(
    features_a: Tensor,  # [N, d]
    features_b: Tensor,  # [M, d]
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KernelDistance:
    r"""Squared maximum mean discrepancy of two samples under the cubic kernel of the KID.

    .. math::

        \mathrm{KD} = \mathrm{mean}_{i \neq j} k(a_i, a_j) + \mathrm{mean}_{i \neq j} k(b_i, b_j)
            - 2 \, \mathrm{mean}_{i, j} k(a_i, b_j), \quad k(x, y) = (x \cdot y / d + 1)^3

    Unbiased, hence sometimes below zero; unlike the Frechet distance it needs no covariance, and
    fewer samples. It is averaged over random subsets. Computed by torchmetrics, in float64. Some
    tables show it times 1000, or times 100.

    Args:
        features_a: [N, d] features of one sample.
        features_b: [M, d] features of the other.
        subsets: how many.
        subset_size: of each sample; all of the smaller one where it has fewer.
        seed: of the choice of subsets. The global random state is left alone.

    Raises:
        ValueError: shapes or devices that do not fit, fewer than 2 samples, values that are not
            finite, or a count below its least.
        TypeError: an argument that is no floating-point tensor.
        ModuleNotFoundError: torchmetrics is not installed.

    Example:
        >>> a = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        >>> found = kernel_distance(a, a + 1, subsets=5, subset_size=200)
        >>> bool(found.mean > 3), bool(found.std < found.mean)
        (True, True)

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    check_samples("features_a", features_a, at_least=2)
    check_samples("features_b", features_b, at_least=2, beside=("features_a", features_a))
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            f"subsets must be at least 1 and subset_size at least 2, got {subsets}, {subset_size}"
        )
    kid = require("torchmetrics.image.kid", "the kernel distance", extra="eval")
    size = min(subset_size, len(features_a), len(features_b))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        torch.manual_seed(seed)
        metric = kid.KernelInceptionDistance(_Given(), subsets=subsets, subset_size=size)
        metric.update(features_a.double(), real=True)
        metric.update(features_b.double(), real=False)
        mean, std = metric.compute()
    return KernelDistance(mean, std)
