"""The losses that ``gpu.py`` times: every objective at the sizes of three regimes, forward and
backward of the module, beside the same formula in eager PyTorch and under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import baselines
import gate
import gpu_clock
import torch
from torch import Tensor

import vaekern
from vaekern import reference

LATENTS = 64
SHAPES = ((64, 784), (64, 12288), (64, 49152), (512, 12288), (8192, 49152))
SMALL = ((4, 20), (3, 70))  # for the dry run
OBJECTIVES = baselines.OBJECTIVES
REGIMES = ((2**20, "launch"), (50 * 2**20, "L2"))  # by the bytes of one tensor; above: memory
REDUCE_OVERHEAD = (64, 784)  # where it matters most; elsewhere compiling once more takes too long
GATED = 2**26  # elements up to which float64 is computed to compare with

Record = dict[str, Any]


def regime(shape: tuple[int, int]) -> str:
    bytes_ = 4 * shape[0] * shape[1]
    return next((name for limit, name in REGIMES if bytes_ <= limit), "memory")


@dataclass(frozen=True)
class Case:
    """One objective at one size: its inputs, the leaves that want a gradient, the variants."""

    inputs: tuple[Tensor, ...]  # x_hat, x, mu, logvar and x_logvar where the objective learns it
    variants: Mapping[str, Callable[..., Tensor]]  # loss(*inputs)
    truth: Callable[..., Tensor]
    scales: Mapping[str, float]


NAMES = ("x_hat", "x", "mu", "logvar", "x_logvar")


def case(objective: baselines.Objective, shape: tuple[int, int], device: torch.device) -> Case:
    # on a CPU, which is a dry run, nothing is worth the time to compile
    compiler = "inductor" if device.type == "cuda" else "eager"
    batch, features = shape
    learned, diagonal = objective.estimate == "learned", objective.covariance == "diag-d"
    x_hat = torch.rand(shape, device=device, requires_grad=True)
    x = torch.rand(shape, device=device)
    mu, logvar = (torch.randn(batch, LATENTS, device=device, requires_grad=True) for _ in range(2))
    inputs = [x_hat, x, mu, logvar]
    if learned:
        sizes = {"iso-i": (1,), "diag-i": (features,), "diag-d": shape}
        size = sizes[objective.covariance]
        inputs.append(torch.zeros(size, device=device, requires_grad=True))
    loss_fn = vaekern.GaussianVAELoss(
        objective.covariance, objective.estimate, x_shape=(features,)
    ).to(device)
    owned = learned and not diagonal

    def ours(
        x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, x_logvar: Tensor | None = None
    ) -> Tensor:
        if not owned:
            return loss_fn(x_hat, x, mu, logvar, x_logvar=x_logvar)  # type: ignore[no-any-return]
        loss_fn._parameters["x_logvar"] = x_logvar  # type: ignore[assignment]
        return loss_fn(x_hat, x, mu, logvar)  # type: ignore[no-any-return]

    def truth(
        x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, x_logvar: Tensor | None = None
    ) -> Tensor:
        if objective.estimate == "mle":
            rows = reference.mle_nll(x_hat, x, objective.covariance, baselines.EPS)
        else:
            known = x.new_zeros(1) if x_logvar is None else x_logvar
            rows = reference.gaussian_nll(x_hat, x, known)
        return (rows + reference.gaussian_kl(mu, logvar).sum(1)).mean()

    chain = baselines.loss_function(objective)
    torch._dynamo.reset()
    variants: dict[str, Callable[..., Tensor]] = {
        "vaekern": ours,
        "eager": chain,
        "compile": torch.compile(chain, dynamic=False, fullgraph=True, backend=compiler),
    }
    if shape == REDUCE_OVERHEAD:
        variants["reduce-overhead"] = torch.compile(
            chain, dynamic=False, fullgraph=True, mode="reduce-overhead"
        )
    scales = {"output 0": float(features + LATENTS), "x_hat": 0.0}
    if learned:  # an entry adds up its share of the D terms of order one
        scales["x_logvar"] = features / inputs[4].numel()
    return Case(tuple(inputs), variants, truth, scales)


def forward_backward(loss: Callable[..., Tensor]) -> gpu_clock.Call:
    def call(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = [t for t in inputs if t.requires_grad]
        return torch.autograd.grad(loss(*inputs), leaves)

    return call


def check(objective: baselines.Objective, shape: tuple[int, int], device: torch.device) -> Record:
    """Value and gradients of our kernels against float64."""
    torch.manual_seed(0)
    made = case(objective, shape, device)
    given = dict(zip(NAMES, made.inputs, strict=False))
    record: Record = {"operator": "loss", "case": objective.name, "shape": list(shape)}
    try:
        gate.check(
            {"vaekern": lambda: made.variants["vaekern"](*made.inputs)},
            made.truth,
            given,
            scales=made.scales,
        )
    except (gate.WrongResult, RuntimeError) as error:
        return {**record, "passed": False, "error": " ".join(str(error).split())[:300]}
    return {**record, "passed": True, "errors": {}}


def row(
    objective: baselines.Objective,
    shape: tuple[int, int],
    device: torch.device,
    seconds: float,
    left: Callable[[], float],
) -> Record:
    """Kernels (replays of graphs over rotating inputs), whole calls and the host's share."""
    torch.manual_seed(1)
    made = case(objective, shape, device)
    inputs = gpu_clock.copies(made.inputs)
    size = 4 * shape[0] * shape[1]
    bytes_ = objective.tensors_moved * size
    record: Record = {
        "operator": "loss",
        "objective": objective.name,
        "shape": list(shape),
        "regime": regime(shape),
        "copies": len(inputs),
        "bytes": bytes_,
        "variants": {},
    }
    for name, loss in made.variants.items():
        if left() < 30:
            record["variants"][name] = {"skipped": "out of time"}
            continue
        call = forward_backward(loss)
        try:
            for _ in range(3):  # compiled, cached, allocated
                call(inputs[0])
            found: Record = {"host_us": gpu_clock.host(call, inputs[0], 20)}
            if name == "reduce-overhead":  # it has graphs of its own
                found["call"] = gpu_clock.single(call, inputs[:1], seconds, fewest=3).record()
            else:
                found["kernel"] = gpu_clock.graph(call, inputs, seconds).record()
                found["gb_per_s"] = bytes_ / found["kernel"]["us"] / 1e3
        except RuntimeError as error:
            found = {"skipped": " ".join(str(error).split())[:200]}
        record["variants"][name] = found
    destination = torch.empty_like(made.inputs[1])
    copied = gpu_clock.graph(lambda i: destination.copy_(i[1]), inputs, seconds / 2)
    record["copy"] = {**copied.record(), "gb_per_s": 2 * size / copied.us / 1e3}
    return record


def line(row: Record) -> str:
    """One row of the table."""
    shape = "x".join(map(str, row["shape"]))
    parts = [f"{row['objective']:<15} {shape:<11} {row['regime']:<7}"]
    ours = row["variants"]["vaekern"].get("kernel")
    for name, found in row["variants"].items():
        if "skipped" in found:
            parts.append(f"{name}: not run ({found['skipped']})")
            continue
        clock = found.get("kernel") or found["call"]
        ratio = f" = {clock['us'] / ours['us']:.2f}x" if ours and name != "vaekern" else ""
        parts.append(f"{name} {clock['us']:.1f} us{ratio} (host {found['host_us']:.0f})")
    share = row["variants"]["vaekern"].get("gb_per_s", 0.0) / row["copy"]["gb_per_s"]
    parts.append(f"{100 * share:.0f} % of copy's {row['copy']['gb_per_s']:.0f} GB/s")
    return "  ".join(parts)
