"""Both stages trained at once, the ablation of Dai & Wipf, section 4: it is not the two-stage VAE.

There are two ways. *Fused*, the two encoders follow one another and so do the decoders: one VAE
with the latents u. *Merged*, the losses of the two stages are added, and the second's gradient
reaches the first's encoder through z.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vaekern import diagnostics, functional
from vaekern.experiments.clock import Clock
from vaekern.experiments.trained import Show, Trained
from vaekern.models import TwoStageVAE
from vaekern.models.batch_norm import fit_batch_norm
from vaekern.models.config import SystemConfig
from vaekern.nn import X_LOGVAR_MIN
from vaekern.storage.errors import DivergedError
from vaekern.storage.files import write_atomically
from vaekern.storage.tensors import load_state, load_tensors, save_tensors
from vaekern.training.config import TrainConfig
from vaekern.training.interrupt import Stopped, StopRequest
from vaekern.training.metrics import sigma
from vaekern.training.progress import Progress, Standing
from vaekern.training.run import TrainingRun
from vaekern.training.schedule_config import EpsConfig, KLConfig, ScheduleConfig
from vaekern.training.scores import MMD_SAMPLES, compute_scores
from vaekern.training.seeds import derived_seed
from vaekern.training.sources import Images
from vaekern.training.step import make_optimizer

Loss = Callable[[TwoStageVAE, Tensor, torch.Generator], Tensor]

# Settings without effect here.
UNKNOWN = {"posterior_samples", "precision"} | {
    of.name
    for part in (KLConfig, EpsConfig, ScheduleConfig, SystemConfig)
    for of in dataclasses.fields(part)
    if of.name != "clip_norm"
}
FILE, KIND = "joint.safetensors", "vaekern joint training"


def fused_loss(model: TwoStageVAE, x: Tensor, noise: torch.Generator) -> Tensor:
    r"""The negative ELBO of one VAE whose encoder and decoder are those of both stages in a row.

    .. math:: -E_{q(u|x)} \log p(x | u) + KL(q(u|x) \| N(0, I)), \qquad
        q(u|x) = q_2(u \,|\, \mu_1(x)), \quad p(x|u) = p_1(x \,|\, \hat z_2(u))
    """
    mu_z, _ = model.stage1.encode(x)
    mu, logvar = model.stage2.encode(mu_z)
    u = functional.reparameterize(mu, logvar, generator=noise)
    x_hat = model.stage1.decoder(model.stage2.decode(u))
    return model.stage1.loss.components(x_hat, x, mu, logvar).loss


def merged_loss(model: TwoStageVAE, x: Tensor, noise: torch.Generator) -> Tensor:
    r"""The losses of both stages added, each with its KL.

    .. math:: L_1(x) + L_2(z), \qquad z \sim q_1(z|x)
    """
    mu, logvar = model.stage1.encode(x)
    z = functional.reparameterize(mu, logvar, generator=noise)
    first = model.stage1.loss.components(model.stage1.decoder(z), x, mu, logvar).loss
    return first + model.stage2(z, generator=noise).loss


def check_joint(config: TrainConfig) -> None:
    """Refuse settings that training both stages at once does not know.

    Raises:
        ValueError: the first of them.
    """
    default = TrainConfig().to_flat()
    for name, value in config.to_flat().items():
        if name in UNKNOWN and value != default[name]:
            raise ValueError(
                f"training both stages at once knows no {name}, got {value}; leave it out"
            )


class _Joint:
    """A run whose two stages are trained at once, for stage 1's epochs and at its rates.

    Stopped after any step, it goes on from there to the same bits: the data order is a function of
    seed and epoch, and joint.safetensors holds weights, moments and the state of the noise.
    """

    def __init__(self, run: TrainingRun, loss: Loss):
        self.run, self.loss = run, loss
        self.stage, self.model = run.config.stage1, run.model
        self.images = Images(run.data.train, run.device)
        self.noise = torch.Generator(run.device)
        self.noise.manual_seed(derived_seed(run.config.run.seed, 0))
        self.optimizers = [
            make_optimizer(v, self.stage) for v in (run.model.stage1, run.model.stage2)
        ]
        self.rates = [[group["lr"] for group in each.param_groups] for each in self.optimizers]
        self.size = min(self.stage.batch_size, len(self.images))
        self.batches = len(self.images) // self.size
        self.epoch = self.batch = 0
        self.path = run.path / FILE
        self._saved_at = time.monotonic()

    def restore(self) -> bool:
        """Go back to where it was stopped; False where it was not."""
        if not self.path.is_file():
            return False
        remedy = "remove it to train this run from its beginning"
        tensors, header = load_tensors(self.path, KIND, remedy=remedy)
        model = _with_prefix(tensors, "model.")
        load_state(self.model, model, self.path, remedy=remedy)
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _with_prefix(tensors, f"optimizer.{i}.").items():
                index, _, key = name.partition(".")
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.noise.set_state(tensors["noise"])
        self.epoch, self.batch = header["epoch"], header["batch"]
        return True

    def save(self) -> None:
        """Keep all that the next step depends on."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{index}.{key}": v for key, v in moments.items()}
        tensors["noise"] = self.noise.get_state()
        save_tensors(self.path, tensors, KIND, {"epoch": self.epoch, "batch": self.batch})
        self._saved_at = time.monotonic()

    def train(self, clock: Clock) -> None:
        """The epochs that are left.

        Raises:
            DivergedError: the loss is no longer finite.
            RunError: the disk is full.
            Stopped: Ctrl-C or SIGTERM; joint.safetensors has been written.
        """
        seed, epochs = self.run.config.run.seed, self.stage.epochs
        count = self.batches * self.size
        done = self.epoch * count + self.batch * self.size
        self.model.train()
        with Progress("both stages", epochs, count, done) as bar, StopRequest() as stop:
            while self.epoch < epochs:
                for optimizer, own in zip(self.optimizers, self.rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, own, strict=True):
                        group["lr"] = rate * self.stage.lr_factor(self.epoch)
                shuffled = torch.Generator().manual_seed(derived_seed(seed, 1, self.epoch))
                order = torch.randperm(len(self.images), generator=shuffled)
                while self.batch < self.batches:
                    value = self._step(order[self.batch * self.size :][: self.size])
                    self.batch += 1
                    bar.update(self.size)
                    self._look_up(value, bar, stop)
                self.epoch, self.batch = self.epoch + 1, 0
                clock.tick(1)

    def _step(self, rows: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        value = self.loss(self.model, self.images.batch(rows, self.noise), self.noise)
        value.backward()  # type: ignore[no-untyped-call]
        if (norm := self.run.config.schedule.clip_norm) is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return value.detach()

    def _look_up(self, value: Tensor, bar: Progress, stop: StopRequest) -> None:
        """After a step: stop, save, show. The device is waited for once in a while."""
        last = self.batch == self.batches
        due = time.monotonic() - self._saved_at >= self.run.config.run.checkpoint_seconds
        if not (last or due or stop.requested):
            return
        if not bool(torch.isfinite(value)):
            raise DivergedError(
                f"the loss became infinite or NaN in epoch {self.epoch + 1}",
                "start with a smaller learning rate",
            )
        if due or stop.requested:
            self.save()
        if stop.requested:
            raise Stopped(stop.requested)
        x_logvar = self.model.stage1.x_logvar
        spread = None if x_logvar is None else sigma(float(x_logvar.mean()))
        bar.show(Standing(float(value) / self.images.dimensions, spread, None))

    @torch.no_grad()
    def finish(self) -> None:
        """The weights as those of a two-stage model that is trained to its end."""
        pieces = (r for r in torch.arange(len(self.images)).split(self.size) if len(r) > 1)
        fit_batch_norm(
            self.model,
            pieces,
            lambda rows: self.loss(self.model, self.images.batch(rows, self.noise), self.noise),
        )
        if self.loss is fused_loss:  # nothing is drawn between its decoders
            for parameter in self.model.stage2.loss.parameters():
                parameter.fill_(X_LOGVAR_MIN)
        state = self.run.trainer.state
        state.begin_stage2()
        state.position.epoch = self.run.config.stage2.epochs
        self.run.trainer.save()
        self.path.unlink(missing_ok=True)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _train(config: TrainConfig, show: Show, *, loss: Loss) -> Trained:
    """Train both stages at once for stage 1's epochs.

    The run directory holds the weights as those of a two-stage model, and in metrics.json only the
    numbers that mean something.
    """
    run = TrainingRun(config, resume=True)
    clock = Clock(run.path)
    try:
        run.start()
        if run.trainer.position.stage == 1:
            joint = _Joint(run, loss)
            if joint.restore():
                show(f"goes on from epoch {joint.epoch}")
            try:
                clock.start()
                joint.train(clock)
            finally:
                clock.write()
            joint.finish()
        _write(run, loss)
    finally:
        run.close()
    return Trained(clock.seconds, clock.epochs, ())


@torch.no_grad()
def _write(run: TrainingRun, loss: Loss) -> None:
    generator = torch.Generator(run.device)
    generator.manual_seed(derived_seed(run.config.run.seed, 2, 3))
    model = run.model.eval()
    train = model.posterior(run.data.train)
    if loss is fused_loss:  # errors and likelihoods of its first stage alone mean nothing
        u = model.stage2.posterior(train.mu[:MMD_SAMPLES]).sample(generator=generator)
        mmd = diagnostics.maximum_mean_discrepancy(u, generator=generator)
        found: dict[str, Any] = {"mmd_stage2": float(mmd)}
    else:
        seed = run.config.run.seed
        found = compute_scores(
            model, run.data, train, two_stages=True, seed=seed, generator=generator
        )
    write_atomically(run.directory.metrics, json.dumps(found, indent=2) + "\n")


#: By name, as `Row.procedure` has it.
PROCEDURES = {
    "train fused": functools.partial(_train, loss=fused_loss),
    "train merged": functools.partial(_train, loss=merged_loss),
}
