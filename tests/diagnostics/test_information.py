"""Mutual information: the definitions pair by pair, closed forms, and the calibration numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from vaekern.diagnostics import information, mutual_information


def gaussian_channel(
    count: int, dims: int, variance: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """z = mu + noise with q(z) = N(0, I) exactly: I(x; z) = E KL = -(d / 2) log sigma^2."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn(count, dims, generator=generator).double() * math.sqrt(1 - variance)
    return mu, torch.full_like(mu, math.log(variance)), generator


@pytest.fixture
def encoder() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mu, logvar, noise = torch.randn(3, 23, 3, generator=generator).double()
    return mu, logvar, mu + (0.5 * logvar).exp() * noise


def test_matches_the_definitions_pair_by_pair(encoder):
    mu, logvar, z = encoder
    count = len(mu)
    posterior = [Independent(Normal(m, (v / 2).exp()), 1) for m, v in zip(mu, logvar, strict=True)]
    lower = leave_one_out = upper = 0.0
    for i, q in enumerate(posterior):
        density = [math.exp(p.log_prob(z[i])) for p in posterior]
        others = math.fsum(density[:i] + density[i + 1 :]) / (count - 1)
        lower += math.log(density[i]) - math.log(math.fsum(density) / count)
        leave_one_out += -float(q.entropy()) - math.log(others)
        prior = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
        upper += float(torch.distributions.kl_divergence(q, prior))
    found = mutual_information(mu, logvar, z=z)
    assert [float(v) * count for v in found] == pytest.approx(
        [lower, upper, leave_one_out], rel=1e-12
    )


def test_leave_one_out_is_d1_for_one_variance():
    mu, logvar, generator = gaussian_channel(40, 2, 0.3)
    z = mu + math.sqrt(0.3) * torch.randn(40, 2, generator=generator)
    total = 0.0
    for i in range(40):
        squared = ((z[i] - torch.cat([mu[:i], mu[i + 1 :]])) ** 2).sum(1)
        total += -math.log(float(torch.exp(-squared / (2 * 0.3)).mean())) - 2 / 2
    found = mutual_information(mu, logvar, z=z).leave_one_out
    assert float(found) == pytest.approx(total / 40, rel=1e-12)


def test_groups_that_are_told_apart_carry_the_log_of_their_number():
    # 5 places, each held by 4 samples that nothing distinguishes; 1000 sigma apart. The expanded
    # squared distances have terms of 8 / sigma^2 = 8e6, which round by 1e-9.
    mu = torch.arange(5.0).repeat(4)[:, None].expand(20, 2)
    found = mutual_information(mu, torch.full((20, 2), math.log(1e-6)))
    assert float(found.lower) == pytest.approx(math.log(5), abs=4e-9)


def test_one_place_carries_nothing():
    mu, logvar = torch.full((9, 3), 2.0), torch.zeros(9, 3)
    found = mutual_information(mu, logvar)
    assert abs(float(found.lower)) < 1e-14
    assert float(found.upper) == pytest.approx(3 * 4 / 2, rel=1e-14)


def test_the_calibration_of_the_paper_s_estimate():
    # d = 8, sigma_z^2 = .00445: 21.7 nats; the self term saturates at log N, without it the value
    # is nine times too large: 201.2 with a standard deviation of 2.2 over 12 seeds
    mu, logvar, generator = gaussian_channel(2000, 8, 0.00445)
    found = mutual_information(mu, logvar, generator=generator)
    assert float(found.lower) == pytest.approx(math.log(2000), abs=1e-3)
    # E KL over 2000 draws of mu: the standard deviation of |mu|^2 / 2 is 2, of its mean 0.045
    assert float(found.upper) == pytest.approx(-4 * math.log(0.00445), abs=0.18)
    assert 190 < float(found.leave_one_out) < 212


def test_bounds_enclose_the_information_of_a_gaussian_channel():
    exact = -math.log(0.05)  # d = 2: 3.0 nats, which 2000 samples can tell
    mu, logvar, generator = gaussian_channel(2000, 2, 0.05)
    found = mutual_information(mu, logvar, generator=generator)
    # each mean's standard deviation over 2000 samples is below 0.03
    assert exact - 0.25 < float(found.lower) < exact + 0.1
    assert exact - 0.1 < float(found.leave_one_out) < exact + 0.3
    assert float(found.lower) < float(found.leave_one_out)


def test_blocks_and_the_origin_do_not_change_the_values(encoder, monkeypatch: pytest.MonkeyPatch):
    mu, logvar, z = encoder
    whole = mutual_information(mu, logvar, z=z)
    monkeypatch.setattr(information, "BLOCK_ELEMENTS", 23 * 5)  # 5 rows, a ragged end
    assert [float(v) for v in mutual_information(mu, logvar, z=z)] == pytest.approx(
        [float(v) for v in whole], rel=1e-12
    )
    # rounding of the shifted codes themselves is 1e6 * 2^-53
    shifted = mutual_information(mu + 1e6, logvar, z=z + 1e6)
    assert float(shifted.lower) == pytest.approx(float(whole.lower), rel=1e-8)


def test_the_draw_is_reproducible_and_from_the_posterior(encoder):
    mu, logvar, _ = encoder

    def lower(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return float(mutual_information(mu, logvar, generator=generator).lower)

    assert lower(3) == lower(3) != lower(4)
    noise = torch.randn(23, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z = mu + (0.5 * logvar).exp() * noise
    assert lower(3) == pytest.approx(float(mutual_information(mu, logvar, z=z).lower), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float64(encoder, dtype: torch.dtype):
    low = [t.to(dtype) for t in encoder]
    found = mutual_information(low[0], low[1], z=low[2])
    exact = mutual_information(low[0].double(), low[1].double(), z=low[2].double())
    assert found.lower.dtype == torch.float64
    assert found == exact


@pytest.mark.parametrize(
    ("arguments", "options", "error", "word"),
    [
        ((torch.zeros(1, 2), torch.zeros(1, 2)), {}, ValueError, "at least 2"),
        ((torch.zeros(3, 2), torch.zeros(4, 2)), {}, ValueError, "4 and 3"),
        ((torch.zeros(3, 2), torch.full((3, 2), -800.0)), {}, ValueError, "got -800"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {"z": torch.zeros(2, 2)}, ValueError, "2 and 3"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {"z": torch.zeros(3, 1)}, ValueError, "1 and 2"),
        (
            (torch.zeros(3, 2), torch.zeros(3, 2)),
            {"z": torch.zeros(3, 2), "generator": torch.Generator()},
            ValueError,
            "not both",
        ),
    ],
)
def test_bad_input(arguments, options, error, word):
    with pytest.raises(error) as caught:
        mutual_information(*arguments, **options)
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
