"""Runs Triton's kernels in its interpreter, on CPU tensors: ``python interpreted.py CASES OUT``.

A process of its own, since TRITON_INTERPRET has to be set before Triton is imported.  CASES and OUT
are JSON: a list of cases, and for each one's name what is wrong with it, one line each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.runtime.interpreter as interpreter

from vaekern import backends, ops, testing
from vaekern.triton import launch, plan

OPERATORS = {o.name: o for o in testing.OPERATORS}
#: Sizes with which a few numbers take every branch: rows of several pieces and blocks, rows longer
#: than what is kept, column tiles that are not kept, several chunks, several blocks of the finish.
SMALL = plan.Tuning(
    multiprocessors=1, block=16, longest_piece=32, keep=32, held_rows=2, chunk=2, chunks=2,
    kl_block=16, finish_rows=16,
)  # fmt: skip
LARGE = plan.Tuning(multiprocessors=4)
TUNINGS = {"small": SMALL, "large": LARGE}


def _integers_of_one_element() -> None:
    """Triton 3.6 converts the interpreter's integers, arrays of one element, in a way that NumPy
    2.4 refuses; 3.7 does it as here."""
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch


# ------------------------------------------------------------------ planted faults
# Each takes a launch's arguments and changes them; tests want the comparison to see it.


def _how(**changes: Any) -> Callable[..., Any]:
    def change(run: Any, kernel: Any, programs: int, warps: int, *args: Any) -> None:
        how = args[-1]._replace(**changes) if hasattr(args[-1], "_replace") else args[-1]
        run(kernel, programs, warps, *args[:-1], how)

    return change


def _program_forgotten(run: Any, kernel: Any, programs: int, warps: int, *args: Any) -> None:
    run(kernel, programs - 1, warps, *args)


def _counter_left_behind(run: Any, kernel: Any, programs: int, warps: int, *args: Any) -> None:
    if len(args) > 3 and hasattr(args[2], "counter"):
        args[2].counter.fill_(1)
    run(kernel, programs, warps, *args)


def _second_launch_forgotten(run: Any, kernel: Any, programs: int, warps: int, *args: Any) -> None:
    if getattr(args[-1], "mode", None) not in (plan.FACTORS, plan.REST):
        run(kernel, programs, warps, *args)


def _samples_out_of_step(run: Any, kernel: Any, programs: int, warps: int, *args: Any) -> None:
    """x_hat's posterior samples one element off."""
    run(kernel, programs, warps, *args[:9], args[9] - 1, *args[10:])


def _unit_doubled(run: Any, kernel: Any, programs: int, warps: int, *args: Any) -> None:
    factor = 2 if hasattr(args[-1], "mode") else 1  # of the loss's launches, not of scale's sizes
    run(kernel, programs, warps, *args[:4], factor * args[4], *args[5:])


FAULTS: dict[str, Callable[..., Any]] = {
    "ends of rows left out": _how(aligned=True),
    "what is not kept left out": _how(longer=False),
    "another eps": _how(eps=0.2),
    "another activation": _how(activation=0),
    "another reduction": _unit_doubled,
    "KL left out": _how(has_kl=False),
    "variance taken for another layout": _how(spread=plan.SCALAR),
    "even weights for uneven ones": _how(uneven=False),
    "a program forgotten": _program_forgotten,
    "a counter left behind": _counter_left_behind,
    "second launch forgotten": _second_launch_forgotten,
    "samples out of step": _samples_out_of_step,
}

# ------------------------------------------------------------------ checks


def _inputs(case: dict[str, Any]) -> testing.Inputs:
    torch.manual_seed(0)
    operator = OPERATORS[case["operator"]]
    dtype = getattr(torch, case["dtype"])
    inputs = testing.draw(operator, tuple(case["shape"]), dtype, case["layout"])
    if case["layout"] == "expanded" and "scale_tril" in inputs:
        inputs["scale_tril"] = inputs["scale_tril"].contiguous()
    return inputs


def compare(case: dict[str, Any]) -> list[str]:
    inputs = _inputs(case)
    before = {k: t.clone() for k, t in inputs.items()}
    wrong = testing.compare(OPERATORS[case["operator"]], inputs, "triton")
    wrong += [f"{k} was written" for k, t in before.items() if not torch.equal(t, inputs[k])]
    return wrong


def dispatcher(case: dict[str, Any]) -> list[str]:
    """Through the registered operators, as tracing and dispatch modes reach them."""
    plain, ops._plain = ops._plain, lambda *tensors: False
    try:
        return testing.compare(OPERATORS[case["operator"]], _inputs(case), "triton")
    finally:
        ops._plain = plain


