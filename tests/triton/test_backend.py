"""The Triton backend's Python side: what it launches, what it asks of the device, why it cannot."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vaekern import backends, functional, testing
from vaekern import triton as backend
from vaekern.ops import OBJECTIVES

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed (it is part of [test] on Linux x86)",
)

#: What the host may ask for: allocations, views, copies from device to device.
HARMLESS = {
    "empty", "empty_like", "zeros", "fill_", "zero_", "permute", "view", "slice", "select", "clone",
    "copy_", "detach", "alias", "as_strided", "unsafe_view", "_unsafe_view", "reshape", "t",
    "transpose", "sum", "div", "isfinite", "abs", "eq", "ne", "mul", "gt", "where", "lerp",
    "scalar_tensor", "_to_copy",
}  # fmt: skip


class Asked(TorchDispatchMode):
    """Notes every operator, and what would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Launches are noted and not made."""
    launch = backend.kernels()
    noted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(launch, "run", lambda *args: noted.append(args))
    return noted


def _loss(objective: str, B: int, F: int, dtype: torch.dtype = torch.float32) -> None:
    x_hat, x = torch.empty(2, B, F, dtype=dtype)
    mu, logvar = torch.empty(2, B, 8, dtype=dtype)
    x_logvar = torch.empty(1) if objective == "gaussian" else None
    out = [torch.empty_like(t) for t in (x_hat, mu, logvar)]
    backend.kernels().loss(
        x_hat, x, x_logvar, mu, logvar, None, None, None, None, None, torch.empty(()), None, out[0],
        None, x_logvar, out[1], out[2], None, None, None, None, None, 0.0, OBJECTIVES[objective], 0,
        0, 1.0, 1e-6, -3e38, 3e38, -3e38, 1,
    )  # fmt: skip


@needs_triton
@pytest.mark.parametrize(
    ("objective", "shape", "count"),
    [
        ("gaussian", (64, 784), 1),
        ("iso-d", (64, 784), 1),
        ("diag-d", (64, 785), 1),
        ("diag-i", (512, 12288), 1),
        ("diag-i", (8192, 49152), 2),
        ("iso-i", (64, 784), 2),
        ("iso-d", (1, 1 << 20), 2),
    ],
)
def test_reconstruction_and_kl_take_the_fewest_launches(
    objective: str, shape: tuple[int, int], count: int, launches: list[Any]
) -> None:
    if shape[0] * shape[1] <= 1 << 24:
        _loss(objective, *shape)
        assert len(launches) == count
    else:  # the plan alone
        from vaekern.triton import plan

        c = plan.Case(
            False, OBJECTIVES[objective], 0, 0, 1e-6, -3e38, 3e38, -3e38, 0.0, 0, *shape, 1, 8,
            True, False, True, True, False, False, plan.Tuning(),
        )  # fmt: skip
        assert len(plan.make(c).steps) == count


@needs_triton
def test_nothing_waits_for_the_device(launches: list[Any]) -> None:
    """On the way from a loss to its launches, no operator that would synchronise."""
    for operator in testing.OPERATORS:
        for layout in testing.LAYOUTS:
            inputs = testing.draw(operator, (4, 2, 3, 5), torch.float32, layout)
            calls: list[tuple[Any, ...]] = []
            _note_kernel_calls(operator, inputs, calls)
            for slot, args in calls:
                with Asked() as asked:
                    getattr(backend.kernels(), slot)(*args)
                assert set(asked.names) <= HARMLESS, (operator.name, layout)
    assert launches


def _note_kernel_calls(
    operator: testing.Operator, inputs: testing.Inputs, calls: list[tuple[Any, ...]]
) -> None:
    """The slots' calls, with real arguments."""

    class Noted:
        def __getattr__(self, slot: str) -> Any:
            getattr(backend.kernels(), slot)  # what Triton leaves out is not asked for
            return lambda *args: calls.append((slot, args))

    known = dict(backends._LOSS_KERNELS)
    backends._LOSS_KERNELS["cpu"] = Noted()
    try:
        leaves = {k: t.detach().requires_grad_(k != "noise") for k, t in inputs.items()}
        value = operator.run(leaves)
        wanted = [t for t in leaves.values() if t.requires_grad]
        torch.autograd.grad(value, wanted, torch.ones_like(value))
    finally:
        backends._LOSS_KERNELS.clear()
        backends._LOSS_KERNELS.update(known)
    assert calls


# ------------------------------------------------------------------ why not


def test_reasons_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = backend.unavailable.__wrapped__  # past the cache
    if not torch.cuda.is_available():
        why = reason()
        assert why is not None
        assert "\n" not in why
        assert backends.active("cuda") == "reference"
    monkeypatch.setenv("VAEKERN_PURE", "1")
    assert "VAEKERN_PURE" in reason()
    monkeypatch.delenv("VAEKERN_PURE")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in reason()


def test_a_device_that_cannot_run_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def probe(self, device: torch.device) -> None:
            raise RuntimeError("Failed to find\nC compiler.")

    reason = backend.unavailable.__wrapped__
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert "Old GPU has compute capability 7.0" in reason()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "kernels", Failing)
    assert "went wrong: Failed to find C compiler." in reason()
    monkeypatch.setattr(Failing, "probe", lambda self, device: None)
    assert reason() is None


def test_a_gpu_on_plain_pytorch_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(
        dataclasses.replace(b, unavailable=lambda: "no luck") if b.device == "cuda" else b
        for b in backends.BACKENDS
    )
    monkeypatch.setattr(backends, "BACKENDS", rows)
    monkeypatch.setattr(backends, "_warned", False)
    backends._forget()
    reasons = "plain PyTorch on this GPU, for cuda: no luck; triton: no luck; "
    with pytest.warns(UserWarning, match=reasons):
        assert not backends.has_kernel("cuda")
    backends._forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not backends.has_kernel("cuda")
    backends._forget()


def test_probing_is_no_part_of_a_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first use of a device may be inside torch.compile."""

    def untraceable() -> None:
        return None if subprocess.run([sys.executable, "--version"]).returncode == 0 else "?"

    rows = tuple(
        dataclasses.replace(b, unavailable=untraceable) if b.name == "cpu" else b
        for b in backends.BACKENDS
    )
    if not backends.has_kernel("cpu"):
        pytest.skip("the native core is not in use")
    monkeypatch.setattr(backends, "BACKENDS", rows)
    backends._forget()
    torch._dynamo.reset()
    mu = torch.randn(3, 4)
    compiled = torch.compile(functional.gaussian_kl, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(mu, mu), functional.gaussian_kl(mu, mu))
    backends._forget()
