"""Settings that are off by default: how the KL's weight, eps, learning rate and weights move."""

# ruff: noqa: RUF009 (`setting` makes a dataclass field, which ruff cannot know)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vaekern.models.config import setting

Schedule = Literal["step", "plateau", "cosine"]


@dataclass(frozen=True)
class KLConfig:
    """What stage 1 charges for the KL, where it is not beta * KL from the first step on."""

    kl_warmup_epochs: int | None = setting(
        None, "epochs over which the KL's weight rises linearly from 0 to beta"
    )
    kl_warmup_steps: int | None = setting(None, "the same in steps; give one of the two")
    free_bits: float | None = setting(
        None, "nats that each latent dimension may hold free of charge (averaged over the batch)"
    )
    capacity: float | None = setting(
        None, "nats C that the KL rises to: the loss charges beta * |KL - C(t)|, C(0) = 0"
    )
    capacity_epochs: int | None = setting(
        None, "epochs over which C(t) rises linearly to C (default: all of stage 1)"
    )

    def __post_init__(self) -> None:
        for name in ("kl_warmup_epochs", "kl_warmup_steps", "capacity_epochs"):
            _at_least_one(self, name)
        for name in ("free_bits", "capacity"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{name} must be a positive number of nats, got {value}; leave it out for none"
                )
        if self.capacity_epochs is not None and self.capacity is None:
            raise ValueError(
                f"capacity_epochs must come with capacity, got {self.capacity_epochs} alone; "
                "give the nats too, as in --capacity 25"
            )
        warmup = [n for n in ("kl_warmup_epochs", "kl_warmup_steps") if getattr(self, n)]
        if len(warmup) == 2:
            raise ValueError(
                f"kl_warmup_epochs must come without kl_warmup_steps, got {self.kl_warmup_epochs} "
                f"and {self.kl_warmup_steps}; leave one of them out"
            )
        shapes = [n for n in (*warmup, "free_bits") if getattr(self, n)]
        if self.capacity is not None and shapes:
            raise ValueError(
                f"capacity must be the only change to the KL term, got {shapes[0]} too; "
                "leave one of them out"
            )


@dataclass(frozen=True)
class EpsConfig:
    """What the MLE objectives add inside their logarithm, where it is not eps from the start."""

    eps_start: float | None = setting(
        None, "where the eps of the mle estimates starts; it then falls to eps (iso-i has none)"
    )
    eps_epochs: int | None = setting(
        None,
        "epochs until it has fallen: it stays for a third of them and falls by a constant factor "
        "over the rest (default: two thirds of stage 1)",
    )

    def __post_init__(self) -> None:
        _at_least_one(self, "eps_epochs")
        if self.eps_start is not None and not 0 < self.eps_start < math.inf:
            raise ValueError(
                f"eps_start must be positive and finite, got {self.eps_start}; as in 0.3"
            )
        if self.eps_epochs is not None and self.eps_start is None:
            raise ValueError(
                f"eps_epochs must come with eps_start, got {self.eps_epochs} alone; "
                "say where eps starts, as in --eps-start 0.3"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """How both stages are trained, beyond Adam with a learning rate that halves."""

    lr_schedule: Schedule = setting(
        "step",
        "learning rate: halved every halve_every epochs (step), halved where the loss no longer "
        "falls (plateau), or down to 0 along half a cosine over the stage's epochs (cosine)",
    )
    lr_patience: int = setting(
        3, "epochs without a lower loss that plateau bears; it halves after the next"
    )
    clip_norm: float | None = setting(
        None, "largest norm of the gradient, all parameters together; a longer one is scaled down"
    )
    early_stopping: int | None = setting(
        None, "epochs without a lower loss that end a stage; the weights of its best epoch are kept"
    )
    validation_fraction: float = setting(
        0.0,
        "share of the training set that is not trained on, so that plateau and early stopping "
        "watch its loss; 0 watches the training loss",
    )
    ema_decay: float | None = setting(
        None,
        "weights are averaged with this decay, e.g. 0.999, and the averaged ones are evaluated, "
        "sampled from and given to stage 2",
    )

    def __post_init__(self) -> None:
        if self.lr_patience < 0:
            raise ValueError(f"lr_patience must be at least 0, got {self.lr_patience}")
        _at_least_one(self, "early_stopping")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(
                f"clip_norm must be positive and finite, got {self.clip_norm}; "
                "leave it out for no clipping"
            )
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie between 0 and 1, 1 left out, "
                f"got {self.validation_fraction}"
            )
        if self.validation_fraction and not self.watched:
            raise ValueError(
                f"validation_fraction must come with something that watches it, got "
                f"{self.validation_fraction} alone; add --early-stopping or --lr-schedule plateau"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"ema_decay must lie between 0 and 1, both left out, got {self.ema_decay}; "
                "leave it out for no averaging"
            )

    @property
    def watched(self) -> bool:
        """Whether something depends on the loss of an epoch."""
        return self.early_stopping is not None or self.lr_schedule == "plateau"


def _at_least_one(config: KLConfig | EpsConfig | ScheduleConfig, name: str) -> None:
    value = getattr(config, name)
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}; leave it out to do without")
