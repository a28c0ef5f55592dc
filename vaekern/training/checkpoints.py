"""The files of a run that hold weights: written, read, and brought to one position."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from vaekern.diagnostics import PolarizedRegimeTracker
from vaekern.storage.errors import RunError
from vaekern.storage.tensors import (
    all_finite,
    load_state,
    load_tensors,
    read_header,
    save_tensors,
)
from vaekern.training.best import Best
from vaekern.training.config import TrainConfig, differences
from vaekern.training.processes import Processes
from vaekern.training.run_directory import MODEL, RunDirectory
from vaekern.training.seeds import derived_seed
from vaekern.training.state import Position, State

CHECKPOINT = "vaekern checkpoint"


class Checkpoints:
    """Writes the state of a run to its directory, and reads it back.

    Args:
        directory: of the run.
        state: what is written, and what is read into.
        processes: whose states are the same but for the sums of the present epoch; process 0
            writes, all read.
    """

    def __init__(self, directory: RunDirectory, state: State, processes: Processes):
        self.directory = directory
        self.state = state
        self.processes = processes
        self._restored: Path | None = None

    def is_finite(self) -> bool:
        """Whether all of the state may be written."""
        state = self.state
        moments = [value for each in self._moments().values() for value in each.values()]
        return all_finite([*state.model.state_dict().values(), *moments, state.totals.finite()])

    def _moments(self) -> dict[int, dict[str, Tensor]]:
        optimizer = self.state.optimizer
        return {} if optimizer is None else optimizer.state_dict()["state"]

    def write(self) -> None:
        """Write checkpoint.safetensors, model.safetensors and the best weights of the stage.

        Raises:
            RunError: the disk is full.
        """
        totals = self.processes.stack(self.state.totals.sums)
        with self.processes.together():
            if self.processes.main:
                self._write(totals)

    def _write(self, totals: Tensor) -> None:
        state, log = self.state, self.directory.log
        state.position.log_bytes = log.stat().st_size if log.exists() else 0
        model = state.model.state_dict()
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.items()}
        tensors |= state.best.tensors()
        tensors["totals"] = totals
        tensors["polarization"] = state.polarization.newest
        tensors["random.noise"] = state.noise.get_state()
        tensors["random.cpu"] = torch.get_rng_state()
        if state.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(state.device)
        for index, moments in self._moments().items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        header = {
            "position": dataclasses.asdict(state.position),
            "steps_in_totals": state.totals.steps,
            "polarized_regime": state.polarization.tracker.state_dict(),
            "device": state.device.type,
            "config": state.config.to_flat(),
        }
        if state.controls is not None:
            tensors |= state.controls.tensors()
            header["controls"] = state.controls.header()
        save_tensors(
            self.directory.checkpoint,
            tensors,
            CHECKPOINT,
            header,
            previous=self.directory.previous_checkpoint,
        )
        self._write_model()
        self._write_best()

    def _write_model(self) -> None:
        # What is sampled from and evaluated; training goes on from the checkpoint's own.
        state = self.state
        kept = {} if state.controls is None else state.controls.kept(state.best.weights)
        header = dataclasses.asdict(state.position)
        save_tensors(self.directory.model, self._with(kept), MODEL, header)

    def write_best(self) -> None:
        """Write the weights of the stage's best epoch, where one has ended."""
        with self.processes.together():
            if self.processes.main:
                self._write_best()

    def _write_best(self) -> None:
        position, best = self.state.position, self.state.best
        if best.weights:
            header = {
                "stage": position.stage,
                "epoch": int(best.epoch),
                "loss": float(best.loss),
            }
            save_tensors(
                self.directory.best(position.stage), self._with(best.weights), MODEL, header
            )

    def _with(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's state, the present stage with other weights."""
        stage = f"stage{self.state.position.stage}."
        model = self.state.model.state_dict()
        return model | {stage + name: each for name, each in weights.items()}

    def restore(self) -> str | None:
        """Go back to the last checkpoint; a run without one starts from its beginning.

        Nothing is written: `align` brings the other files to the same position.

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
                f"going on from the checkpoint before the last, {self.state.position}: "
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
        state = self.state
        tensors, header = load_tensors(path, CHECKPOINT)
        try:
            stored = TrainConfig.from_flat(header.get("config", state.config.to_flat()))
            changed = differences(stored, state.config)
            if changed:
                raise RunError(
                    f"{path} was written by a run with other settings ({', '.join(changed)}); "
                    "restore it from a copy, or train again with another --run directory"
                )
            load_state(state.model, _under("model.", tensors), path)
            state.position = Position(**header["position"])
            state.totals.load(tensors["totals"], header["steps_in_totals"], self.processes)
            state.polarization.newest = tensors["polarization"].to(state.device)
            state.polarization.tracker.load_state_dict(header["polarized_regime"])
            torch.set_rng_state(tensors["random.cpu"])
            if header["device"] == state.device.type:
                # The generators of two kinds of device share no state; on another kind the noise
                # goes on from a fresh seed instead.
                state.noise.set_state(tensors["random.noise"])
                if state.device.type == "cuda":
                    torch.cuda.set_rng_state(tensors["random.cuda"], state.device)
            else:
                state.noise.manual_seed(
                    derived_seed(state.config.run.seed, state.position.stage, state.position.step)
                )
            state.best = Best.of_checkpoint(tensors, state.device)
            self._restore_optimizer(_under("optimizer.", tensors))
            if state.controls is not None:
                state.controls.load(_under("average.", tensors), header.get("controls"))
        except RunError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunError(
                f"{path} does not belong to this version of vaekern ({error}); "
                "train again with another --run directory"
            ) from error

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state = self.state
        state.optimizer = state.controls = None
        if not tensors or state.position.stage not in (1, 2):
            return
        state.begin()
        assert state.optimizer is not None
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = value
        state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": moments})

    def align(self) -> None:
        """Bring the files of a continued run to the position of the checkpoint it continues."""
        with self.processes.together():
            if self.processes.main:
                self._align()

    def _align(self) -> None:
        directory, restored = self.directory, self._restored
        self._restored = None
        if restored is None:
            if self.state.position == Position():
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
            size = directory.log.stat().st_size
            os.truncate(directory.log, min(self.state.position.log_bytes, size))
        try:
            behind = reached(directory) != self.state.position
        except RunError:
            behind = True
        if behind:  # a process was stopped between the two files
            self._write_model()
        self._write_best()


def _without_remedy(error: RunError) -> str:
    return str(error).rpartition("; ")[0] or str(error)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


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
