"""One optimisation step: forward, backward, optimiser."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaekern.functional import LossComponents
from vaekern.models import VAE
from vaekern.training.adam import Adam
from vaekern.training.config import StageConfig
from vaekern.training.controls import Controls
from vaekern.training.precision import autocast


def make_optimizer(vae: VAE, stage: StageConfig) -> Adam:
    """Adam over a VAE; the loss's own parameters (a learned variance) get `variance_lr`."""
    variance = list(vae.loss.parameters())
    of_loss = {id(parameter) for parameter in variance}
    networks = [parameter for parameter in vae.parameters() if id(parameter) not in of_loss]
    groups: list[dict[str, Any]] = [{"params": networks, "lr": stage.lr}]
    if variance:
        groups.append({"params": variance, "lr": stage.variance_lr})
    return Adam(groups)


class Stepped(NamedTuple):
    """What a step leaves for the metrics, on the device."""

    components: LossComponents
    mu: Tensor  # [B, d]
    logvar: Tensor  # [B, d]


class Step:
    """One step of a stage after the other.

    Args:
        vae: the stage's model.
        controls: with the optimiser over its parameters.
        precision: of the networks.
        noise: of the posterior's draws.
    """

    def __init__(self, vae: VAE, controls: Controls, precision: str, noise: torch.Generator):
        self.vae = vae
        self.controls = controls
        self.precision = precision
        self.noise = noise

    def __call__(self, x: Tensor, step: int) -> Stepped:
        """Train on a batch [B, ...] after `step` finished ones of this stage."""
        self.controls.optimizer.zero_grad(set_to_none=True)
        noise = self.vae.draw_noise(len(x), self.noise)
        with autocast(self.precision, x.device):
            mu, logvar = (each.float() for each in self.vae.encode(x))
            components = self.controls.kl.components(self.vae, x, mu, logvar, step, noise)
        self.controls.step(components.loss)
        return Stepped(components, mu, logvar)
