"""Singular values of latent samples with known ones."""

from __future__ import annotations

import math

import pytest
import torch

from vaekern.diagnostics import latent_spectrum


def rotation(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator).double())[0]


def test_known_singular_values():
    values = torch.tensor([50.0, 7.0, 7.0, 1e-3], dtype=torch.float64)
    z = rotation(90, 4, 0) * values @ rotation(4, 4, 1).T
    spectrum = latent_spectrum(z)
    # absolute error of a singular value: rounding of the largest
    torch.testing.assert_close(spectrum.singular_values, values, rtol=1e-13, atol=50 * 2e-15)
    # as eigenvalues of the covariance, squared
    normalized = latent_spectrum(z, normalized=True)
    torch.testing.assert_close(
        normalized.singular_values**2,
        torch.linalg.eigvalsh(z.T @ z / 90).flip(0),
        rtol=1e-12,
        atol=1e-12,
    )


def test_a_mean_away_from_the_origin_counts():
    z = torch.zeros(16, 3) + torch.tensor([2.0, 0.0, 0.0])
    assert latent_spectrum(z).singular_values.tolist() == pytest.approx([8.0, 0, 0], abs=1e-14)


def test_the_reference_is_a_standard_normal_sample_of_the_same_size():
    z = torch.zeros(4000, 5, dtype=torch.float32)
    spectrum = latent_spectrum(z, generator=torch.Generator().manual_seed(3))
    draws = torch.randn(4000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(spectrum.reference, torch.linalg.svdvals(draws))
    again = latent_spectrum(z, normalized=True, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(again.reference, spectrum.reference / math.sqrt(4000))
    # all between 1 - sqrt(d / N) and 1 + sqrt(d / N), up to fluctuations of 1 / sqrt(N)
    assert (again.reference - 1).abs().max() < math.sqrt(5 / 4000) + 3 / math.sqrt(4000)


def test_fewer_samples_than_dimensions():
    z = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.bfloat16)
    spectrum = latent_spectrum(z)
    assert spectrum.singular_values.tolist() == [5.0]
    assert spectrum.reference.shape == (1,)


@pytest.mark.parametrize(
    ("z", "error", "word"),
    [
        (torch.zeros(3), ValueError, "[3]"),
        (torch.full((3, 2), math.nan), ValueError, "finite"),
        (torch.zeros(3, 2).long(), TypeError, "int64"),
    ],
)
def test_bad_input(z, error, word):
    with pytest.raises(error) as caught:
        latent_spectrum(z)
    assert word in str(caught.value)
