"""The Frechet distance against closed forms of Gaussians."""

from __future__ import annotations

import warnings

import pytest
import torch

from vaekern.evaluation import frechet_distance


def sample_with(mean: torch.Tensor, covariance: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Points whose sample mean and covariance are exactly the given ones."""
    dims = len(mean)
    points = torch.randn(
        4 * dims + 3, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    points = points - points.mean(0)
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(torch.cov(points.T)), points.T, upper=False
    ).T
    return mean + whitened @ torch.linalg.cholesky(covariance).T


def random_covariance(dims: int, seed: int) -> torch.Tensor:
    root = torch.randn(
        dims, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return root @ root.T / dims + 0.1 * torch.eye(dims, dtype=torch.float64)


def test_diagonal_covariances_in_closed_form():
    # |m|^2 + sum_i (s_i - t_i)^2 with standard deviations s and t
    s, t = torch.tensor([1.0, 2, 0.5]).double(), torch.tensor([3.0, 0.1, 0.5]).double()
    mean = torch.tensor([1.0, -2, 0.5]).double()
    a = sample_with(torch.zeros(3).double(), torch.diag(s**2))
    b = sample_with(mean, torch.diag(t**2), seed=1)
    expected = float((mean**2).sum() + ((s - t) ** 2).sum())
    assert float(frechet_distance(a, b)) == pytest.approx(expected, rel=1e-12)


def test_full_covariances_against_the_root_of_their_product():
    # the eigenvalues of S_a S_b are those of the docstring's root, squared
    one, two = random_covariance(6, 1), random_covariance(6, 2)
    mean = torch.ones(6).double()
    a, b = sample_with(mean, one), sample_with(-mean, two, seed=1)
    overlap = torch.linalg.eigvals(one @ two).real.sqrt().sum()
    expected = float(4 * 6 + one.trace() + two.trace() - 2 * overlap)
    assert float(frechet_distance(a, b)) == pytest.approx(expected, rel=1e-11)
    assert float(frechet_distance(b, a)) == pytest.approx(expected, rel=1e-11)


def test_distance_to_itself_is_zero_even_when_singular():
    a = sample_with(torch.zeros(5).double(), random_covariance(5, 3))
    assert float(frechet_distance(a, a)) < 1e-13
    # three features that are always zero: an eigenvalue root would leave about 1e-8 here
    padded = torch.cat([a, torch.zeros(len(a), 3)], 1)
    assert float(frechet_distance(padded, padded)) < 1e-13
    assert float(frechet_distance(padded, padded + 2)) == pytest.approx(4 * 8, rel=1e-13)


def test_float32_features_are_computed_in_float64():
    a = sample_with(torch.full((4,), 1000.0).double(), random_covariance(4, 4)).float()
    b = a + 0.25  # exact in float32, so only the mean differs
    value = frechet_distance(a, b)
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(4 * 0.25**2, rel=1e-9)


def test_torchmetrics_gives_the_same_number():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Given(torch.nn.Module):
        num_features = 5

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features

    a = sample_with(torch.ones(5).double(), random_covariance(5, 5))
    b = sample_with(torch.zeros(5).double(), random_covariance(5, 6), seed=1)
    metric = fid.FrechetInceptionDistance(Given())
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert float(frechet_distance(a, b)) == pytest.approx(float(metric.compute()), rel=1e-12)


def test_one_dimension():
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[-2.0], [2.0]])
    assert float(frechet_distance(a, b)) == pytest.approx(2.0)  # (sqrt 2 - sqrt 8)^2


def test_too_few_samples_warn_in_one_sentence_at_the_callers_line():
    few, many = torch.randn(4, 4), torch.randn(5, 4)
    with pytest.warns(UserWarning, match="features_b holds 4 samples of 4 dimensions") as caught:
        frechet_distance(many, few)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(many, many)


@pytest.mark.parametrize(
    ("a", "b", "error", "word"),
    [
        (torch.zeros(9), torch.zeros(9, 2), ValueError, "features_a"),
        (torch.zeros(9, 2), torch.zeros(9, 3), ValueError, "3 and 2"),
        (torch.zeros(9, 2), torch.zeros(1, 2), ValueError, "at least 2"),
        (torch.zeros(9, 2), torch.full((9, 2), float("nan")), ValueError, "features_b"),
        (torch.zeros(9, 2).int(), torch.zeros(9, 2), TypeError, "int32"),
    ],
)
def test_bad_input(a, b, error, word):
    with pytest.raises(error, match=word):
        frechet_distance(a, b)
