"""What surrounds the steps of one stage: learning rate, clipping, averaging, early stopping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaekern.models import VAE
from vaekern.training.adam import Adam
from vaekern.training.config import TrainConfig
from vaekern.training.early_stopping import EarlyStopping
from vaekern.training.eps import Eps
from vaekern.training.kl import KLTerm
from vaekern.training.learning_rate import LearningRate
from vaekern.training.precision import grad_scaler
from vaekern.training.schedule_config import EpsConfig, KLConfig


class Controls:
    """All of a stage, beside weights and optimiser, that a checkpoint has to hold.

    Args:
        vae: the stage's model.
        optimizer: over its parameters.
        config: the settings.
        number: the stage, 1 or 2; the settings of the KL and of eps are those of stage 1.
        steps: of an epoch.
    """

    def __init__(
        self,
        vae: VAE,
        optimizer: Adam,
        config: TrainConfig,
        number: int,
        steps: int,
    ):
        schedule = config.schedule
        stage = config.stage1 if number == 1 else config.stage2
        self.vae = vae
        self.optimizer = optimizer
        self.clip_norm = schedule.clip_norm
        device = next(vae.parameters()).device
        self.scaler = grad_scaler(config.run.precision, device)
        self.rate = LearningRate(optimizer, stage, schedule)
        self.kl = (
            KLTerm(config.kl, config.objective.beta, stage.epochs, steps)
            if number == 1
            else KLTerm(KLConfig(), vae.loss.beta, stage.epochs, steps)
        )
        eps = config.eps if number == 1 else EpsConfig()
        self.eps = Eps(eps, config.objective.eps, stage.epochs, steps)
        self.stopping = (
            None if schedule.early_stopping is None else EarlyStopping(schedule.early_stopping)
        )
        # Buffers too: batch norm's statistics and the running variance belong to the weights.
        self.average = (
            None
            if schedule.ema_decay is None
            else AveragedModel(
                vae, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema_decay), use_buffers=True
            )
        )

    def step(self, loss: Tensor) -> None:
        """Backward pass and the optimiser's step; float16 skips a step that overflows."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.vae)

    def end_epoch(self, epoch: int, reconstruction: float, kl: float) -> None:
        """Look at the loss after `epoch` epochs."""
        loss = self.kl.watched(reconstruction, kl)
        self.rate.end(loss)
        if self.stopping is not None:
            self.stopping.update(epoch, loss)

    @property
    def settled(self) -> int:
        """The step from which on nothing of the loss moves any more."""
        return max(self.kl.settled, self.eps.settled)

    @property
    def stopped(self) -> bool:
        """Whether the stage ends before its last epoch."""
        return self.stopping is not None and self.stopping.stopped

    @property
    def evaluated(self) -> VAE:
        """The weights that a validation loss is of: the averaged ones where there are any."""
        if self.average is None:
            return self.vae
        assert isinstance(self.average.module, VAE)
        return self.average.module

    def kept(self, best: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights the stage leaves behind if it ends now: the best epoch's, or `evaluated`."""
        return best if best and self.stopping is not None else self.evaluated.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        average = {} if self.average is None else self.average.state_dict()
        return {f"average.{name}": value for name, value in average.items()}

    def header(self) -> dict[str, Any]:
        """The rest of a checkpoint."""
        stopping = {} if self.stopping is None else self.stopping.state_dict()
        scaler = {} if self.scaler is None else self.scaler.state_dict()
        return {
            "learning_rate": self.rate.state_dict(),
            "early_stopping": stopping,
            "loss_scale": scaler,
        }

    def load(self, average: dict[str, Tensor], header: Any) -> None:
        """Go on from `tensors`, without their prefix, and `header`."""
        if not header:  # written before any of this existed
            return
        self.rate.load_state_dict(header["learning_rate"])
        if self.scaler is not None:
            self.scaler.load_state_dict(header["loss_scale"])
        if self.average is not None:
            self.average.load_state_dict(average)
        if self.stopping is not None:
            self.stopping.load_state_dict(header["early_stopping"])
