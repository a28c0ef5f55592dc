"""The operators that ``gpu.py`` checks and times: one row each, with what else does the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaekern import cuda, linalg, reference_linalg

Shape = tuple[int, ...]
Errors = dict[str, float]


@dataclass(frozen=True)
class Operator:
    """kernel: launches without waiting, so that it can be captured. public: what a user calls.

    baselines: name -> the same by other means, from slow to exact.
    errors: errors(input, outputs) against float64 on the CPU.
    limits: the largest errors that pass the check. cases: name -> input on the CPU, for the check.
    """

    name: str
    shapes: tuple[Shape, ...]
    small: tuple[Shape, ...]  # for the dry run
    inputs: Callable[[Shape], Tensor]
    kernel: Callable[[Tensor], Any]
    public: Callable[[Tensor], Any]
    baselines: Mapping[str, Callable[[Tensor], Any]]
    errors: Callable[[Tensor, Any], Errors]
    cases: Callable[[bool], Mapping[str, Tensor]]
    limits: Callable[[str], Errors]
    bytes_moved: Callable[[Shape], int]
    on_cpu: frozenset[str] = field(default_factory=frozenset)  # baselines that take CPU tensors


# ------------------------------------------------------------------ right_svd


def orthonormal(*shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(shape, dtype=torch.float64)).Q


def rotated(batch: int, m: int, d: int, condition: float) -> Tensor:
    """Singular values from 1 down to 1 / condition, along random directions."""
    exponent = -float(torch.tensor(condition).log10())
    values = torch.logspace(0, exponent, d, dtype=torch.float64)
    return (orthonormal(batch, m, d) * values @ orthonormal(batch, d, d).mT).float()


def graded(batch: int, m: int, d: int) -> Tensor:
    """Nearly orthogonal columns whose lengths span eight orders, as of a polarised decoder."""
    columns = orthonormal(batch, m, d) + 1e-3 * torch.randn(batch, m, d) / m**0.5
    return (columns * torch.logspace(0, -8, d, dtype=torch.float64)[torch.randperm(d)]).float()


def _svd_cases(small: bool) -> dict[str, Tensor]:
    sizes = [(60, 5), (90, 16)] if small else [(784, 16), (300, 31), (3072, 64), (700, 100)]
    cases: dict[str, Tensor] = {}
    for m, d in sizes:
        at = f"{m}x{d}"
        for condition in (1e2, 1e4, 1e6, 1e8):
            cases[f"rotated {condition:.0e} {at}"] = rotated(4, m, d, condition)
        cases[f"graded {at}"] = graded(4, m, d)
        gaussian = torch.randn(4, m, d)
        cases[f"gaussian {at}"] = gaussian
        cases[f"transposed {at}"] = gaussian.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        cases[f"misaligned {at}"] = torch.randn(4 * m * d + 1)[1:].view(4, m, d)
        cases[f"strided {at}"] = torch.randn(4, 2 * m, 2 * d)[:, ::2, ::2]
        cases[f"float16 {at}"] = gaussian.half()
        cases[f"bfloat16 {at}"] = gaussian.bfloat16()
        cases[f"rank 3 {at}"] = torch.randn(4, m, 3) @ torch.randn(4, 3, d)
        cases[f"zero columns {at}"] = gaussian * (torch.arange(d) % 2)
        cases[f"wide {at}"] = gaussian[:, : d // 2]
    cases["zero 20x6"] = torch.zeros(3, 20, 6)
    if not small:
        cases["gaussian 400x256"] = torch.randn(2, 400, 256)
    return cases


CHECKED = 8  # matrices of a batch that are held against float64


def _svd_errors(J: Tensor, outputs: Any) -> Errors:
    """S over the largest and over itself; how far V is from orthogonal and from diagonalising."""
    S, V = (t[:CHECKED].double().cpu() for t in outputs[:2])
    A = J[:CHECKED].double().cpu()
    truth = torch.linalg.svdvals(A)
    d = A.shape[2]
    truth = torch.cat([truth, truth.new_zeros(len(A), d - truth.shape[1])], 1)
    largest = torch.where(truth[:, :1] > 0, truth[:, :1], 1.0)
    identity = torch.eye(d, dtype=torch.float64)
    product = A @ V
    mixed = (product.mT @ product) * (1 - identity) / largest[:, :, None] ** 2
    relative = (S - truth).abs() / truth.clamp_min(1e-12 * largest)
    return {
        "S": float(((S - truth).abs() / largest).max()),
        "S relative": float(relative.max()),
        "V orthogonal": float((V.mT @ V - identity).abs().max()),
        "V diagonal": float(mixed.abs().max()),
    }


def _svd_limits(case: str) -> Errors:
    # S and V are rounded to float32 (2^-24 each, twice that for products of two); the Gram matrix
    # bounds a singular value to some sqrt(32 eps) = 8e-8 of the largest where columns are not
    # nearly orthogonal, and to its own size where they are
    limits = {"S": 2e-7, "V orthogonal": 3e-7, "V diagonal": 3e-7}
    return {**limits, "S relative": 2e-7} if case.startswith("graded") else limits


def _torch_svd(driver: str | None) -> Callable[[Tensor], Any]:
    def run(J: Tensor) -> tuple[Tensor, Tensor]:
        options = {"driver": driver} if J.device.type == "cuda" else {}
        _, S, Vh = torch.linalg.svd(J, full_matrices=False, **options)
        return S, Vh.mT

    return run


def _gram_eigh(dtype: torch.dtype) -> Callable[[Tensor], Any]:
    def run(J: Tensor) -> tuple[Tensor, Tensor]:
        A = J.to(dtype)
        values, V = torch.linalg.eigh(A.mT @ A)
        return values.flip(1).clamp_min(0).sqrt(), V.flip(2)

    return run


def _svd_kernel(J: Tensor) -> Any:
    return cuda.right_svd(J) if J.device.type == "cuda" else reference_linalg.right_svd(J)


RIGHT_SVD = Operator(
    "right_svd",
    shapes=((512, 784, 16), (64, 3072, 64), (512, 12288, 64), (2000, 6, 2)),
    small=((6, 40, 8), (10, 6, 2)),
    inputs=lambda shape: torch.randn(shape),
    kernel=_svd_kernel,
    public=linalg.right_svd,
    baselines={
        "svd": _torch_svd(None),
        "svd gesvd": _torch_svd("gesvd"),
        "svd gesvdj": _torch_svd("gesvdj"),
        "svd gesvda": _torch_svd("gesvda"),
        "gram+eigh float32": _gram_eigh(torch.float32),
        "gram+eigh float64": _gram_eigh(torch.float64),
    },
    errors=_svd_errors,
    cases=_svd_cases,
    limits=_svd_limits,
    bytes_moved=lambda shape: 4 * shape[0] * (shape[1] * shape[2] + shape[2] ** 2 + shape[2]),
)


# ------------------------------------------------------------------ assignment


def _scipy(cost: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    numbers = cost.double().numpy()
    return torch.from_numpy(np.stack([linear_sum_assignment(c)[1] for c in numbers]))


def _assignment_cases(small: bool) -> dict[str, Tensor]:
    cases: dict[str, Tensor] = {}
    for d in (1, 5, 16) if small else (1, 2, 5, 16, 33, 64, 100, 128, 256):
        cases[f"real {d}"] = torch.randn(8, d, d)
        cases[f"ties {d}"] = torch.randint(-3, 4, (8, d, d)).float()
        cases[f"transposed {d}"] = torch.randint(0, 2, (8, d, d)).float().mT
        cases[f"float64 {d}"] = torch.randn(8, d, d, dtype=torch.float64)
        cases[f"bfloat16 {d}"] = torch.randn(8, d, d).bfloat16()
    return cases


def _assignment_errors(cost: Tensor, outputs: Any) -> Errors:
    different = outputs.cpu() != _scipy(cost.cpu())
    return {"columns that differ": float(different.sum())}


def _assignment_kernel(cost: Tensor) -> Any:
    return (
        cuda.assignment(cost) if cost.device.type == "cuda" else reference_linalg.assignment(cost)
    )


ASSIGNMENT = Operator(
    "assignment",
    shapes=tuple((1000, d, d) for d in (5, 16, 64, 128)),
    small=((6, 5, 5), (3, 12, 12)),
    inputs=lambda shape: 1 - 2 * torch.linalg.qr(torch.randn(shape)).Q.abs(),
    kernel=_assignment_kernel,
    public=linalg.assignment,
    baselines={"scipy, CPU": _scipy},
    errors=_assignment_errors,
    cases=_assignment_cases,
    limits=lambda case: {"columns that differ": 0.0},
    bytes_moved=lambda shape: 4 * shape[0] * shape[1] * shape[2] + 8 * shape[0] * shape[1],
    on_cpu=frozenset({"scipy, CPU"}),
)

OPERATORS = (RIGHT_SVD, ASSIGNMENT)
