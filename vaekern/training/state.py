"""Where a run is, and everything that its next step depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vaekern.models import VAE, TwoStageVAE
from vaekern.training.adam import Adam
from vaekern.training.best import Best
from vaekern.training.config import StageConfig, TrainConfig
from vaekern.training.controls import Controls
from vaekern.training.metrics import Polarization, Totals
from vaekern.training.seeds import derived_seed
from vaekern.training.step import make_optimizer


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


class State:
    """All that a checkpoint holds.

    Args:
        model: on its device.
        config: the settings.
        samples: that each stage is trained on.
    """

    def __init__(self, model: TwoStageVAE, config: TrainConfig, samples: int):
        self.model = model
        self.config = config
        self.samples = samples
        self.device = next(model.parameters()).device
        self.position = Position()
        self.noise = torch.Generator(self.device)
        self.noise.manual_seed(derived_seed(config.run.seed, 0))
        self.totals = Totals(self.device)
        self.polarization = Polarization(self.device)
        self.best = Best(self.device)
        self.optimizer: Adam | None = None
        self.controls: Controls | None = None

    @property
    def vae(self) -> VAE:
        """The model of the stage that the run is in."""
        return self.model.stage1 if self.position.stage == 1 else self.model.stage2

    @property
    def stage(self) -> StageConfig:
        """Its settings."""
        return self.config.stage1 if self.position.stage == 1 else self.config.stage2

    def batch_size(self, stage: StageConfig) -> int:
        """Samples of a step."""
        return min(stage.batch_size, self.samples)

    def steps(self, stage: StageConfig) -> int:
        """Steps of an epoch."""
        return self.samples // self.batch_size(stage)

    def begin(self) -> None:
        """Make what surrounds the steps of the stage: its optimiser and its schedules."""
        self.optimizer = make_optimizer(self.vae, self.stage)
        self.controls = Controls(
            self.vae, self.optimizer, self.config, self.position.stage, self.steps(self.stage)
        )

    def begin_stage2(self) -> None:
        """Go on to stage 2, of which nothing has been trained."""
        self.position = Position(stage=2)
        self.optimizer = self.controls = None
        self.best = Best(self.device)
