"""The training loop: plain PyTorch, both stages, stopped and continued at any step."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from vaekern.training.best import Best
from vaekern.training.board import Board
from vaekern.training.config import StageConfig, TrainConfig, differences
from vaekern.training.controls import Controls
from vaekern.training.interrupt import StopRequest
from vaekern.training.kl import KLTerm
from vaekern.training.metrics import (
    FIELDS,
    OBSERVED_EVERY,
    POLARIZATION,
    Log,
    Polarization,
    Totals,
    Watch,
    sigma,
    to_lines,
)
from vaekern.training.precision import autocast, tf32
from vaekern.training.progress import Progress, Standing
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


def split(train: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(held out, the rest) of a training set, drawn at random; neither is empty.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if len(train) < 2:
        raise ValueError(
            f"validation_fraction must be 0 for a training set of {len(train)}, got {fraction}; "
            "leave it out"
        )
    count = min(max(1, round(fraction * len(train))), len(train) - 1)
    rows = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(derived_seed(seed, 4))
    )
    return train[rows[:count]], train[rows[count:]]


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
        self.images, self.held_out = Images(train, self.device), None
        if config.schedule.validation_fraction:
            held_out, rest = split(train, config.schedule.validation_fraction, config.run.seed)
            self.images, self.held_out = Images(rest, self.device), Images(held_out, self.device)
        self.position = Position()
        self.noise = torch.Generator(self.device)
        self.noise.manual_seed(derived_seed(config.run.seed, 0))
        self.totals = Totals(self.device)
        self.polarization = Polarization(self.device)
        self.log = Log()
        self.board = Board(directory.path)
        self.watch = Watch()
        self.best = Best(self.device)
        self.optimizer: torch.optim.Adam | None = None
        self.controls: Controls | None = None
        self._restored: Path | None = None
        self._saved_at = time.monotonic()
        self._flushed_at = time.monotonic()

    # -- the run ------------------------------------------------------------------------------

    def train(self) -> None:
        """Train both stages from the current position to the end.

        Raises:
            RunError: the loss is no longer finite, or the disk is full.
            KeyboardInterrupt: Ctrl-C; a checkpoint has been written.
        """
        self._align()
        try:
            with tf32(self.config.run.tf32):
                self._train()
        finally:
            self.board.close()

    def _train(self) -> None:
        if self.position.stage == 1:
            self._train_stage(self.images, self.held_out)
            self._fit_best()
            self._keep()
            self._fit_batch_norm()
            self.position = Position(stage=2)
            self.optimizer = self.controls = None
            self.best = Best(self.device)
            self.save()
        stopped = self.controls is not None and self.controls.stopped
        if self.position.epoch < self.config.stage2.epochs and not stopped:
            self.model.stage1.eval()
            latents, held_out = (
                None if images is None else Latents(self.model.posterior(images.x))
                for images in (self.images, self.held_out)
            )
            assert latents is not None
            self._train_stage(latents, held_out)
            self.save()  # with the optimiser: --resume --stage2.epochs can add more
        self._keep()
        self.model.eval()

    def _stage(self) -> tuple[VAE, StageConfig]:
        """The model and the settings of the stage that the run is in."""
        if self.position.stage == 1:
            return self.model.stage1, self.config.stage1
        return self.model.stage2, self.config.stage2

    def _begin(self) -> None:
        vae, stage = self._stage()
        steps = self._steps(stage)
        self.optimizer = make_optimizer(vae, stage)
        self.controls = Controls(vae, self.optimizer, self.config, self.position.stage, steps)

    def _steps(self, stage: StageConfig) -> int:
        """Steps of an epoch."""
        return len(self.images) // min(stage.batch_size, len(self.images))

    def warning(self) -> str | None:
        """One sentence where the run ends before one of its schedules; None else."""
        stage = self.config.stage1
        steps = self._steps(stage)
        term = KLTerm(self.config.kl, self.config.objective.beta, stage.epochs, steps)
        return term.warning(stage.epochs, steps)

    def _keep(self) -> None:
        """Give the model what the stage leaves behind: the best weights, or the averaged ones."""
        if self.controls is not None:
            self.controls.vae.load_state_dict(self.controls.kept(self.best.weights))

    def _train_stage(self, source: Images | Latents, held_out: Images | Latents | None) -> None:
        position, totals = self.position, self.totals
        vae, stage = self._stage()
        if self.controls is None or self.optimizer is None:
            self._begin()
            self.save()  # a full disk or a read-only directory shows before the work, not after
        optimizer, controls = self.optimizer, self.controls
        assert optimizer is not None
        assert controls is not None
        batch_size = min(stage.batch_size, len(source))
        batches = len(source) // batch_size
        vae.train()
        with self._bar(position, stage.epochs, batches, batch_size) as bar, StopRequest() as stop:
            while position.epoch < stage.epochs and not controls.stopped:
                controls.rate.start(position.epoch)
                order = self._order(len(source))
                for index in range(position.batch, batches):
                    rows = order[index * batch_size : (index + 1) * batch_size]
                    x = source.batch(rows, self.noise)
                    optimizer.zero_grad(set_to_none=True)
                    with autocast(self.config.run.precision, self.device):
                        mu, logvar = (each.float() for each in vae.encode(x))
                        components = controls.kl.components(
                            vae, x, mu, logvar, position.step, self.noise
                        )
                    controls.step(components.loss)
                    totals.add(components)
                    position.batch += 1
                    position.step += 1
                    self.watch.add(position.epoch + 1, position.step, components.loss)
                    if index + 1 == batches or position.step % OBSERVED_EVERY == 0:
                        step = position.step if position.stage == 1 else None
                        self.polarization.observe(mu, logvar, step)
                    bar.update(batch_size)
                    if stop.requested:
                        self.save()
                        raise KeyboardInterrupt
                    self._on_time(bar, source.dimensions)
                self._end_epoch(controls, source.dimensions, held_out)
            self._flush()
            bar.show(self._standing(source.dimensions))
            if controls.stopped:
                bar.write(_stopped_sentence(controls, position))
            if stop.requested:  # after the last step there is no other that would look
                self.save()
                raise KeyboardInterrupt

    def _fit_batch_norm(self) -> None:
        generator = torch.Generator(self.device)
        generator.manual_seed(derived_seed(self.config.run.seed, 1))
        self.model.fit_batch_norm(
            self.images.x, batch_size=self.config.stage1.batch_size, generator=generator
        )

    def _fit_best(self) -> None:
        """Let stage 1's best weights have the batch-norm statistics that the last ones get."""
        stage1 = self.model.stage1
        last = {name: value.clone() for name, value in stage1.state_dict().items()}
        if self.best.weights:
            stage1.load_state_dict(self.best.weights)
            self._fit_batch_norm()
            self.best.weights = {n: value.clone() for n, value in stage1.state_dict().items()}
            self._save_best()
        stage1.load_state_dict(last)

    def _order(self, count: int) -> Tensor:
        """The rows of this epoch, shuffled: a function of seed, stage and epoch alone."""
        generator = torch.Generator()
        generator.manual_seed(
            derived_seed(self.config.run.seed, self.position.stage, self.position.epoch)
        )
        return torch.randperm(count, generator=generator)

    def _end_epoch(
        self, controls: Controls, dimensions: int, held_out: Images | Latents | None
    ) -> None:
        position = self.position
        record = {
            "stage": position.stage,
            "epoch": position.epoch + 1,
            "step": position.step,
            "lr": controls.optimizer.param_groups[0]["lr"],
            "dims": dimensions,
            **controls.kl.record(position.step - 1),
        }
        means = self.totals.means()
        reconstruction, kl = (means[FIELDS.index(name)] for name in ("reconstruction", "kl"))
        loss = controls.kl.watched(reconstruction, kl)
        if self.config.schedule.watched:  # the one wait for the device in an epoch
            if held_out is None:
                parts = dict(zip(FIELDS, means.tolist(), strict=True))
            else:
                parts = self._validate(controls.evaluated, held_out)
                record["validation_loss"] = controls.kl.watched(
                    parts["reconstruction"], parts["kl"]
                )
                loss = torch.full_like(loss, record["validation_loss"])
            controls.end_epoch(position.epoch + 1, parts["reconstruction"], parts["kl"])
        position.epoch += 1
        position.batch = 0
        self.log.add(record, torch.cat([means, self.polarization.newest]))
        self.best.update(loss, position.epoch, controls.evaluated.state_dict())
        self.totals.reset()

    @torch.no_grad()
    def _validate(self, vae: VAE, held_out: Images | Latents) -> dict[str, float]:
        """Means over the held-out samples, in evaluation mode, with the same noise every time."""
        _, stage = self._stage()
        generator = torch.Generator(self.device)
        generator.manual_seed(derived_seed(self.config.run.seed, self.position.stage, 0, 5))
        sums = torch.zeros(len(FIELDS), dtype=torch.float64, device=self.device)
        training = vae.training
        vae.eval()
        # Batches of nearly equal size: a variance estimated from a few samples is too small.
        pieces = math.ceil(len(held_out) / stage.batch_size)
        for rows in torch.arange(len(held_out)).tensor_split(pieces):
            found = vae(held_out.batch(rows, generator), generator=generator)
            sums += len(rows) * torch.stack([getattr(found, name).mean() for name in FIELDS])
        vae.train(training)
        return dict(zip(FIELDS, (sums / len(held_out)).tolist(), strict=True))

    # -- what leaves the device, and the disk ----------------------------------------------------

    def _bar(self, position: Position, epochs: int, batches: int, batch_size: int) -> Progress:
        samples = batches * batch_size
        done = position.epoch * samples + position.batch * batch_size
        return Progress(position.stage, epochs, samples, done)

    def _on_time(self, bar: Progress, dimensions: int) -> None:
        now = time.monotonic()
        if now - self._flushed_at >= BLOCK_SECONDS:
            self._flush()
            self._flushed_at = now
            bar.show(self._standing(dimensions))
        if now - self._saved_at >= self.config.run.checkpoint_seconds:
            self.save()

    def _standing(self, dimensions: int) -> Standing:
        values = torch.cat([self.totals.means(), self.polarization.newest]).tolist()
        found = dict(zip(FIELDS + POLARIZATION, values, strict=True))
        if self.totals.steps == 0 and self.log.last is not None:
            found |= {name: self.log.last[name] for name in FIELDS}
        counted = self.position.epoch > 0 or self.position.step >= OBSERVED_EVERY
        return Standing(
            found["loss"] / dimensions,
            sigma(found["x_logvar"]),
            int(found["active_units"]) if counted else None,
        )

    def _flush(self) -> None:
        """Write the finished epochs' records to metrics.jsonl; stop where they are not finite."""
        lost = self.watch.lost()
        if lost is not None:
            self._diverged(f"in epoch {lost[0]}, step {lost[1]}")
        self.polarization.track()
        records = self.log.take()
        worst = [r for r in records if not np.isfinite([r["loss"], r["x_logvar"]]).all()]
        if worst:
            self._diverged(f"in epoch {worst[0]['epoch']}, before step {worst[0]['step'] + 1}")
        if records:
            append(self.directory.log, to_lines(records))
            self.board.add(records)

    def _diverged(self, when: str) -> None:
        raise RunError(
            f"the loss of stage {self.position.stage} became infinite or NaN {when}; the last good "
            f"checkpoint is kept: continue with --resume and a smaller "
            f"--stage{self.position.stage}.lr or with --clip-norm 1, or start a run with "
            "--logvar-clamp '[-30, 20]'"
        )

    def save(self) -> None:
        """Write checkpoint.safetensors and model.safetensors, unless the weights are not finite.

        Raises:
            RunError: the weights are not finite, or the disk is full.
        """
        self._flush()
        model = self.model.state_dict()
        optimizer = {} if self.optimizer is None else self.optimizer.state_dict()["state"]
        moments = [value for state in optimizer.values() for value in state.values()]
        if not all_finite([*model.values(), *moments, self.totals.sums]):
            position = self.position
            self._diverged(f"after epoch {position.epoch}, step {position.step}")
        log = self.directory.log
        self.position.log_bytes = log.stat().st_size if log.exists() else 0
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.items()}
        tensors |= self.best.tensors()
        tensors["totals"] = self.totals.sums
        tensors["polarization"] = self.polarization.newest
        tensors["random.noise"] = self.noise.get_state()
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        for index, state in optimizer.items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        header = {
            "position": dataclasses.asdict(self.position),
            "steps_in_totals": self.totals.steps,
            "polarized_regime": self.polarization.tracker.state_dict(),
            "device": self.device.type,
            "config": self.config.to_flat(),
        }
        if self.controls is not None:
            tensors |= self.controls.tensors()
            header["controls"] = self.controls.header()
        save_tensors(
            self.directory.checkpoint,
            tensors,
            CHECKPOINT,
            header,
            previous=self.directory.previous_checkpoint,
        )
        self._save_model()
        self._save_best()
        self._saved_at = time.monotonic()

    def _save_model(self) -> None:
        # What is sampled from and evaluated; training goes on from the checkpoint's own.
        kept = {} if self.controls is None else self.controls.kept(self.best.weights)
        header = dataclasses.asdict(self.position)
        save_tensors(self.directory.model, self._with(kept), MODEL, header)

    def _save_best(self) -> None:
        if self.best.weights:
            header = {
                "stage": self.position.stage,
                "epoch": int(self.best.epoch),
                "loss": float(self.best.loss),
            }
            path = self.directory.best(self.position.stage)
            save_tensors(path, self._with(self.best.weights), MODEL, header)

    def _with(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's state, the present stage with other weights."""
        stage = f"stage{self.position.stage}."
        return self.model.state_dict() | {stage + name: each for name, each in weights.items()}

    def restore(self) -> str | None:
        """Go back to the last checkpoint; a run without one starts from its beginning.

        Nothing is written: `train` brings the other files to the same position.

        Returns:
            A sentence where the last checkpoint was skipped for the one before; None otherwise.

        Raises:
            RunError: no checkpoint is of use: each is damaged, or belongs to another run.
        """
        newest, before = self.directory.checkpoint, self.directory.previous_checkpoint
        present = [path for path in (newest, before) if path.exists()]
        if not present:
            if self.directory.model.exists():
                raise RunError(
                    f"{self.directory.path} holds weights but no checkpoint to continue from; "
                    f"restore {newest.name} from a copy, or train again with another --run "
                    "directory"
                )
            return None
        errors: list[RunError] = []
        for path in present:
            try:
                self._read(path)
            except RunError as error:
                errors.append(error)
                continue
            self._restored = path
            if not errors:
                return None
            return (
                f"going on from the checkpoint before the last, {self.position}: "
                f"{_without_remedy(errors[0])}; it is set aside as "
                f"{self.directory.skipped_checkpoint.name}"
            )
        if len(errors) == 1:
            raise errors[0]
        raise RunError(
            f"no checkpoint of {self.directory.path} is of use: "
            + "; ".join(_without_remedy(error) for error in errors)
            + "; restore one from a copy, or train again with another --run directory"
        )

    def _read(self, path: Path) -> None:
        tensors, header = load_tensors(path, CHECKPOINT)
        try:
            stored = TrainConfig.from_flat(header.get("config", self.config.to_flat()))
            changed = differences(stored, self.config)
            if changed:
                raise RunError(
                    f"{path} was written by a run with other settings ({', '.join(changed)}); "
                    "restore it from a copy, or train again with another --run directory"
                )
            load_state(self.model, _under("model.", tensors), path)
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
                if self.device.type == "cuda":
                    torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
            else:
                self.noise.manual_seed(
                    derived_seed(self.config.run.seed, self.position.stage, self.position.step)
                )
            self.best = Best.of_checkpoint(tensors, self.device)
            self._restore_optimizer(_under("optimizer.", tensors))
            if self.controls is not None:
                self.controls.load(_under("average.", tensors), header.get("controls"))
        except RunError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunError(
                f"{path} does not belong to this version of vaekern ({error}); "
                "train again with another --run directory"
            ) from error

    def _align(self) -> None:
        """Bring the files of a continued run to the position of the checkpoint it continues."""
        directory, restored = self.directory, self._restored
        self._restored = None
        if restored is None:
            if self.position == Position():
                directory.log.unlink(missing_ok=True)
            return
        if restored != directory.checkpoint:
            # Out of the way before the next checkpoint is written: that would put it in the place
            # of the good one.
            if directory.checkpoint.exists():
                os.replace(directory.checkpoint, directory.skipped_checkpoint)
            os.replace(restored, directory.checkpoint)
        if directory.log.exists():
            # Lines after the checkpoint are of epochs that will now be trained again.
            os.truncate(directory.log, min(self.position.log_bytes, directory.log.stat().st_size))
        try:
            behind = reached(directory) != self.position
        except RunError:
            behind = True
        if behind:  # a process was stopped between the two files
            self._save_model()
        self._save_best()

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        self.optimizer = self.controls = None
        if not tensors or self.position.stage not in (1, 2):
            return
        self._begin()
        assert self.optimizer is not None
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def _without_remedy(error: RunError) -> str:
    return str(error).rpartition("; ")[0] or str(error)


def _stopped_sentence(controls: Controls, position: Position) -> str:
    assert controls.stopping is not None
    best = controls.stopping.best_epoch
    return f"{position}: no lower loss since epoch {best}, whose weights are kept"


def reached(directory: RunDirectory) -> Position:
    """How far the weights in a run directory have been trained.

    Raises:
        RunError: model.safetensors is missing or damaged.
    """
    return Position(**read_header(directory.model, MODEL))


def second_stage_is_trained(directory: RunDirectory) -> bool:
    """Whether the second stage of a run has been trained to its end, or stopped early.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    position = reached(directory)
    if position.stage != 2 or position.epoch == 0:
        return False
    if directory.read_config().stage2.epochs <= position.epoch:
        return True
    if not directory.checkpoint.exists():
        return False
    controls = read_header(directory.checkpoint, CHECKPOINT).get("controls") or {}
    return bool(controls.get("early_stopping", {}).get("stopped"))


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
