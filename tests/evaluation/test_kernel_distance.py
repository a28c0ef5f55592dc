"""The kernel distance against a naive sum over all pairs, and in closed form for Gaussians."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from vaekern.evaluation import kernel_distance

pytest.importorskip("torchmetrics")


def naive(a: Tensor, b: Tensor) -> float:
    """The unbiased estimator of a cubic kernel's MMD^2, pair by pair in float64."""
    d = a.shape[1]

    def k(x: Tensor, y: Tensor) -> float:
        return (float((x.double() * y.double()).sum()) / d + 1) ** 3

    def within(x: Tensor) -> float:
        n = len(x)
        pairs = [k(x[i], x[j]) for i in range(n) for j in range(n) if i != j]
        return sum(pairs) / (n * (n - 1))

    across = [k(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(across) / len(across)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_one_subset_of_everything_is_the_naive_sum():
    a, b = normal(12, 5, 0), 1.5 * normal(12, 5, 1) + 0.3
    found = kernel_distance(a, b, subsets=1)
    assert found.mean.dtype == torch.float64
    assert float(found.mean) == pytest.approx(naive(a, b), rel=1e-12)
    assert float(found.std) == 0
    again = kernel_distance(a, b, subsets=7)  # the same subset, in other orders
    assert float(again.mean) == pytest.approx(float(found.mean), rel=1e-12)


def test_gaussians_in_closed_form():
    """E (x.y/d + 1)^3 of independent x ~ N(m, I) and y ~ N(n, I), by the moments of x.y.

    With x = m + e and y = n + f: E x.y = m.n = s, x.y - s = m.f + n.e + e.f; the variance is
    |m|^2 + |n|^2 + d, and the third central moment 6 E (m.f)(n.e)(e.f) = 6 s.
    """
    d, n = 4, 20_000
    m = torch.tensor([0.5, 0.0, -0.5, 1.0]).double()

    def expected(u: Tensor, v: Tensor) -> float:
        s, variance = float(u @ v), float(u @ u + v @ v) + d
        raw = (s, variance + s**2, 6 * s + 3 * s * variance + s**3)
        return 1 + 3 * raw[0] / d + 3 * raw[1] / d**2 + raw[2] / d**3

    zero = torch.zeros(d).double()
    truth = expected(zero, zero) + expected(m, m) - 2 * expected(zero, m)
    a, b = normal(n, d, 0).double(), normal(n, d, 1).double() + m
    found = kernel_distance(a, b, subsets=40, subset_size=500)
    # The subsets draw on samples of 20,000 each: their mean is as good as the standard error over
    # 40 independent subsets of 500, four of which are allowed.
    assert abs(float(found.mean) - truth) < 4 * float(found.std) / math.sqrt(40)
    assert float(found.std) / math.sqrt(40) < 0.05 * truth


def test_equal_distributions_are_at_zero_on_average():
    values = [
        float(kernel_distance(normal(60, 3, 2 * s), normal(60, 3, 2 * s + 1), subsets=1).mean)
        for s in range(60)
    ]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert min(values) < 0  # unbiased
    assert abs(mean) < 4 * spread / math.sqrt(len(values))


def test_a_seed_chooses_the_subsets_and_nothing_else():
    a, b = normal(50, 3, 0), normal(50, 3, 1) + 1
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again, other = (
            kernel_distance(a, b, subsets=3, subset_size=20, seed=s).mean for s in (0, 0, 1)
        )
    assert torch.equal(state, torch.random.get_rng_state())
    assert float(first) == float(again) != float(other)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "word"),
    [
        ((torch.zeros(9), torch.zeros(9, 2)), {}, ValueError, "features_a"),
        ((torch.zeros(9, 2), torch.zeros(1, 2)), {}, ValueError, "at least 2"),
        ((torch.zeros(9, 2), torch.full((9, 2), torch.nan)), {}, ValueError, "features_b"),
        ((torch.zeros(9, 2), torch.zeros(9, 2)), {"subsets": 0}, ValueError, "got 0, 1000"),
        ((torch.zeros(9, 2), torch.zeros(9, 2)), {"subset_size": 1}, ValueError, "got 100, 1"),
    ],
)
def test_bad_input(arguments, options, error, word):
    with pytest.raises(error, match=word):
        kernel_distance(*arguments, **options)
