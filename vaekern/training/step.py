"""One optimisation step: forward, backward, optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vaekern.functional import LossComponents
from vaekern.models import VAE
from vaekern.models.likelihoods import Likelihood
from vaekern.training.adam import Adam
from vaekern.training.captured import Captured, Compiled, Mode, choose, is_compilers, warn_eager
from vaekern.training.config import StageConfig
from vaekern.training.controls import Controls
from vaekern.training.eps import Eps
from vaekern.training.kl import KLTerm
from vaekern.training.precision import autocast
from vaekern.training.processes import Processes


def make_optimizer(vae: VAE, stage: StageConfig) -> Adam:
    """Adam over a VAE; learned variances, of decoder and posterior, get `variance_lr`."""
    variance = vae.variances()
    apart = {id(parameter) for parameter in variance}
    networks = [parameter for parameter in vae.parameters() if id(parameter) not in apart]
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
        eps: what it adds inside the logarithm of an MLE objective.
    """

    def __init__(self, vae: VAE, kl: KLTerm, eps: Eps):
        super().__init__()
        self.vae = vae
        self.kl = kl
        self.eps = eps

    def forward(self, x: Tensor, noise: Tensor, step: int) -> Stepped:
        """x [B, ...] and normal numbers for z, after `step` finished steps of this stage."""
        q = self.vae.posterior(x).to(torch.float32)
        found = self.kl.components(self.vae, x, q, step, noise, self.eps.at(step))
        return Stepped(found, q.mu, q.logvar)


class Step:
    """One step of a stage after the other.

    Args:
        vae: the stage's model.
        controls: with the optimiser over its parameters.
        precision: of the networks.
        noise: of the posterior's draws.
        processes: that share each batch; their gradients are averaged.
        mode: "eager"; "compile" compiles the loss's forward and backward; "graph" records the whole
            step and replays it; "auto" is what suits the device. Steps whose loss moves with their
            number (warm-up, capacity, a falling eps) are eager.

    Raises a warning where it falls back from what was asked for.
    """

    def __init__(
        self,
        vae: VAE,
        controls: Controls,
        precision: str,
        noise: torch.Generator,
        processes: Processes,
        mode: Mode = "eager",
    ):
        self.vae = vae
        self.controls = controls
        self.precision = precision
        self.noise = noise
        self.processes = processes
        self._loss: nn.Module = BatchLoss(vae, controls.kl, controls.eps)
        if not processes.alone:
            with warnings.catch_warnings():  # newer versions call the flag something else
                warnings.simplefilter("ignore", FutureWarning)
                # The loss and batch norm keep the buffers the same everywhere by themselves.
                self._loss = DistributedDataParallel(self._loss, broadcast_buffers=False)
        self._settled = controls.settled
        self._like = next(vae.parameters())
        chosen, sentence = choose(mode, next(vae.parameters()).device, self._obstacle())
        if sentence is not None:
            warnings.warn(sentence, stacklevel=3)
        self._captured = Captured(self._whole) if chosen == "graph" else None
        self._compiled = Compiled(self._settled_loss) if chosen == "compile" else None

    def _obstacle(self) -> str | None:
        """Why a step cannot be recorded."""
        if not self.processes.alone:
            return "steps of several processes are not recorded"
        if self.controls.scaler is not None:
            return "float16 decides on the host whether a step counts"
        if not self.vae.fused:
            return "the loss of this system is put together from parts"
        if self.controls.average is not None:
            return "the averaging of weights counts its steps on the host"
        return None

    def __call__(self, x: Tensor, batch: int, step: int) -> Stepped:
        """Train on x, this process's share of a batch, after `step` finished ones of this stage."""
        # Everybody draws the noise of the whole batch: it does not depend on who shares it.
        noise = self.vae.draw_noise(batch, self.noise, like=self._like)[
            ..., self.processes.share(batch), :
        ]
        if self._captured is not None and step >= self._settled:
            self.controls.optimizer.rates_on_device()
            found = _unpacked(self._captured(x, noise))
            # The next replay writes over it, and the loss is looked at later.
            loss = found.components.loss.clone()
            return found._replace(components=found.components._replace(loss=loss))
        found = self._eager(x, noise, step)
        return found if self.processes.alone else self._weighed(found, len(x), batch)

    def _eager(self, x: Tensor, noise: Tensor, step: int) -> Stepped:
        self.controls.optimizer.zero_grad(set_to_none=True)
        with autocast(self.precision, x.device):
            if self._compiled is not None and step >= self._settled:
                found = _unpacked(self._compiled(x, noise))
            else:
                found = self._loss(x, noise, step)
        try:
            self.controls.step(found.components.loss)
        except RuntimeError as error:  # the backward pass is compiled when it first runs
            if self._compiled is None or not is_compilers(error):
                raise
            self._compiled = None
            warn_eager("compiled", error)
            return self._eager(x, noise, step)
        return found

    def _settled_loss(self, x: Tensor, noise: Tensor) -> list[Tensor]:
        return _packed(self._loss(x, noise, self._settled))

    def _whole(self, x: Tensor, noise: Tensor) -> list[Tensor]:
        return [each.detach() for each in _packed(self._eager(x, noise, self._settled))]

    def _weighed(self, found: Stepped, share: int, batch: int) -> Stepped:
        """A variance of each sample's own as a number whose mean over the processes is the batch's;
        the other components are that already."""
        loss = self.vae.loss
        if isinstance(loss, Likelihood) or loss.estimate == "fixed" or loss.covariance[-1] != "d":
            return found
        x_logvar = found.components.x_logvar.mean() * (share * self.processes.size / batch)
        return found._replace(components=found.components._replace(x_logvar=x_logvar))


def _packed(found: Stepped) -> list[Tensor]:
    return [*found.components, found.mu, found.logvar]


def _unpacked(tensors: Sequence[Tensor]) -> Stepped:
    *components, mu, logvar = tensors
    return Stepped(LossComponents(*components), mu, logvar)
