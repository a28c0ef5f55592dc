"""Every setting of a training run. Flags, YAML files and the help text are generated from here."""

# ruff: noqa: RUF009 (`setting` makes a dataclass field, which ruff cannot know)

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vaekern.models.config import (
    ModelConfig,
    NetworkConfig,
    ObjectiveConfig,
    SystemConfig,
    setting,
)
from vaekern.models.flows import FLOWS
from vaekern.training.presets import with_preset
from vaekern.training.schedule_config import EpsConfig, KLConfig, ScheduleConfig

Device = Literal["auto", "cpu", "cuda"]
Mode = Literal["auto", "eager", "compile", "graph"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives and how it runs."""

    preset: str | None = setting(
        None,
        "a system of the papers, whose settings stand where no flag and no --config says "
        "otherwise; 'list' prints them all",
    )
    run: str | None = setting(
        None, "run directory (default: runs/DATA-PRESET or runs/DATA-COVARIANCE-ESTIMATE)"
    )
    seed: int = setting(0, "seed of weights, data order and noise")
    device: Device = setting("auto", "auto takes a CUDA device where there is one")
    threads: int | None = setting(
        None, "CPU threads (default: one for a small model, else torch's number)"
    )
    precision: Precision = setting(
        "float32",
        "of the networks in training (autocast); weights, latents, the loss's sums and every "
        "evaluation are float32. float16 scales the loss; on a CPU it works, and slowly",
    )
    tf32: bool | None = setting(
        None,
        "TF32 on an NVIDIA GPU, true or false (default: torch's own, in convolutions only)",
    )
    step: Mode = setting(
        "auto",
        "how a training step runs: eager; compile (torch.compile); graph (recorded once as a CUDA "
        "graph, then replayed); auto takes graphs on a CUDA device where a step can be recorded",
    )
    checkpoint_seconds: float = setting(30.0, "seconds of training between two checkpoints")


@dataclass(frozen=True)
class DataConfig:
    """What is learned."""

    data: str = setting("digits", "what to learn; the list at the end says what there is")
    image_size: int | None = setting(None, "cut images to a square and resize to this many pixels")
    stream: bool | None = setting(
        None,
        "leave the samples on disk and read them batch by batch, true or false (default: where "
        "they would take more than a quarter of the memory); the result is the same",
    )
    test_fraction: float = setting(0.1, "share held out where the source has no test set")


@dataclass(frozen=True)
class StageConfig:
    """One stage: Adam, lr(epoch) = lr * 0.5^floor(epoch / halve_every) by default."""

    epochs: int = setting(150, "passes over the data; stage 2 takes 0, for none")
    batch_size: int = setting(64, "samples per step; a last smaller batch is dropped")
    lr: float = setting(1e-3, "learning rate of the networks")
    halve_every: int = setting(50, "epochs after which both learning rates halve")
    variance_lr: float = setting(
        1e-2,
        # Adam moves a parameter by at most about its learning rate in a step: at 1e-4 a learned
        # log-deviation needs 10,000 steps per unit, and would still be falling in a short run.
        "learning rate of a learned decoder variance, which moves by at most this much a step",
    )

    def lr_factor(self, epoch: int) -> float:
        """What both learning rates are multiplied by in this epoch."""
        return float(0.5 ** (epoch // self.halve_every))


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `vaekern train`."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    eps: EpsConfig = field(default_factory=EpsConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig = field(default_factory=lambda: StageConfig(epochs=300, halve_every=100))

    def __post_init__(self) -> None:
        for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)):
            lowest = {"epochs": 0 if stage is self.stage2 else 1, "batch_size": 1, "halve_every": 1}
            for key, least in lowest.items():
                if getattr(stage, key) < least:
                    raise ValueError(
                        f"{name}.{key} must be at least {least}, got {getattr(stage, key)}"
                    )
            for key in ("lr", "variance_lr"):
                if not 0 < getattr(stage, key) < math.inf:
                    raise ValueError(
                        f"{name}.{key} must be positive and finite, got {getattr(stage, key)}"
                    )
        if not 0 <= self.run.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2^63 - 1, got {self.run.seed}")
        if self.run.threads is not None and self.run.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.run.threads}")
        if not self.run.checkpoint_seconds > 0:
            raise ValueError(
                f"checkpoint_seconds must be positive, got {self.run.checkpoint_seconds}"
            )
        self._check_system()

    @property
    def model(self) -> ModelConfig:
        """The part that describes the model."""
        return ModelConfig(objective=self.objective, network=self.network, system=self.system)

    def _check_system(self) -> None:
        """Refuse parts of a system that cannot go together."""
        term, posterior = self.system.latent_term, self.system.posterior
        moving = [n for n in KL_SCHEDULES if getattr(self.kl, n) is not None]
        if moving and term != "kl":
            raise ValueError(
                f"{moving[0]} must come with a KL, got latent_term {term}; leave one of them out"
            )
        per_dimension = [name for name in moving if name in ("free_bits", "capacity")]
        if per_dimension and posterior in FLOWS:
            raise ValueError(
                f"{per_dimension[0]} needs the KL of each dimension, which a flow does not have, "
                f"got posterior {posterior}; leave one of them out"
            )
        if term == "mmd" and self.stage1.batch_size < 2:
            raise ValueError(
                "stage1.batch_size must be at least 2 for latent_term mmd, which compares the "
                f"samples of a batch, got {self.stage1.batch_size}"
            )
        self._check_eps()
        _ = self.model  # which looks at the rest

    def _check_eps(self) -> None:
        start, objective = self.eps.eps_start, self.objective
        if start is None:
            return
        system = f"{objective.covariance}, {objective.estimate}"
        if self.system.likelihood != "gaussian":
            system = self.system.likelihood
        if system not in ("iso-d, mle", "diag-i, mle", "diag-d, mle"):
            raise ValueError(
                "eps_start must come with an mle estimate of iso-d, diag-i or diag-d, which add "
                f"eps, got {start} with {system}; leave it out, or give --eps-start null where a "
                "preset sets it"
            )
        if not start > objective.eps:
            raise ValueError(
                f"eps_start must be above eps = {objective.eps:g}, to which it falls, got "
                f"{start:g}; leave it out for an eps that does not move"
            )

    @property
    def run_directory(self) -> str:
        """`run`, or a directory under runs/ named after what is trained."""
        if self.run.run is not None:
            return self.run.run
        source = self.data.data.rstrip("/").rpartition("/")[2].replace(":", "-")
        system = self.run.preset or f"{self.objective.covariance}-{self.objective.estimate}"
        return f"runs/{source}-{system}"

    def to_flat(self) -> dict[str, Any]:
        """The settings as a YAML file holds them: one level, and one more for the two stages."""
        flat: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            values = dataclasses.asdict(getattr(self, part.name))
            values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
            flat.update({part.name: values} if part.name in STAGES else values)
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_flat`; absent settings are those of the `preset`, else the defaults.

        Raises:
            ValueError: a key that is no setting, an unknown preset, or a value outside its range.

        Example:
            >>> TrainConfig.from_flat({"preset": "mle-diag-i", "beta": 2.0}).objective.covariance
            'diag-i'
        """
        default = cls()
        parts: dict[str, Any] = {}
        left = with_preset(flat)
        for part in dataclasses.fields(cls):
            group = getattr(default, part.name)
            given = dict(left.pop(part.name, None) or {}) if part.name in STAGES else left
            chosen = {
                setting.name: given.pop(setting.name)
                for setting in dataclasses.fields(group)
                if setting.name in given
            }
            if part.name in STAGES and given:
                raise ValueError(f"{part.name} has no setting {next(iter(given))!r}")
            if isinstance(chosen.get("logvar_clamp"), list):
                chosen["logvar_clamp"] = tuple(chosen["logvar_clamp"])
            parts[part.name] = dataclasses.replace(group, **chosen)
        if left:
            raise ValueError(f"there is no setting {next(iter(left))!r}")
        return cls(**parts)


KL_SCHEDULES = ("kl_warmup_epochs", "kl_warmup_steps", "free_bits", "capacity")

# The groups that keep their name as a prefix (--stage1.epochs); all others are flat (--latent-dim).
STAGES = ("stage1", "stage2")

# Where and how a run is trained, and not what it becomes (but for rounding).
MACHINE = {"run", "preset", "device", "threads", "tf32", "step", "checkpoint_seconds", "stream"}

# What may differ when a run is continued: everything else would make it another run.
CHANGEABLE = {
    *MACHINE,
    "clip_norm",
    *(f"{s}.{key}" for s in STAGES for key in ("epochs", "lr", "halve_every", "variance_lr")),
}


def differences(
    stored: TrainConfig, given: TrainConfig, changeable: Collection[str] = CHANGEABLE
) -> list[str]:
    """'name: stored -> given' for each setting that may not change when a run is continued."""
    before, after = stored.to_flat(), given.to_flat()
    for stage in STAGES:
        for flat in (before, after):
            flat.update({f"{stage}.{key}": value for key, value in flat.pop(stage).items()})
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if name not in changeable and before[name] != after[name]
    ]