def bits(case: dict[str, Any]) -> list[str]:
    """The same bits again, however the programs' counts were left by other launches."""
    inputs = _inputs(case)
    results = [testing.evaluate(OPERATORS[case["operator"]], inputs, "triton") for _ in range(3)]
    first = results[0]
    wrong = []
    for other in results[1:]:
        wrong += [] if torch.equal(first.value, other.value) else ["another value"]
        wrong += [k for k in first.grads if not torch.equal(first.grads[k], other.grads[k])]
    return wrong


def no_grad(case: dict[str, Any]) -> list[str]:
    """The value without gradients, and NaN where an input has one."""
    operator, inputs = OPERATORS[case["operator"]], _inputs(case)
    truth = testing.evaluate(operator, {k: t.double() for k, t in inputs.items()}, "reference")
    wrong = []
    with torch.no_grad(), backends.use("triton"):
        value = operator.run(inputs)
        if testing.worst_error(value, truth.value) > 1e-6:
            wrong.append(f"{value} where {truth.value} is right")
        inputs["x"].view(-1)[-1] = float("nan")
        if operator.run(inputs).isfinite().all():
            wrong.append("a NaN in x is hidden")
    return wrong


def compiled(case: dict[str, Any]) -> list[str]:
    """torch.compile(fullgraph=True), from fakes to kernels."""
    operator = OPERATORS[case["operator"]]
    torch._dynamo.reset()
    inputs = {k: t.requires_grad_(k != "noise") for k, t in _inputs(case).items()}
    leaves = [t for t in inputs.values() if t.requires_grad]
    with backends.use("triton"):
        eager = operator.run(inputs)
        wanted = torch.autograd.grad(eager.sum() * 1.3, leaves)
        value = torch.compile(operator.run, fullgraph=True, backend="aot_eager")(inputs)
        found = torch.autograd.grad(value.sum() * 1.3, leaves)
    pairs = zip((eager, *wanted), (value, *found), strict=True)
    return [f"{a} and {b}" for a, b in pairs if testing.worst_error(b, a.double()) > 1e-6]


def buffers(case: dict[str, Any]) -> list[str]:
    """The variance's buffers over three batches, updated by the kernel and by PyTorch; images in
    channels_last, in which diag-i's features have another order."""
    from vaekern import GaussianVAELoss

    wrong = []
    for covariance in ops.COVARIANCES:
        torch.manual_seed(0)
        batches = [torch.randn(2, 3, 2, 3, 4) for _ in range(3)]
        found = []
        for backend in ("triton", "reference"):
            loss = GaussianVAELoss(covariance)
            with backends.use(backend):
                for a, x in batches:
                    a, x = (testing.LAYOUTS[case["layout"]](t) for t in (a, x))
                    parts = loss.components(a, x, torch.zeros(3, 2), torch.zeros(3, 2))
                    loss(a, x, torch.zeros(3, 2), torch.zeros(3, 2))
            assert loss.last_variance is not None
            assert loss.running_variance is not None
            found.append([*parts, loss.last_variance, loss.running_variance])
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            # column objectives spread what was asked for reduced, so per-sample parts agree too
            if testing.worst_error(a, b.double()) > 1e-5:
                wrong.append(f"{covariance} {i}: {a} and {b}")
    return wrong


def zero(case: dict[str, Any]) -> list[str]:
    """Zero residuals are finite, as the reference has them, with zero gradients."""
    from vaekern import functional

    wrong = []
    for covariance in ops.COVARIANCES:
        for reduction in ("batchmean", "none"):
            x = torch.rand(3, 7)
            x_hat = x.clone().requires_grad_()
            with backends.use("triton"):
                loss = functional.mle_nll(x_hat, x, covariance, reduction=reduction)
                (grad,) = torch.autograd.grad((loss * torch.rand(loss.shape) * 65536).sum(), x_hat)
            with backends.use("reference"):
                wanted = functional.mle_nll(x_hat, x, covariance, reduction=reduction)
            if grad.any() or testing.worst_error(loss, wanted.double()) > 1e-6:
                wrong.append(f"{covariance} {reduction}: {loss}, {grad}")
    return wrong


CHECKS = {
    f.__name__: f for f in (compare, dispatcher, bits, no_grad, compiled, buffers, zero)
}  # fmt: skip


def run(case: dict[str, Any]) -> list[str]:
    launch.TUNING = TUNINGS[case["tuning"]]
    original = launch.run
    if case.get("fault"):
        change = FAULTS[case["fault"]]
        launch.run = lambda *args: change(original, *args)
    try:
        return CHECKS[case["check"]](case)
    finally:
        launch.run = original


def main() -> None:
    _integers_of_one_element()
    np.seterr(all="ignore")  # lanes outside a mask may divide by zero
    # torch.empty gives NaN: an output, or a partial sum, that no program has written shows
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)
    found = {case["name"]: run(case) for case in json.loads(Path(sys.argv[1]).read_text())}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
