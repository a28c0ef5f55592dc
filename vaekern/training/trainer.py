"""The training loop: plain PyTorch, both stages, stopped and continued at any step."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from vaekern.data import Samples
from vaekern.models import TwoStageVAE
from vaekern.models.joined_batch_norm import batch_norm_joined
from vaekern.storage.errors import DivergedError
from vaekern.storage.files import append
from vaekern.training.allocator import keep_freed_memory
from vaekern.training.board import Board
from vaekern.training.checkpoints import Checkpoints
from vaekern.training.config import TrainConfig
from vaekern.training.controls import Controls
from vaekern.training.eps import Eps
from vaekern.training.interrupt import Stopped, StopRequest
from vaekern.training.kl import KLTerm
from vaekern.training.meetings import Meetings
from vaekern.training.metrics import (
    FIELDS,
    OBSERVED_EVERY,
    POLARIZATION,
    Log,
    Watch,
    sigma,
    to_lines,
)
from vaekern.training.precision import tf32
from vaekern.training.processes import Processes
from vaekern.training.progress import Progress, Standing
from vaekern.training.run_directory import RunDirectory
from vaekern.training.seeds import derived_seed
from vaekern.training.sources import Images, Latents, latents, split
from vaekern.training.state import Position, State
from vaekern.training.step import Step
from vaekern.training.validation import validate

# Records are fetched from the device this often, so that neither a step nor an epoch waits for it.
BLOCK_SECONDS = 1.0


class Trainer:
    """Trains a `TwoStageVAE` in a run directory that has been started.

    Args:
        model: on its device.
        train: the training set [N, *sample_shape].
        config: the settings.
        directory: where checkpoints and metrics go; process 0 writes them.
        processes: that train it together; each has the whole model and takes its share of every
            batch, so that the run is that of one process up to the rounding of sums.

    Raises:
        ValueError: there are more processes than samples in a batch.

    Example:
        See `vaekern.training.run.TrainingRun`, which prepares all four.
    """

    def __init__(
        self,
        model: TwoStageVAE,
        train: Samples,
        config: TrainConfig,
        directory: RunDirectory,
        processes: Processes | None = None,
    ):
        self.model = model
        self.config = config
        self.directory = directory
        self.device = next(model.parameters()).device
        self.processes = processes or Processes()
        held_out = None
        if config.schedule.validation_fraction:
            held_out, train = split(train, config.schedule.validation_fraction, config.run.seed)
        self.images = Images(train, self.device, self.processes)
        self.held_out = None if held_out is None else Images(held_out, self.device)
        self.state = State(model, config, len(self.images))
        self._check_batches()
        self.checkpoints = Checkpoints(directory, self.state, self.processes)
        self.log = Log()
        self.board = Board(directory.path)
        self.watch = Watch()
        self._saved_at = time.monotonic()
        self._flushed_at = time.monotonic()

    def _check_batches(self) -> None:
        for name in ("stage1", "stage2"):
            size = self.state.batch_size(getattr(self.config, name))
            if size < self.processes.size:
                raise ValueError(
                    f"{name}.batch_size is the whole batch, which the processes share: it must be "
                    f"at least their number {self.processes.size}, got {size}; raise it, or start "
                    "fewer processes"
                )

    @property
    def position(self) -> Position:
        """How far the run is."""
        return self.state.position

    # -- the run ------------------------------------------------------------------------------

    def train(self) -> None:
        """Train both stages from the current position to the end.

        Raises:
            RunError: the loss is no longer finite, or the disk is full.
            Stopped: Ctrl-C or SIGTERM (a KeyboardInterrupt); a checkpoint has been written.
        """
        keep_freed_memory()
        self.checkpoints.align()
        joined = nullcontext() if self.processes.alone else batch_norm_joined(self.model)
        try:
            with tf32(self.config.run.tf32), joined:
                self._train()
        finally:
            self.board.close()

    def _train(self) -> None:
        state = self.state
        if state.position.stage == 1:
            self._train_stage(self.images, self.held_out)
            self._fit_best()
            self._keep()
            self._fit_batch_norm()
            state.begin_stage2()
            self.save()
        stopped = state.controls is not None and state.controls.stopped
        if state.position.epoch < self.config.stage2.epochs and not stopped:
            self.model.stage1.eval()
            learned, held_out = (
                None if images is None else latents(self.model, images, self.directory.path)
                for images in (self.images, self.held_out)
            )
            assert learned is not None
            self._train_stage(learned, held_out)
            self.save()  # with the optimiser: --resume --stage2.epochs can add more
        self._keep()
        self.model.eval()

    def warning(self) -> str | None:
        """One sentence where the run ends before one of its schedules; None else."""
        stage = self.config.stage1
        steps = self.state.steps(stage)
        term = KLTerm(self.config.kl, self.config.objective.beta, stage.epochs, steps)
        eps = Eps(self.config.eps, self.config.objective.eps, stage.epochs, steps)
        return term.warning(stage.epochs, steps) or eps.warning(stage.epochs, steps)

    def restore(self) -> str | None:
        """Go back to the last checkpoint: see `Checkpoints.restore`."""
        return self.checkpoints.restore()

    def _keep(self) -> None:
        """Give the model what the stage leaves behind: the best weights, or the averaged ones."""
        controls = self.state.controls
        if controls is not None:
            controls.vae.load_state_dict(controls.kept(self.state.best.weights))

    def _train_stage(self, source: Images | Latents, held_out: Images | Latents | None) -> None:
        state, position = self.state, self.state.position
        vae, stage = state.vae, state.stage
        if state.controls is None:
            state.begin()
            self.save()  # a full disk or a read-only directory shows before the work, not after
        controls = state.controls
        assert controls is not None
        processes = self.processes
        run = self.config.run
        train = Step(vae, controls, run.precision, state.noise, processes, run.step)
        meetings = Meetings(processes)
        batch_size, batches = state.batch_size(stage), state.steps(stage)
        vae.train()
        with (
            self._bar(position, stage.epochs, batches, batch_size) as bar,
            StopRequest(processes.alone) as stop,
        ):
            while position.epoch < stage.epochs and not controls.stopped:
                controls.rate.start(position.epoch)
                order = self._order(len(source)).to(source.rows_on)
                left = range(position.batch, batches)
                rows = (order[i * batch_size : (i + 1) * batch_size] for i in left)
                for index, x in zip(left, source.batches(rows, state.noise), strict=True):
                    stepped = train(x, batch_size, position.step)
                    state.totals.add(stepped.components)
                    position.batch += 1
                    position.step += 1
                    self.watch.add(position.step, stepped.components.loss)
                    if index + 1 == batches or position.step % OBSERVED_EVERY == 0:
                        step = position.step if position.stage == 1 else None
                        mu, logvar = (
                            processes.rows(each, batch_size)
                            for each in (stepped.mu, stepped.logvar)
                        )
                        state.polarization.observe(mu, logvar, step)
                    bar.update(batch_size)
                    self._on_time(meetings, stop, bar, source.dimensions)
                self._end_epoch(controls, source.dimensions, held_out)
            self._flush()
            bar.show(self._standing(source.dimensions))
            if controls.stopped:
                bar.write(_stopped_sentence(controls, position))
            # After the last step there is no other that would look.
            self._stop(processes.most([stop.requested])[0])

    def _stop(self, number: float) -> None:
        """Leave a checkpoint where a signal of this number has asked any process to end."""
        if number:
            self.save()
            raise Stopped(int(number))

    def _fit_batch_norm(self) -> None:
        generator = torch.Generator(self.device)
        generator.manual_seed(derived_seed(self.config.run.seed, 1))
        self.model.fit_batch_norm(
            self.images.x, batch_size=self.config.stage1.batch_size, generator=generator
        )

    def _fit_best(self) -> None:
        """Let stage 1's best weights have the batch-norm statistics that the last ones get."""
        stage1, best = self.model.stage1, self.state.best
        last = {name: value.clone() for name, value in stage1.state_dict().items()}
        if best.weights:
            stage1.load_state_dict(best.weights)
            self._fit_batch_norm()
            best.weights = {n: value.clone() for n, value in stage1.state_dict().items()}
            self.checkpoints.write_best()
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
        state, position = self.state, self.state.position
        record = {
            "stage": position.stage,
            "epoch": position.epoch + 1,
            "step": position.step,
            "lr": controls.optimizer.param_groups[0]["lr"],
            "dims": dimensions,
            **controls.kl.record(position.step - 1),
            **controls.eps.record(position.step - 1),
        }
        if not state.vae.loss_in_nats:
            record["unit"] = "squared error"
        means = self.processes.mean(state.totals.means())
        reconstruction, kl = (means[FIELDS.index(name)] for name in ("reconstruction", "kl"))
        loss = controls.kl.watched(reconstruction, kl)
        if self.config.schedule.watched:  # the one wait for the device in an epoch
            if held_out is None:
                parts = dict(zip(FIELDS, means.tolist(), strict=True))
            else:
                parts = validate(
                    controls.evaluated,
                    held_out,
                    state.stage.batch_size,
                    (self.config.run.seed, position.stage, 0, 5),
                    self.processes,
                )
                record["validation_loss"] = controls.kl.watched(
                    parts["reconstruction"], parts["kl"]
                )
                loss = torch.full_like(loss, record["validation_loss"])
            controls.end_epoch(position.epoch + 1, parts["reconstruction"], parts["kl"])
        position.epoch += 1
        position.batch = 0
        self.log.add(record, torch.cat([means, state.polarization.newest]))
        state.best.update(loss, position.epoch, controls.evaluated.state_dict())
        state.totals.reset()

    # -- what leaves the device, and the disk ----------------------------------------------------

    def _bar(self, position: Position, epochs: int, batches: int, batch_size: int) -> Progress:
        samples = batches * batch_size
        done = position.epoch * samples + position.batch * batch_size
        return Progress(position.stage, epochs, samples, done, silent=not self.processes.main)

    def _on_time(
        self, meetings: Meetings, stop: StopRequest, bar: Progress, dimensions: int
    ) -> None:
        now = time.monotonic()
        number, flush, save = meetings.agree(
            stop.requested,
            now - self._flushed_at >= BLOCK_SECONDS,
            now - self._saved_at >= self.config.run.checkpoint_seconds,
        )
        self._stop(number)
        if flush:
            self._flush()
            self._flushed_at = now
            bar.show(self._standing(dimensions))
        if save:
            self.save()

    def _standing(self, dimensions: int) -> Standing:
        totals, position = self.state.totals, self.state.position
        means = self.processes.mean(totals.means())
        values = torch.cat([means, self.state.polarization.newest]).tolist()
        found = dict(zip(FIELDS + POLARIZATION, values, strict=True))
        if totals.steps == 0 and self.log.last is not None:
            found |= {name: self.log.last[name] for name in FIELDS}
        counted = position.epoch > 0 or position.step >= OBSERVED_EVERY
        return Standing(
            found["loss"] / dimensions,
            sigma(found["x_logvar"]),
            int(found["active_units"]) if counted else None,
            self.state.vae.loss_in_nats,
        )

    def _flush(self) -> None:
        """Write the finished epochs' records to metrics.jsonl; stop where they are not finite."""
        lost = -self.processes.most([-self.watch.lost()])[0]
        if math.isfinite(lost):
            step = int(lost)
            epoch = (step - 1) // self.state.steps(self.state.stage) + 1
            self._diverged(f"in epoch {epoch}, step {step}")
        self.state.polarization.track()
        records = self.log.take()
        worst = [r for r in records if not np.isfinite([r["loss"], r["x_logvar"] or 0.0]).all()]
        if worst:
            self._diverged(f"in epoch {worst[0]['epoch']}, before step {worst[0]['step'] + 1}")
        if records:
            with self.processes.together():
                if self.processes.main:
                    append(self.directory.log, to_lines(records))
                    self.board.add(records)

    def _diverged(self, when: str) -> None:
        stage = self.position.stage
        error = DivergedError(
            f"the loss of stage {stage} became infinite or NaN {when}",
            "the last good checkpoint is kept: continue with --resume and a smaller "
            f"--stage{stage}.lr or with --clip-norm 1, or start a run with "
            "--logvar-clamp '[-30, 20]'",
        )
        raise self.processes.alike(error)

    def save(self) -> None:
        """Write checkpoint.safetensors and model.safetensors, unless the weights are not finite.

        Raises:
            RunError: the weights are not finite, or the disk is full.
        """
        self._flush()
        if self.processes.most([not self.checkpoints.is_finite()])[0]:
            position = self.position
            self._diverged(f"after epoch {position.epoch}, step {position.step}")
        self.checkpoints.write()
        self._saved_at = time.monotonic()


def _stopped_sentence(controls: Controls, position: Position) -> str:
    assert controls.stopping is not None
    best = controls.stopping.best_epoch
    return f"{position}: no lower loss since epoch {best}, whose weights are kept"
