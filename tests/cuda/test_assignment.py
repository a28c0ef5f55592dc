"""assignment's CUDA kernel, emulated on the CPU and on the GPU: SciPy's answer, ties included."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def scipys(cost: Tensor) -> Tensor:
    columns = [linear_sum_assignment(c.double().numpy())[1] for c in cost]
    return torch.stack([torch.from_numpy(c) for c in columns])


def permutations(batch: int, d: int) -> Tensor:
    """What distance_to_orthogonality asks for at V = a signed permutation: 1 - 2 |V|."""
    return 1 - 2 * torch.stack([torch.eye(d)[torch.randperm(d)] for _ in range(batch)])


COSTS = {
    "real": lambda batch, d: torch.randn(batch, d, d),
    "many ties": lambda batch, d: torch.randint(-4, 5, (batch, d, d)).float(),
    "zero or one": lambda batch, d: torch.randint(0, 2, (batch, d, d)).float(),
    "constant": lambda batch, d: torch.full((batch, d, d), 0.5),
    "permutations": permutations,
}


@pytest.mark.parametrize("kind", list(COSTS))
@pytest.mark.parametrize("d", [1, 2, 3, 5, 16, 31, 32, 33, 64])
def test_same_columns_as_scipy(kernels, d: int, kind: str) -> None:
    cost = COSTS[kind](12, d)
    expected = scipys(cost)
    assert torch.equal(kernels.assignment(cost), expected)
    transposed = cost.mT.contiguous().mT
    assert torch.equal(kernels.assignment(transposed), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(kernels, dtype: torch.dtype) -> None:
    for d in (5, 40):
        for cost in (torch.randn(6, d, d).to(dtype), torch.randint(0, 9, (6, d, d)).to(dtype)):
            assert torch.equal(kernels.assignment(cost), scipys(cost))
    # costs that float32 cannot tell apart
    close = 1 + 1e-12 * torch.rand(4, 20, 20, dtype=torch.float64)
    assert torch.equal(kernels.assignment(close), scipys(close))


@pytest.mark.parametrize("d", [65, 128, 129, 256])
def test_large(kernels, d: int) -> None:
    """Where the costs fit shared memory, and where each step reads them again."""
    for cost in (torch.randn(2, d, d), torch.randint(0, 5, (2, d, d)).float()):
        expected = scipys(cost)
        for bytes_ in (40_000, 232_448):
            kernels.shared_memory = bytes_
            assert torch.equal(kernels.assignment(cost), expected)


@pytest.mark.parametrize("order", ["backward", "shuffled"])
def test_the_answer_does_not_depend_on_the_threads_order(kernels, order: str) -> None:
    cost = torch.randint(0, 6, (8, 40, 40)).float()
    kernels.order = order
    assert torch.equal(kernels.assignment(cost), scipys(cost))


def test_negative_zero_is_zero(kernels) -> None:
    cost = torch.zeros(4, 6, 6)
    cost[torch.rand(4, 6, 6) < 0.5] = -0.0
    assert torch.equal(kernels.assignment(cost), scipys(cost))


def test_matrices_that_are_not_finite_are_marked(kernels) -> None:
    cost = torch.randn(5, 40, 40)
    cost[0, 1, 39] = torch.nan
    cost[1, 2] = torch.inf
    cost[2, 0, 0] = -torch.inf
    columns = kernels.assignment(cost)
    assert (columns[:3] == -1).all()
    assert torch.equal(columns[3:], scipys(cost[3:]))


def test_sums_that_overflow_end(kernels) -> None:
    cost = torch.full((1, 3, 3), 1.7e308, dtype=torch.float64)
    cost[0, 0] = -1.7e308
    columns = kernels.assignment(cost)
    assert (columns == -1).all() or torch.equal(columns.sort().values, torch.arange(3)[None])


def test_empty_batch(kernels) -> None:
    assert kernels.assignment(torch.zeros(0, 4, 4)).shape == (0, 4)
