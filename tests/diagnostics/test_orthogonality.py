"""Distance to orthogonality against brute force, a mixed-integer programme and random rotations."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vaekern.diagnostics import (
    distance_to_orthogonality,
    orthogonality,
    random_rotation_baseline,
)

scipy_optimize = pytest.importorskip("scipy.optimize")


def rotation(d: int, seed: int) -> Tensor:
    normal = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(normal).Q


def with_right_vectors(V: Tensor, rows: int | None = None) -> Tensor:
    """J [1, m, d] = U S V^T with singular values d, d - 1, ..., 1: V up to signs."""
    d = V.shape[-1]
    U = rotation(rows or d + 2, 99)[:, :d]
    return (U * torch.arange(d, 0, -1.0, dtype=torch.float64) @ V.T)[None]


def hadamard(d: int) -> Tensor:
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < d:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H / math.sqrt(d)


def signed_permutations(d: int) -> Tensor:
    eye = torch.eye(d, dtype=torch.float64)
    return torch.stack(
        [
            eye[list(order)] * torch.tensor(signs, dtype=torch.float64)
            for order in itertools.permutations(range(d))
            for signs in itertools.product((1, -1), repeat=d)
        ]
    )


def nearest_by_integer_programme(V: np.ndarray) -> np.ndarray:
    """min sum T over P = A - B, A and B binary with one entry in each row and column, |V - P| <= T:
    equation 29 as it is written, the absolute values left to the solver."""
    d = len(V)
    eye, one = np.eye(d * d), np.ones(d)
    lines = np.vstack([np.kron(np.eye(d), one), np.kron(one, np.eye(d))])
    zero = np.zeros_like(lines)
    constraints = [
        scipy_optimize.LinearConstraint(np.hstack([lines, lines, zero]), 1, 1),
        scipy_optimize.LinearConstraint(np.hstack([eye, -eye, eye]), V.ravel(), np.inf),
        scipy_optimize.LinearConstraint(np.hstack([-eye, eye, eye]), -V.ravel(), np.inf),
    ]
    result = scipy_optimize.milp(
        np.repeat([0.0, 0.0, 1.0], d * d),
        constraints=constraints,
        integrality=np.repeat([1, 1, 0], d * d),
        bounds=scipy_optimize.Bounds(0, np.repeat([1.0, 1.0, 2.0], d * d)),
    )
    assert result.success
    A, B, _ = np.round(result.x).reshape(3, d, d)
    return A - B


# V of a float64 J with singular values a unit apart errs by some 1e-15
CLOSE = {"rel": 0, "abs": 1e-11}


# ------------------------------------------------------------------ the distance


def test_orthogonal_columns_of_different_lengths():
    d = 6
    J = torch.diag(2.0 ** -torch.arange(d))
    J = torch.stack([J, J[:, torch.tensor([3, 0, 5, 1, 2, 4])], -J.flip(1)])
    result = distance_to_orthogonality(torch.cat([J, torch.zeros(3, 4, d)], 1))
    assert result.full.tolist() == result.active.tolist() == [0, 0, 0]
    assert result.off_diagonal.tolist() == [0, 0, 0]
    assert result.gaps.tolist() == [[0.5] * (d - 1)] * 3
    assert all(values.dtype == torch.float64 for values in result)
    # columns of a rotation, each of its own length, 15 orders of magnitude apart
    lengths = 10.0 ** -torch.arange(0, 18, 3, dtype=torch.float64)
    assert float(distance_to_orthogonality((rotation(9, 0)[:, :d] * lengths)[None]).full) < 1e-6


def test_two_dimensions_in_closed_form():
    # a rotation by t has |V - P|^2 = 4 - 4 max(|cos t|, |sin t|)
    for angle in (0.1, 0.7, math.pi / 4, 1.2, 2.0):
        c, s = math.cos(angle), math.sin(angle)
        V = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        expected = math.sqrt(4 - 4 * max(abs(c), abs(s)))
        assert float(distance_to_orthogonality(with_right_vectors(V)).full) == pytest.approx(
            expected, **CLOSE
        )


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_equals_brute_force_over_all_signed_permutations(d: int):
    candidates = signed_permutations(d)
    for seed in range(25):
        V = rotation(d, seed)
        nearest = candidates[(V - candidates).abs().sum((1, 2)).argmin()]
        assert float(distance_to_orthogonality(with_right_vectors(V)).full) == pytest.approx(
            float((V - nearest).norm()), **CLOSE
        )


@pytest.mark.parametrize("d", [3, 5, 6, 8])
def test_equals_the_papers_mixed_integer_programme(d: int):
    for seed in range(2):
        V = rotation(d, seed)
        nearest = nearest_by_integer_programme(V.numpy())
        assert float(distance_to_orthogonality(with_right_vectors(V)).full) == pytest.approx(
            np.linalg.norm(V.numpy() - nearest), **CLOSE
        )


def test_upper_bound_is_attained_and_never_passed():
    for d in (2, 4, 8, 16):
        bound = math.sqrt(2 * (d - math.sqrt(d)))
        distance = distance_to_orthogonality(with_right_vectors(hadamard(d)))
        assert float(distance.full) == pytest.approx(bound, **CLOSE)
        assert random_rotation_baseline(d, 200).max() < bound


def test_any_dtype_and_layout():
    J = torch.randn(5, 7, 4, dtype=torch.float64)
    expected = distance_to_orthogonality(J)
    as_directions = J.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not as_directions.is_contiguous()
    for same in (as_directions, J.requires_grad_()):
        for one, other in zip(distance_to_orthogonality(same), expected, strict=True):
            assert not one.requires_grad
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = J.detach().to(dtype)
        low, exact = distance_to_orthogonality(rounded), distance_to_orthogonality(rounded.double())
        # right_svd rounds V to float32 where J is no float64
        torch.testing.assert_close(low.full, exact.full, rtol=0, atol=1e-6)
        assert torch.equal(low.off_diagonal, exact.off_diagonal)
    assert [len(part) for part in distance_to_orthogonality(J.detach()[:0])] == [0] * 4


# ------------------------------------------------------------------ what is active


def test_passive_dimensions_do_not_blur_the_active_ones():
    # four axes that a decoder uses, and four that it ignores up to noise
    torch.manual_seed(3)
    J = torch.zeros(1, 20, 8, dtype=torch.float64)
    J[0, :, 4:] = 1e-9 * torch.randn(20, 4)
    J[0, :, :4] = rotation(20, 0)[:, :4] * torch.tensor([4.0, 3.0, 2.0, 1.0])
    mask = torch.arange(8) < 4
    result = distance_to_orthogonality(J, mask)
    assert float(result.active) < 1e-7
    assert float(result.full) > 0.5
    # a single column of zeros has a null vector of its own and costs nothing
    assert float(distance_to_orthogonality(J[:, :, :5] * (torch.arange(5) < 4)).full) < 1e-7


def test_active_masks_of_each_sample():
    J = torch.randn(7, 6, 4, dtype=torch.float64)
    masks = torch.tensor(
        [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1],
         [1, 1, 1, 1]]
    ).bool()  # fmt: skip
    result = distance_to_orthogonality(J, masks)
    for index, mask in enumerate(masks):
        expected = 0.0
        if mask.sum() > 1:
            expected = float(distance_to_orthogonality(J[index : index + 1, :, mask]).full)
        assert float(result.active[index]) == pytest.approx(expected, abs=1e-12)
        alone = distance_to_orthogonality(J[index : index + 1], mask)
        assert float(alone.active) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(result.full, distance_to_orthogonality(J).full)
    assert torch.equal(distance_to_orthogonality(J).active, result.full)


# ------------------------------------------------------------------ beside the distance


def test_mean_cosine_in_closed_form():
    def columns(*vectors: list[float]) -> Tensor:
        return torch.tensor(vectors, dtype=torch.float64).T[None]

    # 60, 90 and 45 degrees whatever the lengths, also where their squares leave float64
    third = [0.5, math.sqrt(0.5 - 0.25), math.sqrt(0.5)]
    for scale in (1.0, 1e-200, 1e200):
        J = columns([scale, 0, 0], [7 * v for v in third], [0, 0, 0.1])
        expected = (0.5 + 0 + math.sqrt(0.5)) / 3
        assert float(distance_to_orthogonality(J).off_diagonal) == pytest.approx(expected)
    assert float(distance_to_orthogonality(columns([1, 1], [-2, -2])).off_diagonal) == (
        pytest.approx(1)
    )
    # zeros are orthogonal to both others: one of three pairs is left
    J = columns([1, 1, 0], [1, 0, 0], [0, 0, 0])
    assert float(distance_to_orthogonality(J).off_diagonal) == pytest.approx(math.sqrt(0.5) / 3)
    assert float(distance_to_orthogonality(columns([3, 4])).off_diagonal) == 0


def test_mean_cosine_sees_what_equal_singular_values_hide():
    # an orthonormal J rotated in its own space is as orthonormal: any V is one of its V
    J = (rotation(9, 0)[:, :5] @ rotation(5, 1))[None]
    result = distance_to_orthogonality(J)
    assert float(result.off_diagonal) < 1e-15
    assert float(result.gaps.abs().max()) < 1e-14


def test_relative_gaps():
    J = torch.diag(torch.tensor([0.0, 4.0, 2.0, 2.0, 0.0]))[None]
    assert distance_to_orthogonality(J).gaps.tolist() == [[0.5, 0.0, 1.0, 0.0]]
    assert distance_to_orthogonality(J[:, :, 1:2]).gaps.shape == (1, 0)


def test_blocks_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch):
    from vaekern.diagnostics import _jacobians

    J = torch.randn(11, 6, 3)
    whole = distance_to_orthogonality(J)
    monkeypatch.setattr(_jacobians, "BLOCK_ELEMENTS", 4 * 18 + 5)  # blocks of 4, 4 and 3
    assert torch.equal(distance_to_orthogonality(J).off_diagonal, whole.off_diagonal)


# ------------------------------------------------------------------ random rotations


@pytest.mark.parametrize(
    ("d", "mean"),
    [
        (2, 16 * math.sqrt(2) / math.pi * (1 - math.cos(math.pi / 8))),
        # from an independent simulation, whose own error is below 0.002
        (3, 0.9800),
        (4, 1.3286),
        (5, 1.6357),
        (6, 1.9124),
        (8, 2.4095),
        (10, 2.8491),
    ],
)
def test_mean_of_random_rotations(d: int, mean: float):
    count = 10_000
    draws = random_rotation_baseline(d, count, generator=torch.Generator().manual_seed(d))
    assert draws.shape == (count,)
    assert abs(float(draws.mean()) - mean) < 3 * float(draws.std()) / math.sqrt(count)


def test_random_rotations_are_reproducible_in_blocks(monkeypatch: pytest.MonkeyPatch):
    def draw(seed: int) -> Tensor:
        return random_rotation_baseline(3, 50, generator=torch.Generator().manual_seed(seed))

    whole = draw(0)
    assert torch.equal(draw(0), whole)
    assert not torch.equal(draw(1), whole)
    assert random_rotation_baseline(1, 5).tolist() == [0] * 5
    monkeypatch.setattr(orthogonality, "BLOCK_ELEMENTS", 9 * 8)
    blocks = draw(0)
    assert len(blocks.unique()) == 50  # every block is drawn anew, and filled


# ------------------------------------------------------------------ bad input

J = torch.randn(3, 4, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: distance_to_orthogonality([[1.0]]), TypeError, "J must be a tensor"),  # type: ignore[arg-type]
        (lambda: distance_to_orthogonality(J.int()), TypeError, "int32"),
        (lambda: distance_to_orthogonality(J[0]), ValueError, "unsqueeze(0)"),
        (lambda: distance_to_orthogonality(J[:, :0]), ValueError, "row"),
        (lambda: distance_to_orthogonality(torch.zeros(1, 2, 257)), ValueError, "256"),
        (lambda: distance_to_orthogonality(J / torch.zeros(2)), ValueError, "sample 0"),
        (lambda: distance_to_orthogonality(J, torch.ones(2)), TypeError, "boolean"),
        (lambda: distance_to_orthogonality(J, [True, True]), TypeError, "list"),  # type: ignore[arg-type]
        (lambda: distance_to_orthogonality(J, torch.ones(3).bool()), ValueError, "[2] or [3, 2]"),
        (
            lambda: distance_to_orthogonality(J, torch.ones(2, device="meta").bool()),
            ValueError,
            "move it with .to('cpu')",
        ),
        (lambda: random_rotation_baseline(0), ValueError, "d must"),
        (lambda: random_rotation_baseline(257), ValueError, "256"),
        (lambda: random_rotation_baseline(2.0), TypeError, "whole number"),  # type: ignore[arg-type]
        (lambda: random_rotation_baseline(2, 0), ValueError, "samples"),
        (lambda: random_rotation_baseline(2, True), TypeError, "samples"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert words in text
    assert ". " not in text
    assert "\n" not in text


def test_examples_run():
    assert doctest.testmod(orthogonality) == (0, 6)
