"""Right singular vectors, assignments, and a decoder's distance to orthogonality from end to end.

Against torch.linalg.svd, against the eigenvectors of the Gram matrix (what one writes for speed)
and against a loop over SciPy; each with its error against float64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import gate
import measure
import numpy as np
import pytest
import torch
from conftest import Compare
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vaekern.diagnostics import decoder_orthogonality
from vaekern.linalg import assignment, right_svd
from vaekern.models import networks

SHAPES = {"512x784x16": (512, 784, 16), "64x3072x64": (64, 3072, 64), "2000x6x2": (2000, 6, 2)}
LARGE = {"512x12288x64": (512, 12288, 64)}

Vectors = tuple[Tensor, Tensor]  # S [B, d] descending, V [B, d, d]


def _normal(batch: int, m: int, d: int) -> Tensor:
    return torch.randn(batch, m, d)


def _decoder_like(batch: int, m: int, d: int) -> Tensor:
    """Columns of lengths from 1 to 1e-4, orthogonal but for cosines of some 1e-3."""
    columns = torch.randn(batch, m, d) / m**0.5
    if m > d:
        columns = torch.linalg.qr(columns).Q + 1e-3 * torch.randn(batch, m, d) / m**0.5
    return (columns * torch.logspace(0, -4, d)).contiguous()


MATRICES = {"random": _normal, "decoder-like": _decoder_like}


def _ours(J: Tensor) -> Vectors:
    svd = right_svd(J)
    return svd.S, svd.V


def _lapack(J: Tensor) -> Vectors:
    _, S, Vh = torch.linalg.svd(J, full_matrices=False)
    return S, Vh.mT


def _gram(J: Tensor) -> Vectors:
    values, V = torch.linalg.eigh(J.mT @ J)
    return values.clamp(min=0).sqrt().flip(1), V.flip(2)


def _gram_in_double(J: Tensor) -> Vectors:
    return _gram(J.double())


SOLVERS: dict[str, Callable[[Tensor], Vectors]] = {
    "vaekern": _ours,
    "svd": _lapack,
    "gram_eigh": _gram,
    "gram_eigh_double": _gram_in_double,
}


def _errors(S: Tensor, truth: Tensor) -> dict[str, float]:
    """The worst singular value, relative to itself and to the largest of its matrix."""
    error = (S.double() - truth).abs()
    return {
        "relative": float((error / truth).max()),
        "absolute": float((error / truth[:, :1]).max()),
    }


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def bench_right_svd(shape: tuple[int, int, int], kind: str, compare: Compare) -> None:
    _right_svd(shape, kind, compare)


@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def bench_right_svd_of_large_decoders(shape: tuple[int, int, int], compare: Compare) -> None:
    _right_svd(shape, "decoder-like", compare, fewest_visits=1)


def _right_svd(
    shape: tuple[int, int, int],
    kind: str,
    compare: Compare,
    fewest_visits: int = measure.FEWEST_VISITS,
) -> None:
    torch.manual_seed(0)
    J = MATRICES[kind](*shape)
    with measure.threads(1):
        truth = torch.cat([torch.linalg.svdvals(part.double()) for part in J.split(64)])
        errors = {name: _errors(solve(J)[0], truth) for name, solve in SOLVERS.items()}
        if not errors["vaekern"]["absolute"] < 1e-7:
            raise gate.WrongResult(f"right_svd is off by {errors['vaekern']} of sigma_1")
        compare(
            {name: (lambda solve=solve: solve(J)) for name, solve in SOLVERS.items()},
            kind="right_svd",
            name=kind,
            shape=list(shape),
            errors=errors,
            fewest_visits=fewest_visits,
        )


@pytest.mark.parametrize(("d", "batch"), [(5, 1000), (16, 1000), (64, 200), (128, 50)])
def bench_assignment(d: int, batch: int, compare: Compare) -> None:
    torch.manual_seed(0)
    # the cost that distance_to_orthogonality has
    cost = 1 - 2 * torch.linalg.qr(torch.randn(batch, d, d)).Q.abs()
    array = cost.double().numpy()

    def scipy_loop() -> np.ndarray:
        return np.stack([linear_sum_assignment(c)[1] for c in array])

    with measure.threads(1):
        if not np.array_equal(assignment(cost).numpy(), scipy_loop()):
            raise gate.WrongResult("assignment is not SciPy's")
        compare(
            {"vaekern": lambda: assignment(cost), "scipy": scipy_loop},
            kind="assignment",
            name="assignment",
            shape=[batch, d, d],
        )


LATENTS, SAMPLES, LOOP_SAMPLES = 16, 2000, 4


def bench_distance_to_orthogonality(benchmark: Any) -> None:
    """2,000 Jacobians of the InfoGAN decoder to their mean distance, against the obvious loop.

    The loop takes minutes: a few of its samples are timed and scaled up."""
    torch.manual_seed(0)
    _, decoder = networks.infogan((1, 28, 28), LATENTS)
    decoder = decoder.eval().requires_grad_(False)
    z = torch.randn(SAMPLES, LATENTS)

    def loop(z: Tensor) -> float:
        total = 0.0
        for code in z:
            J = torch.func.jacrev(lambda c: decoder(c[None])[0].flatten())(code)
            V = torch.linalg.svd(J, full_matrices=False).Vh.mT
            rows, columns = linear_sum_assignment(1 - 2 * V.abs().numpy())
            P = torch.zeros_like(V)
            P[rows, columns] = torch.where(V[rows, columns] < 0, -1.0, 1.0)
            total += float((V - P).norm())
        return total / len(z)

    def ours(z: Tensor) -> float:
        return decoder_orthogonality(decoder, z, baseline_samples=100, progress=False).mean.full

    benchmark.extra_info.update(
        kind="orthogonality", name="DtO, InfoGAN decoder", shape=[SAMPLES, 784, LATENTS], threads=1
    )
    with measure.threads(1):
        few = z[:LOOP_SAMPLES]
        if not math.isclose(ours(few), loop(few), abs_tol=1e-3):
            raise gate.WrongResult(f"DtO is {ours(few)}, by the loop {loop(few)}")
        if not benchmark.enabled:
            return
        seconds = {"vaekern": _seconds(lambda: ours(z))}
        seconds["loop"] = _seconds(lambda: loop(few)) * SAMPLES / LOOP_SAMPLES
    row = measure.summary({name: [value] for name, value in seconds.items()})
    benchmark.extra_info.update(row, loop_samples=LOOP_SAMPLES)
    measure.replay([seconds["vaekern"]])
    benchmark.pedantic(lambda: None, rounds=1)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
