"""right_svd's CUDA kernels, emulated on the CPU and on the GPU, against float64 SVDs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
ROUNDING = 2.0**-23  # of S and V to float32, with room for one more in the last place
#: Rounding of the Gram matrix: sums of m products, and as many steps as columns in the
#: factorisation and the rotations.
GRAM = 32 * EPS


def orthonormal(*shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(shape, dtype=torch.float64)).Q


def rotated(batch: int, m: int, d: int, condition: float) -> Tensor:
    """Singular values from 1 down to 1 / condition, along random directions."""
    values = torch.logspace(0, -float(torch.tensor(condition).log10()), d, dtype=torch.float64)
    return (orthonormal(batch, m, d) * values @ orthonormal(batch, d, d).mT).float()


def graded(batch: int, m: int, d: int) -> Tensor:
    """Nearly orthogonal columns whose lengths span eight orders, as of a polarised decoder."""
    columns = orthonormal(batch, m, d) + 1e-3 * torch.randn(batch, m, d) / m**0.5
    return (columns * torch.logspace(0, -8, d, dtype=torch.float64)[torch.randperm(d)]).float()


def check(J: Tensor, results: tuple[Tensor, ...], *, relative: bool = False) -> None:
    """relative: every singular value must be right to its own size."""
    S, V, sweeps, converged, finite = results
    A, V = J.double(), V.double()
    batch, _, d = J.shape
    truth = torch.linalg.svdvals(A)
    truth = torch.cat([truth, truth.new_zeros(batch, d - truth.shape[1])], 1)
    largest = truth[:, :1]
    # |s^2 - sigma^2| <= GRAM sigma_1^2 bounds |s - sigma| by either term
    slack = torch.minimum(GRAM * largest**2 / truth.clamp_min(1e-300), GRAM**0.5 * largest)
    tolerance = ROUNDING * truth + (4 * EPS * largest if relative else slack)
    assert ((S.double() - truth).abs() <= tolerance).all(), (S - truth).abs().div(largest).max()
    assert (S[:, 1:] <= S[:, :-1]).all()
    # a unit vector rounded to float32 is off by up to 2^-24, a product of two by twice that
    identity = torch.eye(d, dtype=torch.float64)
    assert (V.mT @ V - identity).abs().max() <= 2 * ROUNDING
    product = A @ V
    assert ((product.norm(dim=1) - truth).abs() <= tolerance + ROUNDING * largest).all()
    mixed = (product.mT @ product) * (1 - identity)
    assert (mixed.abs().amax((1, 2)) <= 2 * ROUNDING * largest[:, 0] ** 2).all()
    size = V.abs()
    lead = (size >= size.amax(1, keepdim=True) * (1 - 2e-6)).int().argmax(1, keepdim=True)
    assert (V.gather(1, lead) > 0).all()
    assert converged.all()
    assert finite.all()
    assert (sweeps >= 1).all()
    assert (sweeps <= 20).all()


WIDTHS = (1, 2, 3, 5, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 60, 64)


@pytest.mark.parametrize("d", WIDTHS)
def test_dense_and_transposed(kernels, d: int) -> None:
    for m in (70, 16, 1):  # one packet and a tail, exactly one packet, fewer rows than columns
        J = torch.randn(2, m, d)
        check(J, kernels.right_svd(J))
        transposed = J.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        check(J, kernels.right_svd(transposed))


LAYOUTS = {
    "rows": lambda J: J.contiguous(),
    "columns": lambda J: J.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "misaligned": lambda J: torch.cat([J.new_zeros(1), J.flatten()])[1:].view(J.shape),
    "every other row": lambda J: J.repeat_interleave(2, 1)[:, ::2],
    "every other column": lambda J: J.repeat_interleave(2, 2)[:, :, ::2],
    "one matrix for all": lambda J: J[:1].expand(J.shape),
    "misaligned columns": lambda J: (
        torch.cat([J.new_zeros(1), J.permute(2, 0, 1).flatten()])[1:]
        .view(J.shape[2], J.shape[0], J.shape[1])
        .permute(1, 2, 0)
    ),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_layouts_and_dtypes(kernels, dtype: torch.dtype, layout: str) -> None:
    for d in (4, 12, 16, 24, 32, 48, 64):
        J = LAYOUTS[layout](torch.randn(2, 36, d).to(dtype))
        check(J, kernels.right_svd(J))


@pytest.mark.parametrize(("m", "d"), [(784, 16), (300, 64), (90, 24)])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_rotated(kernels, m: int, d: int, condition: float) -> None:
    J = rotated(2, m, d, condition)
    check(J, kernels.right_svd(J))


@pytest.mark.parametrize(("m", "d"), [(784, 16), (300, 64), (120, 31), (9, 9)])
def test_nearly_orthogonal_columns_keep_relative_accuracy(kernels, m: int, d: int) -> None:
    J = graded(2, m, d)
    check(J, kernels.right_svd(J), relative=True)


@pytest.mark.parametrize("d", [1, 2, 7, 16, 20, 40])
def test_zero_matrix_gives_zeros_and_the_identity(kernels, d: int) -> None:
    S, V, sweeps, converged, finite = kernels.right_svd(torch.zeros(2, 10, d))
    assert torch.equal(S, torch.zeros(2, d))
    assert torch.equal(V, torch.eye(d).expand(2, d, d))
    assert not torch.signbit(V).any()
    assert sweeps.tolist() == [1, 1]
    assert converged.all()
    assert finite.all()


@pytest.mark.parametrize("d", [6, 16, 20, 50])
def test_rank_deficient(kernels, d: int) -> None:
    J = torch.randn(2, 40, 3) @ torch.randn(2, 3, d)  # of rank 3 up to its own float32 rounding
    check(J, kernels.right_svd(J))
    exact = torch.randint(-4, 5, (2, 40, d)).float()
    exact[:, :, d // 2 :] = exact[:, :, : d - d // 2]  # pairs of equal columns
    check(exact, kernels.right_svd(exact))
    some = torch.randn(2, 40, d)
    some[:, :, 1::2] = 0
    S, V, *_ = results = kernels.right_svd(some)
    check(some, results)
    assert (S[:, -(d // 2) :] == 0).all()
    assert (V[:, ::2, -(d // 2) :] == 0).all()  # the null space is that of the zero columns


def test_a_tiny_column_is_not_lost_behind_a_dependent_one(kernels) -> None:
    J = torch.zeros(1, 32, 4)
    J[0, :16, 0] = J[0, :16, 1] = torch.randn(16)
    J[0, 16:, 2] = 1e-12 * torch.randn(16)
    S, *_ = kernels.right_svd(J)
    truth = J[0].double().norm(dim=0)
    assert S[0, 1].item() == pytest.approx(truth[2].item(), rel=1e-6)
    assert S[0, 0].item() == pytest.approx(2**0.5 * truth[0].item(), rel=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-37])
def test_scales_that_float32_squares_leave(kernels, scale: float) -> None:
    J = torch.randn(2, 50, 10)
    V = kernels.right_svd(J)[1]
    scaled = (J.double() * scale).float()
    S, W, *rest = kernels.right_svd(scaled)
    check(scaled.double() / scale, (S / scale, W, *rest))
    torch.testing.assert_close(W, V, atol=2e-6, rtol=0)  # float32 rounding of the scaled input


def test_nan_and_infinity_are_flagged_per_matrix(kernels) -> None:
    for d in (5, 16, 30, 40):
        J = torch.randn(4, 40, d)
        J[1, 39, d - 1] = torch.nan
        J[3, 0, 0] = -torch.inf
        S, V, _, converged, finite = kernels.right_svd(J)
        assert finite.tolist() == [True, False, True, False]
        assert converged.tolist() == [True, False, True, False]
        assert S[1::2].isnan().all()
        assert V[1::2].isnan().all()
        check(J[::2], kernels.right_svd(J[::2]))
        assert torch.equal(S[::2], kernels.right_svd(J[::2])[0])


def test_empty_batch(kernels) -> None:
    S, V, *_ = kernels.right_svd(torch.zeros(0, 5, 3))
    assert (S.shape, V.shape) == ((0, 3), (0, 3, 3))


@pytest.mark.parametrize(("m", "d"), [(50, 8), (200, 16), (2500, 32), (1100, 64), (40, 75)])
def test_the_bits_do_not_depend_on_the_threads_order(kernels, m: int, d: int) -> None:
    """Between two barriers the threads may run in any order: a missing barrier shows here."""
    J = torch.randn(2, m, d)
    J[1, :, d // 2] = 0  # the completion's barriers too
    first = kernels.right_svd(J)
    check(J, first)
    for order in ("backward", "shuffled"):
        kernels.order = order
        for one, other in zip(first, kernels.right_svd(J), strict=True):
            assert torch.equal(one, other), order


@pytest.mark.parametrize("d", [65, 100, 130])
def test_many_columns(kernels, d: int) -> None:
    """Also where they do not fit shared memory, as on a GeForce, and lie in the workspace."""
    J = torch.randn(1, 150, d)
    inside = kernels.right_svd(J)
    check(J, inside)
    kernels.shared_memory = 50_000 if d < 110 else 101_376
    for one, other in zip(inside, kernels.right_svd(J), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("d", [160, 200, 255, 256])
def test_most_columns(kernels, d: int) -> None:
    for J in (torch.randn(1, 300, d), graded(1, 300, d)):
        check(J, kernels.right_svd(J))
        check(J, kernels.right_svd(LAYOUTS["columns"](J)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_random_shapes(kernels, seed: int) -> None:
    torch.manual_seed(1000 + seed)
    for _ in range(60):
        m, d = int(torch.randint(1, 400, ())), int(torch.randint(1, 65, ()))
        J = torch.randn(2, m, d)
        check(J, kernels.right_svd(J))
