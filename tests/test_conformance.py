"""Operators x backends x dtypes x layouts, values and gradients against float64."""

from __future__ import annotations

import pytest
import torch

from vaekern import backends, ops, testing
from vaekern.testing import LAYOUTS, OPERATORS

KERNEL_BACKENDS = [b.name for b in backends.BACKENDS if b.name != "reference" and b.device == "cpu"]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# images for the layouts; each shape of SHAPES for a reason
IMAGES = (4, 3, 8, 6)
SHAPES = {
    "scalar tail only": (3, 1, 1),
    "one past a vector": (2, 1, 17),
    "batch of one": (1, 2, 392),
    "one past a block": (2, 1, 2049),
    "past a chunk": (2, 3, 5500),
    "rows past a column tile": (200, 2, 10),
    "several row chunks": (300, 1, 70),
    "empty batch": (0, 2, 3),
}


@pytest.fixture(autouse=True)
def _available(request: pytest.FixtureRequest) -> None:
    for name in KERNEL_BACKENDS:
        why = next(b for b in backends.BACKENDS if b.name == name).unavailable()
        if why:
            pytest.skip(f"backend {name}: {why}")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_dtypes_and_layouts(
    operator: testing.Operator, dtype: torch.dtype, layout: str, backend: str
) -> None:
    inputs = testing.draw(operator, IMAGES, dtype, layout)
    if layout == "expanded" and "scale_tril" in inputs:
        inputs["scale_tril"] = inputs["scale_tril"].contiguous()
    assert testing.compare(operator, inputs, backend) == []


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_shapes(operator: testing.Operator, shape: tuple[int, ...], backend: str) -> None:
    for dtype in (torch.float64, torch.float32):
        inputs = testing.draw(operator, shape, dtype, "contiguous")
        assert testing.compare(operator, inputs, backend) == [], dtype


@pytest.mark.parametrize("backend", KERNEL_BACKENDS)
@pytest.mark.parametrize("operator", [o for o in OPERATORS if o.data], ids=str)
def test_mixed_dtypes(operator: testing.Operator, backend: str) -> None:
    """What autocast produces: half-precision network outputs beside float32 data."""
    inputs = testing.draw(operator, IMAGES, torch.float32, "contiguous")
    inputs["x_hat"] = inputs["x_hat"].bfloat16()
    if "mu" in inputs:
        inputs["mu"] = inputs["mu"].half()
    assert testing.compare(operator, inputs, backend) == []


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_through_the_dispatcher(
    operator: testing.Operator, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registered operators, as tracing and dispatch modes reach them, in place of the short
    way of plain eager mode."""
    monkeypatch.setattr(ops, "_plain", lambda *tensors: False)
    for name in ("direct_loss", "direct_sample"):
        monkeypatch.setattr(ops, name, lambda *args: None)
    for layout in ("contiguous", "transposed"):
        inputs = testing.draw(operator, IMAGES, dtype, layout)
        assert testing.compare(operator, inputs, "cpu") == [], layout
