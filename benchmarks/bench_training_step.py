"""What a user feels: one optimiser step of the two-stage paper's first stage, network and all.

The InfoGAN network at 28 x 28, batch 100, 64 latents, Adam; the maximum-likelihood iso-i objective
on sigmoid outputs.  The three steps differ in the loss alone: the network runs eagerly in all.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import baselines
import gate
import measure
import pytest
import torch
from conftest import Compare
from torch import Tensor, nn

import vaekern
from vaekern import reference

BATCH, LATENTS, SHAPE = 100, 64, (1, 28, 28)


@pytest.mark.parametrize("threads", [1, 2], ids=["1-thread", "2-threads"])
def bench_training_step(threads: int, compare: Compare) -> None:
    networks = pytest.importorskip(
        "vaekern.models.networks", reason="the training step needs vaekern.models"
    )
    if threads > (os.cpu_count() or 1):
        pytest.skip(f"{threads} threads on {os.cpu_count()} core(s) measure the scheduler")
    torch.manual_seed(0)
    encoder, decoder = networks.infogan(SHAPE, LATENTS, output="linear")
    x = torch.rand(BATCH, *SHAPE)
    objective = next(o for o in baselines.OBJECTIVES if o.name == "mle iso-i")
    chain = baselines.loss_function(objective)

    def eager_loss(logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        return chain(torch.sigmoid(logits).flatten(1), x.flatten(1), mu, logvar)

    def truth(logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        rows = reference.mle_nll(logits, x, objective.covariance, activation="sigmoid")
        return (rows + reference.gaussian_kl(mu, logvar).sum(1)).mean()

    with measure.threads(threads):
        losses: dict[str, Callable[..., Tensor]] = {
            "vaekern": vaekern.GaussianVAELoss("iso-i", activation="sigmoid"),
            "compile": measure.compiled(eager_loss),
            "eager": eager_loss,
        }
        mu, logvar = encoder(x)
        inputs = {"logits": decoder(mu), "x": x, "mu": mu, "logvar": logvar}
        inputs = {k: t.detach().requires_grad_(t.requires_grad) for k, t in inputs.items()}
        gate.check(
            {name: _applied(loss, inputs) for name, loss in losses.items()},
            truth,
            inputs,
            scales={"output 0": float(x[0].numel() + LATENTS)},
        )
        compare(
            {name: _step(encoder, decoder, loss, x) for name, loss in losses.items()},
            kind="training step",
            name="InfoGAN stage 1, mle iso-i",
            shape=list(x.shape),
        )


def _applied(loss: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    return lambda: loss(*inputs.values())


def _step(
    encoder: nn.Module, decoder: nn.Module, loss: Callable[..., Tensor], x: Tensor
) -> Callable[[], None]:
    """A step of its own copy of the networks: every variant starts from the same weights."""
    encoder, decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        mu, logvar = encoder(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        loss(decoder(z), x, mu, logvar).backward()
        optimizer.step()

    return run
