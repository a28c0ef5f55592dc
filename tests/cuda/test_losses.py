"""The losses' CUDA kernels on the emulation of a grid of blocks, against float64; and the naive
loops of the CPU core's checker."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vaekern import GaussianVAELoss, functional, ops, testing
from vaekern.testing import LAYOUTS, OPERATORS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parent.parent.parent
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
IMAGES = (4, 3, 8, 6)
SHAPES = {
    "scalar tail only": (3, 1, 1),
    "one past two vectors": (2, 1, 17),
    "a block to a row": (2, 1, 301),
    "batch of one": (1, 2, 392),
    "two chunks of a row": (2, 1, 5003),
    "a wide tile and a narrow one": (70, 1, 40),
    "several chunks of rows": (1100, 1, 33),
    "empty batch": (0, 2, 3),
}


def _agrees_in(operator: testing.Operator, dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(0)  # what test_conformance draws
    inputs = testing.draw(operator, IMAGES, dtype, layout)
    if layout == "expanded" and "scale_tril" in inputs:
        inputs["scale_tril"] = inputs["scale_tril"].contiguous()
    assert testing.compare(operator, inputs, "cuda") == [], (dtype, layout)


def _agrees_at(operator: testing.Operator, name: str, dtype: torch.dtype) -> None:
    if not operator.data and SHAPES[name][0] > 100:
        return  # latents only: 1,100 samples are no other case
    torch.manual_seed(0)
    inputs = testing.draw(operator, SHAPES[name], dtype, "contiguous")
    assert testing.compare(operator, inputs, "cuda") == [], (name, dtype)


#: The plain suite goes through them in turn, from another start for each operator.
ALL_DTYPES_AND_LAYOUTS = list(itertools.product(DTYPES, LAYOUTS))
NUMBERED = [pytest.param(i, o, id=o.name) for i, o in enumerate(OPERATORS)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("number", "operator"), NUMBERED)
def test_dtypes_and_layouts(emulation, number: int, operator: testing.Operator) -> None:
    for dtype, layout in ALL_DTYPES_AND_LAYOUTS[number % 5 :: 5]:  # every dtype, several layouts
        _agrees_in(operator, dtype, layout)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("number", "operator"), NUMBERED)
def test_shapes(emulation, number: int, operator: testing.Operator) -> None:
    for k, name in enumerate(SHAPES, number):
        _agrees_at(operator, name, DTYPES[k % 2])


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_every_dtype_layout_and_shape(emulation, operator: testing.Operator) -> None:
    for dtype, layout in ALL_DTYPES_AND_LAYOUTS:
        _agrees_in(operator, dtype, layout)
    for name, dtype in itertools.product(SHAPES, DTYPES[:2]):
        _agrees_at(operator, name, dtype)


@pytest.mark.parametrize("operator", [o for o in OPERATORS if o.data], ids=str)
def test_mixed_dtypes_and_offsets(emulation, operator: testing.Operator) -> None:
    """What autocast produces; and rows whose first aligned element is not the first one."""
    inputs = testing.draw(operator, (6, 1, 323), torch.float32, "misaligned")
    assert testing.compare(operator, inputs, "cuda") == []
    inputs = testing.draw(operator, IMAGES, torch.float32, "contiguous")
    inputs["x_hat"] = inputs["x_hat"].bfloat16()
    if "mu" in inputs:
        inputs["mu"] = inputs["mu"].half()
    assert testing.compare(operator, inputs, "cuda") == []


def _orders() -> list[Any]:
    """The plain suite takes a shape of each operator in turn."""
    operators = [o for o in OPERATORS if "L0" in o.name]
    return [
        pytest.param(o, shape, id=f"{o}-{shape}", marks=[pytest.mark.slow] if (i + j) % 3 else [])
        for i, o in enumerate(operators)
        for j, shape in enumerate([(6, 1, 300), (3, 1, 4200), (1100, 1, 40)])
    ]


@pytest.mark.parametrize(("operator", "shape"), _orders())
def test_the_bits_depend_on_no_order(
    emulation, operator: testing.Operator, shape: tuple[int, ...]
) -> None:
    """Neither of the threads between two barriers, nor of the blocks: any may be the last one."""
    inputs = testing.draw(operator, shape, torch.float32, "contiguous")
    first = testing.evaluate(operator, inputs, "cuda")
    for order in ("backward", "shuffled"):
        emulation.set(order)
        again = testing.evaluate(operator, inputs, "cuda")
        assert torch.equal(first.value, again.value), order
        for name, grad in first.grads.items():
            assert torch.equal(grad, again.grads[name]), (order, name)


@pytest.mark.parametrize("covariance", ["iso-d", "diag-i"])
def test_what_does_not_fit_shared_memory_is_read_again(emulation, covariance: str) -> None:
    """The same bits as where it stays on the chip."""
    for activation, x_grad in ((None, False), (None, True), ("tanh", True)):
        torch.manual_seed(3)
        x_hat = torch.randn(2, 40, 1000, requires_grad=True)
        x = torch.randn(40, 1000, requires_grad=x_grad)
        found = []
        for shared_memory in (232_448, 6_000):
            emulation.set(shared_memory=shared_memory)
            with testing.backends.use("cuda"):
                loss = functional.mle_nll(x_hat, x, covariance, activation=activation)
            wanted = [x_hat, x] if x_grad else [x_hat]
            found.append([loss, *torch.autograd.grad(loss, wanted)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-9)


LAUNCHES = {  # forward and backward of the module, the second half of the forward's gradients
    ("iso-i", "fixed"): (1, 1),
    ("iso-i", "learned"): (1, 1),
    ("diag-i", "learned"): (1, 1),
    ("diag-d", "learned"): (1, 1),
    ("iso-i", "mle"): (1, 1),  # its gradient is written by the backward
    ("iso-d", "mle"): (1, 1),
    ("diag-i", "mle"): (1, 1),
    ("diag-d", "mle"): (1, 1),
}


@pytest.mark.parametrize(("covariance", "estimate"), list(LAUNCHES))
@pytest.mark.parametrize("shape", [(64, 784), (100, 3072)], ids=str)
def test_one_launch_each_way(emulation, covariance: str, estimate: str, shape) -> None:
    """Reconstruction, KL, reduction and the running variance together."""
    loss_fn = GaussianVAELoss(covariance, estimate, x_shape=shape[1:])
    x_hat, x = torch.randn(shape, requires_grad=True), torch.randn(shape)
    mu, logvar = (torch.randn(shape[0], 64, requires_grad=True) for _ in range(2))
    options = {}
    if (covariance, estimate) == ("diag-d", "learned"):
        options["x_logvar"] = torch.randn(shape, requires_grad=True)
    counts = [emulation.library.launches()]
    with testing.backends.use("cuda"):
        loss = loss_fn(x_hat, x, mu, logvar, **options)
        counts.append(emulation.library.launches())
        loss.backward()
        counts.append(emulation.library.launches())
    assert (counts[1] - counts[0], counts[2] - counts[1]) == LAUNCHES[covariance, estimate]


def test_a_second_backward_gives_the_same_gradient(emulation) -> None:
    """The first gives the forward's buffers away; the second starts from the statistics."""
    for covariance in ops.COVARIANCES:
        x_hat, x = torch.randn(30, 200, requires_grad=True), torch.randn(30, 200)
        with testing.backends.use("cuda"):
            loss = functional.mle_nll(x_hat, x, covariance)
        first, second = (
            torch.autograd.grad(loss, x_hat, torch.tensor(u), retain_graph=True)[0]
            for u in (1.0, 3.0)
        )
        torch.testing.assert_close(3 * first, second, rtol=2e-6, atol=0)


