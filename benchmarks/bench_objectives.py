"""Each objective, forward and backward of the module, float32, d = 64 latents."""

from __future__ import annotations

import os

import baselines
import gate
import measure
import pytest
import torch
from conftest import Compare
from torch import Tensor

import vaekern
from vaekern import reference

LATENTS = 64
SHAPES = (
    (64, 784),  # MNIST: launches and Python
    (100, 3072),  # CIFAR-10, the batch of the two-stage paper: second-level cache
    (64, 12288),  # 64 x 64 colour: 3 MB a tensor
    (64, 49152),  # 128 x 128 colour: 12.6 MB a tensor
    (512, 12288),  # a large batch: 25 MB a tensor
)
TWO_THREADS_FROM = 64 * 12288  # elements; below, starting a second thread costs what it saves


OBJECTIVES = {objective.name: objective for objective in baselines.OBJECTIVES}


def _id(name: str, shape: tuple[int, int], threads: int) -> str:
    name = name.replace(" ", "-")
    return f"{shape[0]}x{shape[1]}-{name}-{threads}-thread{'s' if threads > 1 else ''}"


CELLS = [
    pytest.param(name, shape, threads, id=_id(name, shape, threads))
    for shape in SHAPES
    for name in OBJECTIVES
    for threads in (1, 2)
    if threads == 1 or shape[0] * shape[1] >= TWO_THREADS_FROM
]


@pytest.mark.parametrize(("name", "shape", "threads"), CELLS)
def bench_objective(name: str, shape: tuple[int, int], threads: int, compare: Compare) -> None:
    if threads > (os.cpu_count() or 1):
        pytest.skip(f"{threads} threads on {os.cpu_count()} core(s) measure the scheduler")
    objective = OBJECTIVES[name]
    batch, features = shape
    torch.manual_seed(0)
    x = torch.rand(shape)
    x_hat = torch.rand(shape, requires_grad=True)
    mu = torch.randn(batch, LATENTS, requires_grad=True)
    logvar = torch.randn(batch, LATENTS, requires_grad=True)
    inputs = {"x_hat": x_hat, "x": x, "mu": mu, "logvar": logvar}
    loss_fn = vaekern.GaussianVAELoss(objective.covariance, objective.estimate, x_shape=x.shape[1:])
    from_decoder: Tensor | None = None
    if objective.estimate == "learned":
        if objective.covariance == "diag-d":
            from_decoder = torch.zeros(shape, requires_grad=True)
            inputs["x_logvar"] = from_decoder
        else:
            inputs["x_logvar"] = loss_fn.x_logvar
    x_logvar = inputs.get("x_logvar")
    chain = baselines.loss_function(objective)
    destination = torch.empty(shape)

    def truth(
        x_hat: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, x_logvar: Tensor | None = None
    ) -> Tensor:
        if objective.estimate == "mle":
            rows = reference.mle_nll(x_hat, x, objective.covariance, baselines.EPS)
        else:
            known = x.new_zeros(1) if x_logvar is None else x_logvar
            rows = reference.gaussian_nll(x_hat, x, known)
        return (rows + reference.gaussian_kl(mu, logvar).sum(1)).mean()

    with measure.threads(threads):
        compiled = measure.compiled(chain)
        losses = {
            "vaekern": lambda: loss_fn(x_hat, x, mu, logvar, x_logvar=from_decoder),
            "compile": lambda: compiled(x_hat, x, mu, logvar, x_logvar),
            "eager": lambda: chain(x_hat, x, mu, logvar, x_logvar),
        }
        scales = {
            "output 0": float(features + LATENTS),  # so many terms of order one are added
            "x_hat": 0.0,  # each entry is one product: no cancellation, relative to itself
        }
        if x_logvar is not None:  # an entry adds up its share of the D terms of order one
            scales["x_logvar"] = features / x_logvar.numel()
        gate.check(losses, truth, inputs, scales=scales)

        size = x.numel() * x.element_size()
        compare(
            {variant: measure.forward_backward(loss, inputs) for variant, loss in losses.items()}
            | {"copy": lambda: destination.copy_(x)},
            bytes_moved=objective.tensors_moved * size,
            copy_bytes=2 * size,
            kind="objective",
            name=name,
            shape=list(shape),
        )
