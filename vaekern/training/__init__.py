"""Training a two-stage VAE: a plain loop, a run directory, a report, an evaluation."""

from vaekern.storage.errors import RunError
from vaekern.training.config import (
    DataConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
)
from vaekern.training.evaluation import Evaluation, evaluate
from vaekern.training.run import TrainingRun
from vaekern.training.run_directory import RunDirectory, load_model
from vaekern.training.schedule_config import EpsConfig, KLConfig, ScheduleConfig
from vaekern.training.trainer import Trainer

__all__ = [
    "DataConfig",
    "EpsConfig",
    "Evaluation",
    "KLConfig",
    "RunConfig",
    "RunDirectory",
    "RunError",
    "ScheduleConfig",
    "StageConfig",
    "TrainConfig",
    "Trainer",
    "TrainingRun",
    "evaluate",
    "load_model",
]
