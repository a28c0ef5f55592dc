"""The benchmarks' correctness gate lets rounding pass and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

GATE = Path(__file__).parents[1] / "benchmarks" / "gate.py"


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gate", GATE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value(a: Tensor, b: Tensor) -> Tensor:
    return (a * a * torch.exp(b)).sum()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(33, 7, generator=generator, requires_grad=True) for name in ("a", "b")
    }


def test_correct_variant_passes(gate: ModuleType, inputs: dict[str, Tensor]) -> None:
    gate.check({"right": lambda: value(**inputs)}, value, inputs)


def halved_gradient(a: Tensor, b: Tensor) -> Tensor:
    return value(a, b) / 2 + value(a, b).detach() / 2


def value_off_by_four_parts_per_thousand(a: Tensor, b: Tensor) -> Tensor:
    return value(a, b) + 4e-3 * value(a, b).detach()


def nan_in_one_gradient(a: Tensor, b: Tensor) -> Tensor:
    return value(a, b) + _Poison.apply(a)


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, a: Tensor) -> Tensor:
        return a.new_zeros(())

    @staticmethod
    def backward(ctx: object, *upstream: Tensor) -> Tensor:
        gradient = torch.zeros(33, 7)
        gradient[-1, -1] = torch.nan
        return gradient


def wrong_shape(a: Tensor, b: Tensor) -> Tensor:
    return value(a, b).reshape(1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (halved_gradient, "wrong: a is off"),
        (value_off_by_four_parts_per_thousand, "wrong: output 0 is off"),
        (nan_in_one_gradient, "wrong: a is off"),
        (wrong_shape, r"output 0 has shape \[1\], not \[\]"),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_wrong_variant_is_refused(
    gate: ModuleType, inputs: dict[str, Tensor], wrong: object, sentence: str
) -> None:
    assert callable(wrong)
    with pytest.raises(gate.WrongResult, match=sentence):
        gate.check({"wrong": lambda: wrong(**inputs)}, value, inputs)
