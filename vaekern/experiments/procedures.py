"""How a row is trained. Each procedure leaves an ordinary run directory behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from vaekern.training.config import TrainConfig
from vaekern.training.run import TrainingRun


class Trained(NamedTuple):
    """What a procedure did."""

    seconds: float  # of the epochs
    epochs: int  # trained by this process, of both stages
    remarks: tuple[str, ...]  # sentences for the user


Procedure = Callable[[TrainConfig, Callable[[str], None]], Trained]


def train(config: TrainConfig, show: Callable[[str], None]) -> Trained:
    """`vaekern train --resume`: starts a run or goes on with it, to its end and its report."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = TrainingRun(config, resume=True)
        if run.continued:
            show(f"goes on from {run.trainer.position}")
        before = _epochs(run)
        run()
    remarks = tuple(dict.fromkeys(str(each.message) for each in caught))
    return Trained(run.seconds, _epochs(run) - before, remarks)


def _epochs(run: TrainingRun) -> int:
    position = run.trainer.position
    return position.epoch + (run.config.stage1.epochs if position.stage == 2 else 0)


#: By name, as `Row.procedure` has it.
PROCEDURES: dict[str, Procedure] = {"train": train}
