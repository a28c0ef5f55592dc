"""The maximum mean discrepancy against its definition, closed forms and invariances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vaekern.diagnostics import discrepancy, maximum_mean_discrepancy


def draw(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed)).double()


def by_definition(x: torch.Tensor, y: torch.Tensor, k, unbiased: bool) -> float:
    """The equation of the docstring, one pair at a time."""

    def within(a: torch.Tensor) -> float:
        n = len(a)
        pairs = [(i, j) for i in range(n) for j in range(n) if not unbiased or i != j]
        return math.fsum(k(a[i], a[j]) for i, j in pairs) / len(pairs)

    between = math.fsum(k(a, b) for a, b in itertools.product(x, y)) / (len(x) * len(y))
    return within(x) + within(y) - 2 * between


def imq(a: torch.Tensor, b: torch.Tensor) -> float:
    squared = float(((a - b) ** 2).sum())
    constants = [2 * len(a) * s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    return math.fsum(c / (c + squared) for c in constants)


@pytest.mark.parametrize("unbiased", [True, False])
def test_matches_the_definition(unbiased: bool):
    x, y = draw(7, 3), 0.5 + draw(5, 3, seed=1)
    assert float(maximum_mean_discrepancy(x, y, unbiased=unbiased)) == pytest.approx(
        by_definition(x, y, imq, unbiased), rel=1e-12
    )

    def rbf(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(-float(((a - b) ** 2).sum()) / (2 * 0.7**2))

    value = maximum_mean_discrepancy(x, y, kernel="rbf", bandwidth=0.7, unbiased=unbiased)
    assert float(value) == pytest.approx(by_definition(x, y, rbf, unbiased), rel=1e-12)


def test_two_points_in_closed_form():
    # k(0, 0) = 7 per within term, the distance between is sqrt(2): C/(C + 2) with C = 2 s
    x, y = torch.zeros(2, 1), torch.full((3, 1), math.sqrt(2.0), dtype=torch.float64)
    cross = sum(2 * s / (2 * s + 2) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))
    assert float(maximum_mean_discrepancy(x, y)) == pytest.approx(2 * (7 - cross), rel=1e-12)


def test_blocks_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch):
    x, y = draw(50, 4), draw(37, 4, seed=1)
    whole = maximum_mean_discrepancy(x, y)
    monkeypatch.setattr(discrepancy, "BLOCK_ELEMENTS", 130)  # blocks of 2 and 3 rows, a ragged end
    assert float(maximum_mean_discrepancy(x, y)) == pytest.approx(float(whole), rel=1e-12)


def test_gaussian_kernel_of_gaussians_in_closed_form():
    # E exp(-|a - b|^2 / 2h^2) = (h^2 / (h^2 + v))^(d/2) exp(-m^2 / 2(h^2 + v)),
    # v the variance and m the mean of a - b
    h2, shift, dims = 2.0, 0.8, 2
    scale = (h2 / (h2 + 2)) ** (dims / 2)
    expected = 2 * scale * (1 - math.exp(-dims * shift**2 / (2 * (h2 + 2))))
    values = [
        float(
            maximum_mean_discrepancy(
                draw(400, dims, seed) + shift,
                draw(400, dims, seed + 100),
                kernel="rbf",
                bandwidth=math.sqrt(h2),
            )
        )
        for seed in range(20)
    ]
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    assert abs(mean - expected) < 4 * spread / len(values) ** 0.5


def test_unbiased_averages_zero_and_biased_is_never_negative():
    values = torch.stack(
        [maximum_mean_discrepancy(draw(40, 3, s), draw(40, 3, s + 1000)) for s in range(60)]
    )
    assert values.min() < 0 < values.max()
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert maximum_mean_discrepancy(draw(9, 3), draw(9, 3, 1), unbiased=False) > 0
    same = draw(9, 3)
    assert abs(float(maximum_mean_discrepancy(same, same, unbiased=False))) < 1e-14


def test_symmetric_and_blind_to_translation_far_from_the_origin():
    x, y = draw(30, 5), 0.3 + draw(20, 5, seed=1)
    value = float(maximum_mean_discrepancy(x, y))
    assert float(maximum_mean_discrepancy(y, x)) == pytest.approx(value, rel=1e-12)
    # rounding of the shifted coordinates themselves is 1e8 * 2^-53
    assert float(maximum_mean_discrepancy(x + 1e8, y + 1e8)) == pytest.approx(value, rel=1e-6)


def test_bandwidth_is_a_unit_of_length():
    x, y = draw(30, 5), 0.3 + draw(20, 5, seed=1)
    for kernel in ("imq", "rbf"):
        small = maximum_mean_discrepancy(x, y, kernel=kernel, bandwidth=1.0)  # type: ignore[arg-type]
        large = maximum_mean_discrepancy(3 * x, 3 * y, kernel=kernel, bandwidth=3.0)  # type: ignore[arg-type]
        assert float(large) == pytest.approx(float(small), rel=1e-12)
    # the median heuristic scales by itself
    one = maximum_mean_discrepancy(x, y, kernel="rbf")
    assert float(maximum_mean_discrepancy(3 * x, 3 * y, kernel="rbf")) == pytest.approx(float(one))
    median = torch.pdist(torch.cat([x, y])).median()
    stated = maximum_mean_discrepancy(x, y, kernel="rbf", bandwidth=float(median))
    assert float(one) == pytest.approx(float(stated), rel=1e-12)


def test_default_y_is_standard_normal_and_reproducible():
    x = draw(300, 4)

    def value(x: torch.Tensor, seed: int) -> float:
        return float(maximum_mean_discrepancy(x, generator=torch.Generator().manual_seed(seed)))

    assert value(x, 3) == value(x, 3) != value(x, 4)
    y = torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert value(x, 3) == float(maximum_mean_discrepancy(x, y))
    assert abs(value(x, 3)) < 0.02 < 0.2 < value(2 * x, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float64(dtype: torch.dtype):
    x = draw(20, 3).to(dtype)
    value = maximum_mean_discrepancy(x, x[:10] + 1)
    assert value.dtype == torch.float64
    assert torch.equal(value, maximum_mean_discrepancy(x.double(), (x[:10] + 1).double()))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "word"),
    [
        ((torch.zeros(4),), {}, ValueError, "[4]"),
        ((torch.zeros(1, 2),), {}, ValueError, "at least 2"),
        ((torch.zeros(4, 2, dtype=torch.int64),), {}, TypeError, "int64"),
        ((torch.zeros(4, 2, dtype=torch.complex64),), {}, TypeError, "complex64"),
        (([[0.0]],), {}, TypeError, "list"),
        ((torch.full((4, 2), float("nan")),), {}, ValueError, "finite"),
        ((torch.zeros(4, 2), torch.zeros(4, 3)), {}, ValueError, "3 and 2"),
        ((torch.zeros(4, 2), torch.zeros(4, 2, device="meta")), {}, ValueError, "meta"),
        ((torch.zeros(4, 2),), {"kernel": "cubic"}, ValueError, "cubic"),
        ((torch.zeros(4, 2),), {"bandwidth": 0.0}, ValueError, "bandwidth"),
        ((torch.zeros(4, 2),), {"bandwidth": float("nan")}, ValueError, "bandwidth"),
        ((torch.zeros(4, 2), torch.zeros(4, 2)), {"kernel": "rbf"}, ValueError, "coincide"),
    ],
)
def test_bad_input(arguments, options, error, word):
    with pytest.raises(error) as caught:
        maximum_mean_discrepancy(*arguments, **options)
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