def test_scale(emulation) -> None:
    grads = [torch.randn(n).double() if n % 2 else torch.randn(n) for n in (1, 4, 7, 130, 5000)]
    grads.append(torch.randn(9)[1:])  # misaligned
    wanted = [g * 0.25 for g in grads]
    emulation.scale(*grads, None, None, torch.tensor(0.25), 1)
    assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))
    grads[0][0] = torch.nan
    emulation.scale(*grads, None, None, torch.tensor(1.0, dtype=torch.float64), 1)
    assert all(torch.equal(a, b) for a, b in zip(grads[1:], wanted[1:], strict=True))


#: Position among the arguments of a loss (backends.LossKernels), and what stands there instead.
WRONG_ARGUMENTS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "KL left out": (26, lambda beta: 0.0),
    "another eps": (27, lambda eps: 0.2),
    "another reduction": (25, lambda code: (code + 1) % 3),
    "another batch's statistics": (11, lambda t: t if t is None else t.mul_(1.1)),
}
#: fault -> an operator that meets it, the shape, and what is left out of the emulation.
PLANTED: dict[str, tuple[str, tuple[int, ...], str]] = {
    "KL left out": ("GaussianVAELoss-iso-i-mle", (4, 2, 17), "none"),
    "another eps": ("mle_nll-diag-i-None-batchmean-L0", (4, 2, 17), "none"),
    "another reduction": ("mle_nll-iso-d-None-batchmean-L0", (4, 2, 17), "none"),
    "another batch's statistics": ("mle_nll-iso-i-None-batchmean-L0", (4, 2, 17), "none"),
    "a block forgotten": ("mle_nll-diag-d-None-batchmean-L0", (3, 1, 300), "block"),
    "a barrier forgotten": ("mle_nll-iso-d-None-batchmean-L0", (3, 1, 300), "barrier"),
    "the second launch forgotten": ("mle_nll-diag-i-None-batchmean-L0", (1100, 1, 33), "launch"),
    "a ticket left behind": ("mle_nll-diag-d-None-batchmean-L0", (3, 1, 300), "ticket"),
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("fault", list(PLANTED))
def test_a_planted_fault_is_seen(emulation, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, shape, left_out = PLANTED[fault]
    operator = next(o for o in OPERATORS if o.name == name)
    inputs = testing.draw(operator, shape, torch.float32, "contiguous")
    assert testing.compare(operator, inputs, "cuda") == []
    emulation.set(fault=left_out)
    if fault in WRONG_ARGUMENTS:
        real, (position, wrong) = emulation.loss, WRONG_ARGUMENTS[fault]

        def faulty(*args: Any) -> None:
            backward = args[10] is None
            if position != 11 or backward:
                args = (*args[:position], wrong(args[position]), *args[position + 1 :])
            real(*args)

        monkeypatch.setattr(emulation, "loss", faulty)
    try:
        found = testing.compare(operator, inputs, "cuda")
    except RuntimeError as error:
        found = [str(error)]
    assert found


def _check(emulated_objects: tuple[Path, str], *arguments: str) -> None:
    folder, cxx = emulated_objects
    program = folder / "check_core"
    if not program.exists():
        source = ROOT / "tests" / "native" / "check_core.cpp"
        command = [cxx, "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", str(source)]
        subprocess.run([*command, str(folder / "losses.o"), "-o", str(program)], check=True)
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "emulated CUDA is right" in done.stdout


def test_naive_loops_agree(emulated_objects: tuple[Path, str]) -> None:
    """Random layouts, dtypes, sizes and options, within bounds derived from the arithmetic; gaps
    between elements and inputs stay as they were."""
    _check(emulated_objects, "0", "small")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(9))
def test_naive_loops_agree_on_more(emulated_objects: tuple[Path, str], seed: int) -> None:
    _check(emulated_objects, str(seed))
