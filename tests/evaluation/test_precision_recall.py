"""Precision and recall against balls drawn by hand, and a loop over all pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vaekern.evaluation import precision_recall
from vaekern.evaluation import precision_recall as function


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_pairs(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points within the k-th neighbour's distance of some centre."""

    def distance(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).square().sum().sqrt())

    radii = [
        sorted(distance(c, o) for j, o in enumerate(centres) if j != i)[k - 1]
        for i, c in enumerate(centres)
    ]
    inside = [any(distance(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("k", [1, 3])
def test_both_are_what_a_loop_over_pairs_gives(k: int):
    real, made = normal(40, 3, 0), 0.5 * normal(35, 3, 1) + 1
    found = precision_recall(real, made, neighbours=k)
    assert float(found.precision) == by_pairs(made, real, k)
    assert float(found.recall) == by_pairs(real, made, k)
    assert 0 < float(found.recall) < float(found.precision) < 1


def test_on_a_line_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    # The balls of radius 1 around 0 to 3 hold 3.5 and not 5; those of 3.5 and 5, of 1.5, hold 2, 3.
    found = precision_recall(real, torch.tensor([[3.5], [5.0]]), neighbours=1)
    assert found == (0.5, 0.5)


def test_the_ends_of_the_scale():
    real = normal(300, 2, 0)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    # Everything made is real, but of one mode out of two.
    modes = torch.cat([real[:150], real[150:] + 100])
    found = precision_recall(modes, real[:150])
    assert found == (1, 0.5)


def test_far_from_the_origin_nothing_is_lost():
    real, made = normal(60, 4, 0).double(), normal(60, 4, 1).double() + 0.5
    assert precision_recall(real + 1e6, made + 1e6) == precision_recall(real, made)


def test_pieces_are_joined(monkeypatch: pytest.MonkeyPatch):
    import sys

    real, made = normal(50, 3, 0), normal(45, 3, 1)
    whole = precision_recall(real, made)
    monkeypatch.setattr(sys.modules[function.__module__], "ROWS", 7)
    assert precision_recall(real, made) == whole


@pytest.mark.parametrize(
    ("arguments", "options", "word"),
    [
        ((torch.zeros(3, 2), torch.zeros(9, 2)), {}, "real must hold at least 4 samples, got 3"),
        ((torch.zeros(9, 2), torch.zeros(9, 3)), {}, "3 and 2"),
        ((torch.zeros(9, 2), torch.zeros(9, 2)), {"neighbours": 0}, "neighbours must be at least"),
    ],
)
def test_bad_input(arguments, options, word):
    with pytest.raises(ValueError, match=word):
        precision_recall(*arguments, **options)
