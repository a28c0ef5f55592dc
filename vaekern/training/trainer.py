"""The training loop: plain PyTorch, both stages, stopped and continued at any step."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaekern._optional import require
from vaekern.diagnostics import PolarizedRegimeTracker
from vaekern.models import VAE, Posterior, TwoStageVAE
from vaekern.storage.errors import RunError
from vaekern.storage.files import append
from vaekern.storage.tensors import (
    all_finite,
    load_state,
    load_tensors,
    read_header,
    save_tensors,
)
from vaekern.training.config import StageConfig, TrainConfig
from vaekern.training.interrupt import StopRequest
from vaekern.training.metrics import OBSERVED_EVERY, Log, Polarization, Totals, sigma, to_lines
from vaekern.training.run_directory import MODEL, RunDirectory

CHECKPOINT = "vaekern checkpoint"

# Records are fetched from the device this often, so that neither a step nor an epoch waits for it.
BLOCK_SECONDS = 1.0

# Data up to this size lives on the device; a larger set is sent batch by batch.
RESIDENT_BYTES = 4 * 2**30


def derived_seed(*words: int) -> int:
    """A seed from several numbers, unrelated to that of any other numbers."""
    # The count makes (1,) and (1, 0) differ: numpy takes a missing word for a zero.
    return int(
        np.random.SeedSequence([*words, len(words)]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


@dataclass
class Position:
    """How far a run is. The data order follows from it: it is a function of seed, stage, epoch."""

    stage: int = 1
    epoch: int = 0  # finished epochs of this stage
    batch: int = 0  # finished steps of this epoch
    step: int = 0  # finished steps of this stage
    log_bytes: int = 0  # length of metrics.jsonl

    def __str__(self) -> str:
        return f"stage {self.stage}, epoch {self.epoch}"


class Images:
    """What stage 1 learns: rows of the training set."""

    def __init__(self, x: Tensor, device: torch.device):
        self.device = device
        self.dimensions = x[0].numel()
        small = x.numel() * x.element_size() <= RESIDENT_BYTES
        self.x = x.to(device) if small else x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[B, *sample_shape]."""
        return self.x[rows.to(self.x.device)].to(self.device, non_blocking=True)


class Latents:
    """What stage 2 learns: a fresh z ~ q(z|x) whenever a row is asked for."""

    def __init__(self, posterior: Posterior):
        self.posterior = posterior
        self.dimensions = posterior.mu.shape[1]

    def __len__(self) -> int:
        return len(self.posterior.mu)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[B, d]."""
        return self.posterior.take(rows.to(self.posterior.mu.device)).sample(generator=generator)


def make_optimizer(vae: VAE, stage: StageConfig) -> torch.optim.Adam:
    """Adam over a VAE; the loss's own parameters (a learned variance) get `variance_lr`."""
    variance = list(vae.loss.parameters())
    of_loss = {id(parameter) for parameter in variance}
    networks = [parameter for parameter in vae.parameters() if id(parameter) not in of_loss]
    groups: list[dict[str, Any]] = [{"params": networks, "lr": stage.lr}]
    if variance:
        groups.append({"params": variance, "lr": stage.variance_lr})
    return torch.optim.Adam(groups, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, stage: StageConfig, epoch: int) -> None:
    """lr * 0.5^floor(epoch / halve_every), in both groups."""
    for group, lr in zip(optimizer.param_groups, (stage.lr, stage.variance_lr), strict=False):
        group["lr"] = lr * stage.lr_factor(epoch)


