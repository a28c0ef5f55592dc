"""One optimisation step: forward, backward, optimiser."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vaekern.functional import LossComponents
from vaekern.models import VAE
from vaekern.training.adam import Adam
from vaekern.training.config import StageConfig
from vaekern.training.controls import Controls
from vaekern.training.kl import KLTerm
from vaekern.training.precision import autocast
from vaekern.training.processes import Processes


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


class BatchLoss(nn.Module):
    """The loss of a batch as one module, whose forward is all that a step differentiates.

    Args:
        vae: the stage's model.
        kl: what it charges for the KL.
    """

    def __init__(self, vae: VAE, kl: KLTerm):
        super().__init__()
        self.vae = vae
        self.kl = kl

    def forward(self, x: Tensor, noise: Tensor, step: int) -> Stepped:
        """x [B, ...] and normal numbers for z, after `step` finished steps of this stage."""
        mu, logvar = (each.float() for each in self.vae.encode(x))
        return Stepped(self.kl.components(self.vae, x, mu, logvar, step, noise), mu, logvar)


class Step:
    """One step of a stage after the other.

    Args:
        vae: the stage's model.
        controls: with the optimiser over its parameters.
        precision: of the networks.
        noise: of the posterior's draws.
        processes: that share each batch; their gradients are averaged.
    """

    def __init__(
        self,
        vae: VAE,
        controls: Controls,
        precision: str,
        noise: torch.Generator,
        processes: Processes,
    ):
        self.vae = vae
        self.controls = controls
        self.precision = precision
        self.noise = noise
        self.processes = processes
        self._loss: nn.Module = BatchLoss(vae, controls.kl)
        if not processes.alone:
            with warnings.catch_warnings():  # newer versions call the flag something else
                warnings.simplefilter("ignore", FutureWarning)
                # The loss and batch norm keep the buffers the same everywhere by themselves.
                self._loss = DistributedDataParallel(self._loss, broadcast_buffers=False)

    def __call__(self, x: Tensor, batch: int, step: int) -> Stepped:
        """Train on x, this process's share of a batch, after `step` finished ones of this stage."""
        self.controls.optimizer.zero_grad(set_to_none=True)
        # Everybody draws the noise of the whole batch: it does not depend on who shares it.
        noise = self.vae.draw_noise(batch, self.noise)[..., self.processes.share(batch), :]
        with autocast(self.precision, x.device):
            found: Stepped = self._loss(x, noise, step)
        self.controls.step(found.components.loss)
        return found if self.processes.alone else self._weighed(found, len(x), batch)

    def _weighed(self, found: Stepped, share: int, batch: int) -> Stepped:
        """A variance of each sample's own as a number whose mean over the processes is the batch's;
        the other components are that already."""
        if not self.vae.loss.covariance.endswith("-d") or self.vae.loss.estimate == "fixed":
            return found
        x_logvar = found.components.x_logvar.mean() * (share * self.processes.size / batch)
        return found._replace(components=found.components._replace(x_logvar=x_logvar))
