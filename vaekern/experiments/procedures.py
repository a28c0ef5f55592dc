"""How a row is trained. Each procedure leaves an ordinary run directory behind."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

from vaekern.experiments import joint
from vaekern.experiments.clock import Clock, TimedLog
from vaekern.experiments.trained import Show, Trained
from vaekern.storage.tensors import save_tensors
from vaekern.training.config import TrainConfig
from vaekern.training.run import TrainingRun
from vaekern.training.run_directory import MODEL
from vaekern.training.state import Position

Procedure = Callable[[TrainConfig, Show], Trained]


def train(config: TrainConfig, show: Show) -> Trained:
    """`vaekern train --resume`: starts a run or goes on with it, to its end and its report."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run, clock = _started(config, show)
        try:
            clock.start()
            run()
        finally:
            clock.write()
    remarks = tuple(dict.fromkeys(str(each.message) for each in caught))
    return Trained(run.seconds, clock.epochs, remarks)


def train_only(config: TrainConfig, show: Show) -> Trained:
    """`train` without the report, for experiments that look at none of its numbers.

    `vaekern train --run DIR --resume` adds it.
    """
    run, clock = _started(config, show)
    try:
        run.start()
        clock.start()
        run.trainer.train()
    finally:
        clock.write()
        run.close()
    return Trained(clock.seconds, clock.epochs, ())


def _started(config: TrainConfig, show: Show) -> tuple[TrainingRun, Clock]:
    """A run, and what measures its epochs."""
    run = TrainingRun(config, resume=True)
    if run.continued:
        show(f"goes on from {run.trainer.position}")
    clock = Clock(run.path)
    run.trainer.log = TimedLog(clock)
    return run, clock


def leave_untrained(config: TrainConfig, show: Show) -> Trained:
    """A run directory with the weights that training would have started from."""
    run = TrainingRun(config, resume=True)
    try:
        run.start()
        # As if stage 1 were done: a model to look at, and nothing to go on with.
        position = dataclasses.asdict(Position(stage=2))
        save_tensors(run.directory.model, run.model.state_dict(), MODEL, position)
    finally:
        run.close()
    return Trained(0.0, 0, ())


#: By name, as `Row.procedure` has it.
PROCEDURES: dict[str, Procedure] = {
    "train": train,
    "train only": train_only,
    **joint.PROCEDURES,
    "leave untrained": leave_untrained,
}