class Trainer:
    """Trains a `TwoStageVAE` in a run directory that has been started.

    Args:
        model: on its device.
        train: the training set [N, *sample_shape].
        config: the settings.
        directory: where checkpoints and metrics go.

    Example:
        See `vaekern.training.run.TrainingRun`, which prepares all four.
    """

    def __init__(
        self, model: TwoStageVAE, train: Tensor, config: TrainConfig, directory: RunDirectory
    ):
        self.model = model
        self.config = config
        self.directory = directory
        self.device = next(model.parameters()).device
        self.images = Images(train, self.device)
        self.position = Position()
        self.noise = torch.Generator(self.device)
        self.noise.manual_seed(derived_seed(config.run.seed, 0))
        self.totals = Totals(self.device)
        self.polarization = Polarization(self.device)
        self.log = Log()
        self.optimizer: torch.optim.Adam | None = None
        self._saved_at = time.monotonic()
        self._flushed_at = time.monotonic()

    # -- the run ------------------------------------------------------------------------------

    def train(self) -> None:
        """Train both stages from the current position to the end.

        Raises:
            RunError: the loss is no longer finite, or the disk is full.
            KeyboardInterrupt: Ctrl-C; a checkpoint has been written.
        """
        if self.position.stage == 1:
            self._train_stage(self.model.stage1, self.images, self.config.stage1)
            generator = torch.Generator(self.device)
            generator.manual_seed(derived_seed(self.config.run.seed, 1))
            self.model.fit_batch_norm(
                self.images.x, batch_size=self.config.stage1.batch_size, generator=generator
            )
            self.position = Position(stage=2)
            self.optimizer = None
            self.save()
        if self.position.epoch < self.config.stage2.epochs:
            self.model.stage1.eval()
            latents = Latents(self.model.posterior(self.images.x))
            self._train_stage(self.model.stage2, latents, self.config.stage2)
            self.save()  # with the optimiser: --resume --stage2.epochs can add more
        self.model.eval()

    def _train_stage(self, vae: VAE, source: Images | Latents, stage: StageConfig) -> None:
        position, totals = self.position, self.totals
        if self.optimizer is None:
            self.optimizer = make_optimizer(vae, stage)
            self.save()  # a full disk or a read-only directory shows before the work, not after
        optimizer = self.optimizer
        batch_size = min(stage.batch_size, len(source))
        batches = len(source) // batch_size
        vae.train()
        with self._bar(position, stage.epochs, batches, batch_size) as bar, StopRequest() as stop:
            while position.epoch < stage.epochs:
                set_learning_rates(optimizer, stage, position.epoch)
                order = self._order(len(source))
                for index in range(position.batch, batches):
                    rows = order[index * batch_size : (index + 1) * batch_size]
                    x = source.batch(rows, self.noise)
                    optimizer.zero_grad(set_to_none=True)
                    mu, logvar = vae.encode(x)
                    components = vae.components(x, mu, logvar, generator=self.noise)
                    components.loss.backward()
                    optimizer.step()
                    totals.add(components)
                    position.batch += 1
                    position.step += 1
                    if index + 1 == batches or position.step % OBSERVED_EVERY == 0:
                        step = position.step if position.stage == 1 else None
                        self.polarization.observe(mu, logvar, step)
                    bar.update(batch_size)
                    if stop.requested:
                        self.save()
                        raise KeyboardInterrupt
                    self._on_time(bar, source.dimensions)
                self._end_epoch(optimizer, source.dimensions)
            self._flush()
            if stop.requested:  # after the last step there is no other that would look
                self.save()
                raise KeyboardInterrupt

    def _order(self, count: int) -> Tensor:
        """The rows of this epoch, shuffled: a function of seed, stage and epoch alone."""
        generator = torch.Generator()
        generator.manual_seed(
            derived_seed(self.config.run.seed, self.position.stage, self.position.epoch)
        )
        return torch.randperm(count, generator=generator)

    def _end_epoch(self, optimizer: torch.optim.Optimizer, dimensions: int) -> None:
        position = self.position
        position.epoch += 1
        position.batch = 0
        record = {
            "stage": position.stage,
            "epoch": position.epoch,
            "step": position.step,
            "lr": optimizer.param_groups[0]["lr"],
            "dims": dimensions,
        }
        self.log.add(record, torch.cat([self.totals.means(), self.polarization.newest]))
        self.totals.reset()

    # -- what leaves the device, and the disk ----------------------------------------------------

    def _bar(self, position: Position, epochs: int, batches: int, batch_size: int) -> Any:
        tqdm = require("tqdm", "a training run").tqdm
        samples = batches * batch_size
        return tqdm(
            desc=f"stage {position.stage}",
            total=epochs * samples,
            initial=position.epoch * samples + position.batch * batch_size,
            unit=" samples",
            unit_scale=True,
            disable=None,  # quiet where nobody watches
            dynamic_ncols=True,
        )

    def _on_time(self, bar: Any, dimensions: int) -> None:
        now = time.monotonic()
        if now - self._flushed_at >= BLOCK_SECONDS:
            self._flush()
            self._flushed_at = now
            if not bar.disable:
                loss, *_, x_logvar = self.totals.means().tolist()
                if self.totals.steps == 0 and self.log.last is not None:
                    loss, x_logvar = self.log.last["loss"], self.log.last["x_logvar"]
                bar.set_postfix_str(
                    f"loss {loss / dimensions:.3f} nats/dim, sigma {sigma(x_logvar):.4f}",
                    refresh=False,
                )
        if now - self._saved_at >= self.config.run.checkpoint_seconds:
            self.save()

    def _flush(self) -> None:
        """Write the finished epochs' records to metrics.jsonl; stop where they are not finite."""
        self.polarization.track()
        records = self.log.take()
        lost = [r for r in records if not np.isfinite([r["loss"], r["x_logvar"]]).all()]
        if lost:
            self._diverged(f"in epoch {lost[0]['epoch']}")
        if records:
            append(self.directory.log, to_lines(records))

    def _diverged(self, when: str) -> None:
        raise RunError(
            f"the loss of stage {self.position.stage} became infinite or NaN {when}; the last good "
            f"checkpoint is kept: continue with --resume and a smaller "
            f"--stage{self.position.stage}.lr, or start a run with --logvar-clamp '[-30, 20]'"
        )

    def save(self) -> None:
        """Write checkpoint.safetensors and model.safetensors, unless the weights are not finite.

        Raises:
            RunError: the weights are not finite, or the disk is full.
        """
        self._flush()
        model = self.model.state_dict()
        if not all_finite([*model.values(), self.totals.sums]):
            self._diverged(f"after epoch {self.position.epoch}")
        log = self.directory.log
        self.position.log_bytes = log.stat().st_size if log.exists() else 0
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.items()}
        tensors["totals"] = self.totals.sums
        tensors["polarization"] = self.polarization.newest
        tensors["random.noise"] = self.noise.get_state()
        tensors["random.cpu"] = torch.get_rng_state()
        if self.optimizer is not None:
            for index, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        header = {
            "position": dataclasses.asdict(self.position),
            "steps_in_totals": self.totals.steps,
            "polarized_regime": self.polarization.tracker.state_dict(),
            "device": self.device.type,
        }
        save_tensors(self.directory.checkpoint, tensors, CHECKPOINT, header)
        save_tensors(self.directory.model, model, MODEL, dataclasses.asdict(self.position))
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Go back to the last checkpoint; a run without one starts from its beginning.

        Raises:
            RunError: the checkpoint is damaged or belongs to another model.
        """
        path = self.directory.checkpoint
        if not path.exists():
            self.directory.log.unlink(missing_ok=True)
            return
        tensors, header = load_tensors(path, CHECKPOINT)
        load_state(self.model, _under("model.", tensors), path)
        try:
            self.position = Position(**header["position"])
            self.totals.sums = tensors["totals"].to(self.device)
            self.totals.steps = header["steps_in_totals"]
            self.polarization.newest = tensors["polarization"].to(self.device)
            self.polarization.tracker.load_state_dict(header["polarized_regime"])
            torch.set_rng_state(tensors["random.cpu"])
            if header["device"] == self.device.type:
                # The generators of two kinds of device share no state; on another kind the noise
                # goes on from a fresh seed instead.
                self.noise.set_state(tensors["random.noise"])
            else:
                self.noise.manual_seed(
                    derived_seed(self.config.run.seed, self.position.stage, self.position.step)
                )
            self._restore_optimizer(_under("optimizer.", tensors))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{path} does not belong to this version of vaekern ({error}); "
                "train again with another --run directory"
            ) from error
        if self.directory.log.exists():
            # Lines after the checkpoint are of epochs that will now be trained again.
            os.truncate(
                self.directory.log,
                min(self.position.log_bytes, self.directory.log.stat().st_size),
            )

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        stages = {
            1: (self.model.stage1, self.config.stage1),
            2: (self.model.stage2, self.config.stage2),
        }
        if not tensors or self.position.stage not in stages:
            return
        self.optimizer = make_optimizer(*stages[self.position.stage])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def reached(directory: RunDirectory) -> Position:
    """How far the weights in a run directory have been trained.

    Raises:
        RunError: model.safetensors is missing or damaged.
    """
    return Position(**read_header(directory.model, MODEL))


def second_stage_is_trained(directory: RunDirectory) -> bool:
    """Whether the second stage of a run has been trained to the end of its schedule.

    Raises:
        RunError: model.safetensors or config.yaml is missing or damaged.
    """
    position = reached(directory)
    return position.stage == 2 and 0 < directory.read_config().stage2.epochs <= position.epoch


def polarized_regime(directory: RunDirectory) -> PolarizedRegimeTracker:
    """How long stage 1 of a run has been in the polarized regime.

    Raises:
        RunError: checkpoint.safetensors is missing or damaged.
    """
    tracker = PolarizedRegimeTracker()
    tracker.load_state_dict(read_header(directory.checkpoint, CHECKPOINT)["polarized_regime"])
    return tracker


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
