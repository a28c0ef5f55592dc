"""Disentanglement scores against closed forms, brute force and a table by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vaekern.diagnostics import disentanglement_score

pytest.importorskip("sklearn")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_factors_in_another_order_and_scale_score_near_1():
    # n = 1600 learn. The mean of 5 neighbours of a uniform factor misses it by a standard deviation
    # of 5 / n / sqrt(12 * 5) = 0.65 / n and, among the 5 / n at the ends, by up to 2.5 / n; with
    # sd(w) = 1 / sqrt(12) that is 1 - A = 2.3 / n. Independent latents score 1 - sqrt(1 + 1 / 5)
    # = -0.10, floored to 0, with a standard error of 0.03: a second best of at most 0.01.
    factors = torch.rand(2000, 3, generator=generator())
    result = disentanglement_score(
        factors[:, [2, 0, 1]] * torch.tensor([1e-3, -5.0, 1e4]), factors, generator=generator(1)
    )
    assert result.score > 1 - 0.01 - 6 / 1600
    assert result.matrix.argmax(1).tolist() == [1, 2, 0]
    assert (result.matrix.amax(1) > 1 - 6 / 1600).all()
    assert torch.allclose(result.per_factor.mean(), result.score)


def test_gaussian_factors_in_closed_form():
    # Codes c w_1 + s w_2 leave w_1 the variance 1 - c^2; the mean of 5 neighbours adds a fifth.
    # 4000 squared errors give the RMSE a relative standard error of 1 / sqrt(2 * 4000) = 0.011,
    # a bit more as neighbours are shared: 4 of it.
    w = torch.randn(20_000, 2, generator=generator())
    c, s = math.cos(0.3), math.sin(0.3)
    codes = w @ torch.tensor([[c, -s], [s, c]])
    result = disentanglement_score(codes, w, generator=generator(1))
    tells, less = (max(0.0, 1 - math.sqrt(1.2 * (1 - q**2))) for q in (c, s))
    expected = torch.tensor([[tells, less], [less, tells]], dtype=torch.float64)
    assert torch.allclose(result.matrix, expected, rtol=0, atol=0.05)

    half = w @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    result = disentanglement_score(half, w, generator=generator(1))
    assert result.score < 0.05
    assert torch.allclose(
        result.matrix, torch.full((2, 2), 1 - math.sqrt(0.6)).double(), rtol=0, atol=0.05
    )


def test_independent_codes_score_near_0():
    codes = torch.randn(4000, 3, generator=generator(2))
    factors = torch.rand(4000, 2, generator=generator(3))
    assert disentanglement_score(codes, factors, generator=generator()).score == 0  # floored
    # 19 x 19 spare degrees of freedom leave some 361 / 8000 nats of 3: the gap of two such is less
    assert disentanglement_score(codes, factors, method="mig").score < 0.015


def brute_force(codes, factors, whole, seed):
    """A by sorting all distances, class_scale "gain"."""
    rows = torch.randperm(len(codes), generator=generator(seed)).numpy()
    held = round(0.2 * len(codes))
    test, train = rows[:held], rows[held:]
    matrix = np.zeros((factors.shape[1], codes.shape[1]))
    for i, w in enumerate(factors.T):
        for j, z in enumerate(codes.T):
            near = np.abs(z[test][:, None] - z[train][None]).argsort(1, kind="stable")[:, :5]
            votes = w[train][near]
            if whole[i]:
                share = max(np.mean(w == value) for value in w)
                guess = [min(sorted(set(v)), key=lambda c, v=v: -np.sum(v == c)) for v in votes]
                a = (np.mean(np.array(guess) == w[test]) - share) / (1 - share)
            else:
                a = 1 - np.sqrt(np.mean((votes.mean(1) - w[test]) ** 2)) / w.std()
            matrix[i, j] = max(a, 0)
    return matrix


def test_neighbours_by_brute_force():
    g = np.random.default_rng(0)
    codes = g.normal(size=(150, 4))
    classes = (codes[:, 0] > 0.3) * 1.0 + (codes[:, 1] > 1)
    factors = np.stack([codes[:, 2] + 0.3 * codes[:, 3], 7 - 3 * classes], 1)
    result = disentanglement_score(
        torch.from_numpy(codes),
        torch.from_numpy(factors),
        discrete=[False, True],
        generator=generator(5),
    )
    expected = brute_force(codes, factors, [False, True], 5)
    assert np.allclose(result.matrix, expected, atol=1e-12)
    ordered = np.sort(expected, 1)
    assert np.allclose(result.per_factor, ordered[:, -1] - ordered[:, -2], atol=1e-12)


def test_classes_count_from_the_best_constant_prediction():
    # 3 of 4 samples are of one class; latent 0 tells all, latent 1 is constant, 2 and 3 are none
    label = (torch.arange(400) % 4 == 0).long()[:, None]
    codes = torch.cat([label * 2.0, torch.ones(400, 1)], 1)
    gain = disentanglement_score(codes, label, generator=generator())
    assert gain.matrix.tolist() == [[1, 0]]
    assert gain.score == 1
    ratio = disentanglement_score(codes, label, class_scale="accuracy", generator=generator())
    assert ratio.matrix.tolist() == [[pytest.approx(4 / 3), 1]]
    assert ratio.score.item() == pytest.approx(1 / 3)
    # ten classes at 1 / 10 would give 10 - 1: clipped
    many = torch.arange(400)[:, None] % 10
    codes = torch.cat([many * 2.0, torch.ones(400, 1)], 1)
    ratio = disentanglement_score(codes, many, class_scale="accuracy", generator=generator())
    assert ratio.matrix.tolist() == [[pytest.approx(10), 1]]
    assert ratio.score == 1


def test_one_latent_is_measured_against_a_constant():
    label = (torch.arange(400) % 4 == 0)[:, None]
    codes = label.float()
    assert disentanglement_score(codes, label, method="mig").score == 1
    assert disentanglement_score(codes, label, generator=generator()).score == 1
    ratio = disentanglement_score(codes, label, class_scale="accuracy", generator=generator())
    assert ratio.score.item() == pytest.approx(1 / 3)


def test_mutual_information_gap_of_a_table_by_hand():
    # (w, z) counts [[3, 1], [1, 3]]: I = ln 2 - H(1/4) and H(w) = ln 2. Latent 1 is independent
    # of w, latent 2 is a copy.
    w = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    part = torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 0])
    free = torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])
    h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = 1 - h / math.log(2)
    for bins in (2, 20):
        result = disentanglement_score(torch.stack([free, part], 1), w, method="mig", bins=bins)
        assert result.matrix[0].tolist() == pytest.approx([0, expected], abs=1e-15)
        assert result.score.item() == pytest.approx(expected, abs=1e-15)
    both = torch.stack([part, free, w[:, 0] * 3.0], 1)
    result = disentanglement_score(both, w, method="mig")
    assert result.score.item() == pytest.approx(1 - expected, abs=1e-15)
    # three unlike classes against two bins: H(w) = 1.5 ln 2 of 1/2, 1/4, 1/4, and I = ln 2
    w = torch.tensor([5, 5, 5, 5, -2, -2, 9, 9])[:, None]
    z = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    result = disentanglement_score(z, w, method="mig")
    assert result.score.item() == pytest.approx(2 / 3, abs=1e-15)


def test_bins_have_equal_width():
    # 0.24 and 0.26 of the range lie on either side of the first of four bins' end
    z = torch.tensor([[0.0], [0.24], [0.26], [1.0]])
    w = torch.tensor([0, 0, 1, 2])[:, None]
    assert disentanglement_score(z, w, method="mig", bins=4).score == 1
    # in three bins all but 1 are one: 1/4 ln 4 + 3/4 ln (4/3) of H(w) = 1.5 ln 2
    information = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert disentanglement_score(z, w, method="mig", bins=3).score.item() == pytest.approx(
        information / (1.5 * math.log(2))
    )
    # a continuous factor is binned alike: z in four bins, its square in one and another
    assert disentanglement_score(z**2, z, method="mig", bins=4).score.item() == pytest.approx(
        information / (1.5 * math.log(2))
    )


def test_types_decide_what_is_discrete_and_layout_does_not_matter():
    w = (torch.arange(200) % 3)[:, None]
    codes = torch.randn(3, 200, generator=generator()).half().T
    for kind in (torch.int64, torch.uint8, torch.int16):
        same = disentanglement_score(codes, w.to(kind), generator=generator(1))
        assert torch.equal(
            same.matrix,
            disentanglement_score(
                codes.contiguous(), w.float(), discrete=True, generator=generator(1)
            ).matrix,
        )
    continuous = disentanglement_score(codes, w.float(), generator=generator(1))
    assert not torch.equal(continuous.matrix, same.matrix)
    assert torch.equal(
        continuous.matrix,
        disentanglement_score(codes, w, discrete=False, generator=generator(1)).matrix,
    )


CODES, FACTORS = torch.randn(20, 2), torch.randn(20, 2)


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: disentanglement_score(CODES, FACTORS[:9]), ValueError, "9 and 20"),
        (lambda: disentanglement_score(CODES.long(), FACTORS), TypeError, "codes"),
        (lambda: disentanglement_score(CODES / 0, FACTORS), ValueError, "codes must be finite"),
        (lambda: disentanglement_score(CODES, FACTORS * math.nan), ValueError, "factors must be"),
        (lambda: disentanglement_score(CODES, FACTORS + 1j), TypeError, "real"),
        (lambda: disentanglement_score(CODES, FACTORS[:, 0]), ValueError, "[N, d], got [20]"),
        (lambda: disentanglement_score(CODES[:0], FACTORS[:0]), ValueError, "at least 1"),
        (
            lambda: disentanglement_score(CODES, FACTORS * torch.tensor([1, 0])),
            ValueError,
            "constant in column 1",
        ),
        (lambda: disentanglement_score(CODES[:5], FACTORS[:5]), ValueError, "got 5 in all"),
        (lambda: disentanglement_score(CODES, FACTORS, discrete=[True]), ValueError, "1 for 2"),
        (lambda: disentanglement_score(CODES, FACTORS, method="kn"), ValueError, "'knn'?"),  # type: ignore[arg-type]
        (lambda: disentanglement_score(CODES, FACTORS, class_scale="x"), ValueError, "gain"),  # type: ignore[arg-type]
        (lambda: disentanglement_score(CODES, FACTORS, neighbours=0), ValueError, "got 0"),
        (lambda: disentanglement_score(CODES, FACTORS, bins=1), ValueError, "got 1"),
    ],
)
def test_bad_input(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value)
    assert ". " not in str(caught.value)
