"""right_svd, assignment and nearest_signed_permutation on every backend that runs here.

A decomposition proves itself: V orthogonal, J V with orthogonal columns of lengths S.  Singular
values are held against LAPACK in float64, whose error is 1e-16 of the largest one: 1e-8 relative
where they span 1e8, and against 60 digits where relative accuracy itself is the point.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from vaekern import backends, cpu, reference_linalg
from vaekern.linalg import RightSVD, assignment, nearest_signed_permutation, right_svd

scipy_optimize = pytest.importorskip("scipy.optimize")

BACKENDS = [
    "reference",
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(not backends.has_kernel("cpu"), reason="no native core in use"),
    ),
]
needs_kernel = pytest.mark.skipif(not backends.has_kernel("cpu"), reason="no native core in use")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, poisoned: None) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


def orthonormal(*shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(*shape, dtype=torch.float64)).Q


def rotated(batch: int, m: int, d: int, condition: float) -> Tensor:
    sigma = torch.logspace(0, -np.log10(condition), d, dtype=torch.float64)
    return orthonormal(batch, m, d) * sigma @ orthonormal(batch, d, d)


def graded(batch: int, m: int, d: int, span: float = 1e8) -> Tensor:
    """Columns of very different lengths, orthogonal up to 1e-3: as decoders have them."""
    tilt = 1e-3 * torch.randn(batch, m, d, dtype=torch.float64) / m**0.5
    lengths = torch.logspace(0, -np.log10(span), d, dtype=torch.float64)
    return (orthonormal(batch, m, d) + tilt) * lengths


def check(J: Tensor, svd: RightSVD, relative: float, absolute: float) -> None:
    """`svd` decomposes J; singular values within relative * sigma + absolute * sigma_1."""
    A, S, V = J.double(), svd.S.double(), svd.V.double()
    d = J.shape[2]
    rounding = 2.0**-52 if J.dtype == torch.float64 else 2.0**-23
    dtype = torch.float64 if J.dtype == torch.float64 else torch.float32
    assert svd.S.dtype == svd.V.dtype == dtype
    assert bool(svd.converged.all())
    rank = min(J.shape[1:])
    truth = torch.cat([torch.linalg.svdvals(A), S.new_zeros(len(J), d - rank)], 1)
    bound = relative * truth + absolute * truth[:, :1]
    assert bool(((S - truth).abs() <= bound).all()), float(((S - truth).abs() / bound).max())
    assert bool((S.diff(dim=1) <= 0).all())
    identity = torch.eye(d, dtype=torch.float64)
    # d products of which each entry errs by its rounding, in the mean of d entries of size d^-1/2
    assert float((V.mT @ V - identity).abs().max()) <= 4 * rounding + (d * 2.0**-50)
    # J V has orthogonal columns of lengths S; V's rounding turns them by that much of sigma_1
    product = A @ V
    slack = (2 * d**0.5 * rounding + absolute) * truth[:, 0, None, None] ** 2
    off = product.mT @ product - torch.diag_embed(S**2)
    assert bool((off.abs() <= slack).all())
    lead = V.abs().amax(1, keepdim=True)
    first = (V.abs() >= lead * (1 - 2e-6)).int().argmax(1, keepdim=True)
    assert bool((V.gather(1, first) > 0).all())  # the sign of the largest entry


CLASSES: dict[str, tuple[Callable[[int, int, int], Tensor], float, float]] = {
    "rotated 1e2": (lambda b, m, d: rotated(b, m, d, 1e2), 0, 1e-7),
    "rotated 1e4": (lambda b, m, d: rotated(b, m, d, 1e4), 0, 1e-7),
    "rotated 1e6": (lambda b, m, d: rotated(b, m, d, 1e6), 0, 1e-7),
    "rotated 1e8": (lambda b, m, d: rotated(b, m, d, 1e8), 0, 1e-7),
    "normal": (lambda b, m, d: torch.randn(b, m, d, dtype=torch.float64), 0, 1e-7),
    "half the columns zero": (
        lambda b, m, d: torch.randn(b, m, d, dtype=torch.float64) * (torch.arange(d) < d // 2),
        0,
        1e-7,
    ),
    "equal columns": (lambda b, m, d: orthonormal(b, m, 1).expand(b, m, d).contiguous(), 0, 1e-7),
    "nearly orthogonal, graded 1e8": (graded, 1e-6, 0),
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("batch", "m", "d"), [(4, 784, 16), (2, 3072, 64)])
def test_accuracy_in_float32(backend: str, name: str, batch: int, m: int, d: int) -> None:
    make, relative, absolute = CLASSES[name]
    J = make(batch, m, d).float()
    svd = right_svd(J, left=True)
    check(J, svd, relative, absolute)
    assert svd.U is not None
    U, S, V = svd.U.double(), svd.S.double(), svd.V.double()
    for Q in (U, V):
        assert float((Q.mT @ Q - torch.eye(d, dtype=torch.float64)).abs().max()) < 1e-6
    # three factors rounded to float32, d^1/2 of such errors in a sum: of sigma_1
    error = (U * S[:, None] @ V.mT - J.double()).norm(dim=(1, 2))
    assert bool((error <= 4 * d**0.5 * 2.0**-24 * S[:, 0]).all())


@pytest.mark.parametrize("name", CLASSES)
def test_accuracy_in_float64(backend: str, name: str) -> None:
    make, relative, _ = CLASSES[name]
    J = make(3, 300, 20)
    # LAPACK's own error, of which d^1/2 come together; relative accuracy is tested below
    check(J, right_svd(J), 0 if relative == 0 else 1e-7, 2e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_relative_accuracy_of_tiny_singular_values(backend: str, dtype: torch.dtype) -> None:
    J = graded(1, 12, 6, span=1e20).to(dtype)
    with mpmath.workdps(60):
        truth = mpmath.svd_r(mpmath.matrix(J[0].double().tolist()), compute_uv=False)
        found = right_svd(J).S[0].double().tolist()
        worst = max(abs(mpmath.mpf(s) / t - 1) for s, t in zip(found, truth, strict=True))
    assert worst < (1e-14 if dtype == torch.float64 else 6e-8)


SHAPES = [(1, 1, 1), (3, 1, 4), (2, 3, 7), (5, 9, 2), (4, 40, 9), (3, 33, 33), (2, 5, 50)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_shapes_and_dtypes(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    J = torch.randn(shape, dtype=torch.float64).to(dtype)
    check(J, right_svd(J), 0, 4e-15 * shape[2] if dtype == torch.float64 else 1e-7)


@pytest.mark.parametrize("m", [3, 300])
def test_most_columns(backend: str, m: int) -> None:
    J = torch.randn(1, m, 256)
    check(J, right_svd(J), 0, 2e-7)  # float32's rounding, and the sum of 256 angles below 1e-11


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "[d, B, m]": lambda J: J.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "[m, d, B]": lambda J: J.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "[B, d, m]": lambda J: J.mT.contiguous().mT,
    "sliced": lambda J: torch.stack([J, J + 1], -1)[..., 0],
    "misaligned": lambda J: torch.cat([J.new_zeros(1), J.flatten()])[1:].view_as(J),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 70, 5), (2, 150, 19)])
def test_layouts(
    backend: str, layout: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    J = torch.randn(shape, dtype=dtype)
    view = LAYOUTS[layout](J)
    assert torch.equal(view, J)
    for mine, plain in zip(right_svd(view)[:2], right_svd(J)[:2], strict=True):
        assert torch.equal(mine, plain) if backend == "cpu" else torch.allclose(mine, plain)


def test_expanded_input(backend: str) -> None:
    J = torch.randn(1, 1, 3).expand(2, 4, 3)  # all rows of all samples share their memory
    check(J, right_svd(J), 0, 1e-7)


def test_degenerate_matrices(backend: str) -> None:
    zero = right_svd(torch.zeros(2, 5, 3), left=True)
    assert torch.equal(zero.S, torch.zeros(2, 3))
    assert torch.equal(zero.V, torch.eye(3).expand(2, 3, 3))
    assert zero.U is not None
    assert torch.allclose(zero.U.mT @ zero.U, torch.eye(3))

    scaled = right_svd(7 * orthonormal(2, 9, 9))  # every direction is a singular one
    assert torch.allclose(scaled.S, torch.full((2, 9), 7.0, dtype=torch.float64))
    assert torch.allclose(scaled.V.mT @ scaled.V, torch.eye(9, dtype=torch.float64))

    diagonal = right_svd(torch.diag(torch.tensor([1e-30, 3.0, 1e-10]))[None])
    assert diagonal.S[0].tolist() == pytest.approx([3, 1e-10, 1e-30], rel=1e-7)
    assert torch.equal(diagonal.V[0], torch.eye(3)[:, [1, 2, 0]])

    empty = right_svd(torch.zeros(0, 4, 3))
    assert (empty.S.shape, empty.V.shape, empty.converged.shape) == ((0, 3), (0, 3, 3), (0,))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e-40),
        (torch.float32, 1e38),
        (torch.float64, 1e-290),
        (torch.float64, 1e307),
        (torch.float16, 2e4),
        (torch.float16, 1e-6),
    ],
)
def test_no_scale_overflows(backend: str, dtype: torch.dtype, scale: float) -> None:
    J = torch.tensor([[[2.0, 0.0], [0.0, -1.0], [0.0, 0.0]]], dtype=torch.float64) * scale
    svd = right_svd(J.to(dtype))
    kept = (svd.S.double() / J.to(dtype).double().abs().amax((1, 2))).tolist()[0]
    assert kept == pytest.approx([1, 0.5], rel=2e-2 if scale == 1e-6 else 1e-3)
    assert torch.equal(svd.V[0], torch.eye(2, dtype=svd.V.dtype))


def test_a_sample_does_not_know_its_neighbours(backend: str) -> None:
    J = torch.cat([torch.randn(3, 30, 6), graded(2, 30, 6).float(), torch.zeros(1, 30, 6)])
    together = right_svd(J)
    for b in range(len(J)):
        alone = right_svd(J[b : b + 1])
        assert torch.equal(alone.S[0], together.S[b])
        assert torch.equal(alone.V[0], together.V[b])
        assert int(alone.sweeps) == int(together.sweeps[b])
    mirrored = right_svd(-J)
    assert torch.equal(mirrored.V, together.V)


@needs_kernel
@pytest.mark.parametrize("shape", [(40, 200, 16), (2, 9001, 7), (1, 20000, 40), (5, 300, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    J = torch.randn(shape, dtype=dtype)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(right_svd(J))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(found[0].S, other.S)
        assert torch.equal(found[0].V, other.V)


def test_convergence_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_linalg, "MAX_SWEEPS", 1)
    J = torch.cat([torch.randn(1, 30, 6), torch.eye(6)[None].repeat(1, 5, 1)])
    with backends.use("reference"):
        assert right_svd(J).converged.tolist() == [False, True]


# ------------------------------------------------------------------ the checks can fail

FAULTS: dict[str, Callable[[list[Tensor]], object]] = {
    "two vectors exchanged": lambda out: out[1].copy_(out[1][:, :, [1, 0, 2, 3]]),
    "rows instead of columns": lambda out: out[1].copy_(out[1].mT.clone()),
    "a sign": lambda out: out[1][:, :, 2].neg_(),
    "the last value": lambda out: out[0][:, -1].mul_(1 + 1e-5),
    "squares": lambda out: out[0].square_(),
    "a row not written": lambda out: out[1][1, 3].fill_(float("nan")),
    "ascending": lambda out: out[0].copy_(out[0].flip(1)),
    "not orthogonal": lambda out: out[1][:, 0].mul_(1 + 1e-5),
}


@needs_kernel
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    kernel = cpu.right_svd

    def wrong(J: Tensor) -> tuple[Tensor, ...]:
        out = list(kernel(J))
        FAULTS[fault](out)
        return tuple(out)

    J = rotated(3, 20, 4, 10).float()
    check(J, right_svd(J), 0, 1e-7)
    monkeypatch.setattr(cpu, "right_svd", wrong)
    with pytest.raises(AssertionError):
        check(J, right_svd(J), 0, 1e-7)


# ------------------------------------------------------------------ assignment

COSTS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda b, d: torch.randn(b, d, d, dtype=torch.float64),
    "constant": lambda b, d: torch.zeros(b, d, d, dtype=torch.float64),
    "three values": lambda b, d: torch.randint(0, 3, (b, d, d)).double(),
    "ten values": lambda b, d: torch.randint(0, 10, (b, d, d)).double(),
    "huge": lambda b, d: 1e300 * torch.randn(b, d, d, dtype=torch.float64),
    "as DtO has it": lambda b, d: 1 - 2 * orthonormal(b, d, d).abs(),
}


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("d", [1, 2, 3, 8, 17, 40])
def test_assignment_is_scipys(backend: str, kind: str, d: int) -> None:
    cost = COSTS[kind](20, d)
    found = assignment(cost)
    assert found.dtype == torch.int64
    truth = [scipy_optimize.linear_sum_assignment(c)[1] for c in cost.numpy()]
    assert np.array_equal(found.numpy(), np.stack(truth))


def test_assignment_of_the_largest_size(backend: str) -> None:
    cost = torch.randint(0, 1000, (1, 256, 256)).double()
    truth = scipy_optimize.linear_sum_assignment(cost[0].numpy())[1]
    assert np.array_equal(assignment(cost)[0].numpy(), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_assignment_dtypes_and_layouts(backend: str, dtype: torch.dtype, layout: str) -> None:
    cost = LAYOUTS[layout](torch.randn(6, 7, 7).to(dtype))
    truth = [scipy_optimize.linear_sum_assignment(c)[1] for c in cost.double().numpy()]
    assert np.array_equal(assignment(cost).numpy(), np.stack(truth))


def test_assignment_of_an_empty_batch(backend: str) -> None:
    assert assignment(torch.zeros(0, 3, 3)).shape == (0, 3)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_nearest_signed_permutation_is_the_nearest(backend: str, d: int, scale: float) -> None:
    V = scale * torch.randn(8, d, d, dtype=torch.float64)  # also entries beyond 1
    candidates = torch.stack(
        [
            torch.eye(d, dtype=torch.float64)[list(order)] * torch.tensor(signs).double()
            for order in itertools.permutations(range(d))
            for signs in itertools.product((1, -1), repeat=d)
        ]
    )
    P = nearest_signed_permutation(V)
    assert bool((P[:, None] == candidates).all((2, 3)).any(1).all())
    distance = (V[:, None] - candidates).abs().sum((2, 3)).amin(1)
    assert torch.allclose((V - P).abs().sum((1, 2)), distance, rtol=1e-14)


def test_sign_of_zero_is_plus() -> None:
    assert torch.equal(nearest_signed_permutation(torch.zeros(1, 2, 2)), torch.eye(2)[None])
    assert nearest_signed_permutation(torch.eye(2)[None].half()).dtype == torch.float16


# ------------------------------------------------------------------ bad input

BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: right_svd([[1.0]]), TypeError, "J must be a tensor [B, m, d], got list"),
    (lambda: right_svd(torch.ones(2, 3)), ValueError, "J must have shape [B, m, d], got [2, 3]"),
    (lambda: right_svd(torch.ones(1, 2, 2).int()), TypeError, "J must be floating point"),
    (lambda: right_svd(torch.ones(1, 300, 257)), ValueError, "1 to 256 columns, got [1, 300, 257]"),
    (lambda: right_svd(torch.ones(1, 0, 2)), ValueError, "J must have at least one row"),
    (lambda: right_svd(torch.ones(1, 2, 2).requires_grad_()), RuntimeError, "pass J.detach()"),
    (lambda: right_svd(torch.ones(1, 2, 2).to_sparse()), ValueError, "J must be a dense tensor"),
    (lambda: right_svd(torch.ones(1, 2, 2, device="meta")), ValueError, "J must hold numbers"),
    (
        lambda: torch.func.vmap(lambda J: right_svd(J[None]).S)(torch.ones(1, 2, 2)),
        RuntimeError,
        "J is inside a torch.func transform",
    ),
    (lambda: assignment(torch.ones(1, 2, 3)), ValueError, "cost must be square"),
    (lambda: nearest_signed_permutation(torch.ones(1, 2, 3)), ValueError, "V must be square"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_input(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stray", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_the_sample_that_is_not_finite_is_named(
    backend: str, stray: float, dtype: torch.dtype
) -> None:
    square = torch.randn(5, 4, 4).to(dtype)
    square[3, 3, 2] = stray
    square[4, 0, 0] = stray
    for function, name in (
        (right_svd, "J"),
        (assignment, "cost"),
        (nearest_signed_permutation, ""),
    ):
        with pytest.raises(ValueError, match=rf"{name}.* sample 3 .*2 of 5 samples"):
            function(square)
