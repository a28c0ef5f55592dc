"""Flags that would have no effect, which a user would take for ones that make no difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vaekern.models.flows import FLOWS
from vaekern.training.config import TrainConfig


class Effect(NamedTuple):
    """Where a setting has an effect, and how that is said."""

    holds: Callable[[TrainConfig], bool]
    words: str


def _adds_eps(config: TrainConfig) -> bool:
    mle = config.system.likelihood == "gaussian" and config.objective.estimate == "mle"
    return mle and config.objective.covariance != "iso-i"


_MIXTURE = Effect(
    lambda c: c.system.likelihood == "logistic-mixture", "likelihood logistic-mixture"
)

#: Every setting that depends on another one, by its name.
EFFECTS: dict[str, Effect] = {
    "beta": Effect(lambda c: c.system.latent_term != "none", "a latent_term"),
    "eps": Effect(_adds_eps, "an mle estimate of iso-d, diag-i or diag-d"),
    "posterior_variance": Effect(
        lambda c: c.system.posterior in ("fixed", "isotropic"), "posterior fixed or isotropic"
    ),
    "flow_steps": Effect(lambda c: c.system.posterior in FLOWS, f"posterior {' or '.join(FLOWS)}"),
    "mixture_components": _MIXTURE,
    "levels": _MIXTURE,
    "penalty_weight": Effect(lambda c: c.system.decoder_penalty != "none", "a decoder_penalty"),
    "lr_patience": Effect(lambda c: c.schedule.lr_schedule == "plateau", "lr_schedule plateau"),
}


def check_effects(config: TrainConfig, words: Sequence[str]) -> None:
    """Refuse flags that change nothing.

    Args:
        config: the settings.
        words: of the command line; what a preset or a file sets is nobody's mistake.

    Raises:
        ValueError: the first of them.

    Example:
        >>> config = TrainConfig.from_flat({"flow_steps": 3})
        >>> check_effects(config, ["--flow-steps", "3"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: flow_steps has an effect only with posterior planar or radial; leave it out, ...
    """
    given = {w.partition("=")[0][2:].replace("-", "_") for w in words if w.startswith("--")}
    values, defaults = config.to_flat(), TrainConfig().to_flat()
    for name, effect in EFFECTS.items():
        if name in given and values[name] != defaults[name] and not effect.holds(config):
            raise ValueError(
                f"{name} has an effect only with {effect.words}; leave it out, or choose that"
            )
