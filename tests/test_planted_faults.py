"""The generated suite must be able to fail: each planted fault turns the comparison red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vaekern import backends, ops, testing

pytestmark = pytest.mark.skipif(
    not backends.has_kernel("cpu"), reason="the native core is not in use"
)
FUNCTION = next(o for o in testing.OPERATORS if o.name == "mle_nll-diag-i-None-batchmean-L0")
SHAPE = (4, 2, 17)


def _last_feature_forgotten(out: list[torch.Tensor]) -> None:
    out[2][..., -1] = 0


def _row_unwritten(out: list[torch.Tensor]) -> None:
    out[2][1] = float("nan")


def _half_forgotten(out: list[torch.Tensor]) -> None:
    out[0].mul_(2)


def _constant_truncated(out: list[torch.Tensor]) -> None:
    out[0].sub_(34 * 8.533e-6)  # 0.91893 for log(2 pi) / 2, as the original code has it


def _no_gradient(out: list[torch.Tensor]) -> None:
    out[2].zero_()


def _sign_flipped(out: list[torch.Tensor]) -> None:
    out[3].neg_()


def _one_sample_swapped(out: list[torch.Tensor]) -> None:
    out[2][[0, 1]] = out[2][[1, 0]]


def _slightly_wrong(out: list[torch.Tensor]) -> None:
    out[2] *= 1 + 3e-6  # thirty roundings of float32


FAULTS: list[Callable[[list[torch.Tensor]], None]] = [
    _last_feature_forgotten,
    _row_unwritten,
    _half_forgotten,
    _constant_truncated,
    _no_gradient,
    _sign_flipped,
    _one_sample_swapped,
    _slightly_wrong,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__.strip("_"))
def test_fault_in_the_operator(
    fault: Callable[[list[torch.Tensor]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ops.cpu.core.loss
    inputs = testing.draw(FUNCTION, SHAPE, torch.float32, "contiguous")
    assert testing.compare(FUNCTION, inputs, "cpu") == []

    def faulty(*args: Any) -> None:
        real(*args)
        fault([args[10], args[11], args[12], args[13]])  # value, statistics, gradients

    monkeypatch.setattr(ops.cpu.core, "loss", faulty)
    assert testing.compare(FUNCTION, inputs, "cpu")


@pytest.mark.parametrize("option", ["eps", "objective", "activation", "reduction", "beta"])
def test_wrong_option_reaches_the_kernel(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = next(o for o in testing.OPERATORS if o.name == "GaussianVAELoss-diag-i-mle")
    real = ops.cpu.core.loss
    position = -9 + ("objective", "activation", "reduction", "beta", "eps").index(option)
    inputs = testing.draw(operator, SHAPE, torch.float32, "contiguous")
    assert testing.compare(operator, inputs, "cpu") == []

    def faulty(*args: Any) -> None:
        changed = list(args)
        changed[position] = 0.3 if option in ("eps", "beta") else (changed[position] + 1) % 3
        if option == "objective":
            changed[position] = 3
        real(*changed)

    monkeypatch.setattr(ops.cpu.core, "loss", faulty)
    assert testing.compare(operator, inputs, "cpu")


def test_an_output_left_alone_is_seen(monkeypatch: pytest.MonkeyPatch, poisoned: None) -> None:
    operator = next(o for o in testing.OPERATORS if o.name == "GaussianVAELoss-iso-i-mle")
    inputs = testing.draw(operator, SHAPE, torch.float32, "contiguous")
    monkeypatch.setattr(ops.cpu.core, "loss", lambda *args: None)
    assert testing.compare(operator, inputs, "cpu")


def test_a_wrong_dtype_is_seen() -> None:
    got = torch.tensor(1.0, dtype=torch.float64)
    assert testing.worst_error(got + 1e-3, got) == pytest.approx(1e-3)
    assert testing.worst_error(torch.tensor(float("nan")), got) == float("inf")
