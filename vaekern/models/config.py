"""Every setting of a model, with its meaning: the command line's flags are generated from here."""

# ruff: noqa: RUF009 (`setting` makes a dataclass field, which ruff cannot know)

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, Literal

from vaekern.models.networks import NETWORKS

Covariance = Literal["iso-i", "iso-d", "diag-i", "diag-d"]
Estimate = Literal["mle", "learned", "fixed"]
Activation = Literal["auto", "none", "sigmoid", "tanh"]


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its default and the sentence that explains it to a user."""
    return field(default=default, metadata={"help": help})


def explanation(of: Field[Any]) -> str:
    """The sentence given to `setting`."""
    return str(of.metadata["help"])


@dataclass(frozen=True)
class ObjectiveConfig:
    """The decoder's variance and the weight of the KL: the options of `GaussianVAELoss`."""

    covariance: Covariance = setting(
        "iso-i",
        "decoder variance: one number or one per element (iso, diag), "
        "shared by all inputs or one for each (i, d)",
    )
    estimate: Estimate = setting(
        "mle",
        "how the variance is found: in closed form, by gradient, or never (mle, learned, fixed)",
    )
    variance: float = setting(1.0, "the variance of 'fixed', and the start of 'learned'")
    beta: float = setting(1.0, "weight of the KL term; 1 is the ELBO")
    eps: float = setting(1e-6, "added inside the logarithm of the mle estimates (iso-i has none)")
    activation: Activation = setting(
        "auto", "applied to the decoder's output; auto is sigmoid for images, none for vectors"
    )
    logvar_clamp: tuple[float, float] | None = setting(
        None, "bounds for the encoder's log-variance, e.g. '[-30, 20]'"
    )
    posterior_samples: int = setting(1, "draws of z for each input and step")


@dataclass(frozen=True)
class NetworkConfig:
    """Encoder and decoder of both stages."""

    network: str = setting("mlp", f"encoder and decoder of stage 1 ({', '.join(NETWORKS)})")
    latent_dim: int = setting(16, "number of latent dimensions, of z and of u alike")
    width: int | None = setting(None, "units of each hidden layer of mlp (its default: 256)")
    layers: int | None = setting(None, "hidden layers of mlp, in each direction (its default: 2)")
    second_width: int = setting(
        256, "units of each hidden layer of the second stage (the paper: 1024)"
    )
    second_layers: int = setting(3, "hidden layers of the second stage, in each direction")

    def network_options(self) -> dict[str, int]:
        """The options that were set; the network's own defaults stand for the others."""
        chosen = {"width": self.width, "layers": self.layers}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class ModelConfig:
    """A `TwoStageVAE`, but for what the data decides (the shape of a sample and its range)."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
