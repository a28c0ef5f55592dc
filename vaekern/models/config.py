"""Every setting of a model, with its meaning: the command line's flags are generated from here."""

# ruff: noqa: RUF009 (`setting` makes a dataclass field, which ruff cannot know)

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, Literal

from vaekern.models.networks import NETWORKS

Covariance = Literal["iso-i", "iso-d", "diag-i", "diag-d"]
Estimate = Literal["mle", "learned", "fixed"]
Activation = Literal["auto", "none", "sigmoid", "tanh"]
PosteriorKind = Literal[
    "diagonal", "full", "isotropic", "fixed", "deterministic", "planar", "radial"
]
LikelihoodKind = Literal["gaussian", "bernoulli", "logistic-mixture", "squared-error"]
LatentTerm = Literal["kl", "squared-norm", "mmd", "none"]
Penalty = Literal["none", "l2", "jacobian", "vector-jacobian"]


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
class SystemConfig:
    """What stage 1 is made of, where it is not the Gaussian VAE that the objective describes."""

    posterior: PosteriorKind = setting(
        "diagonal",
        "q(z|x): its covariance diagonal or full, one variance for all inputs and dimensions, "
        "learned (isotropic) or fixed, none at all (deterministic), or a flow (planar, radial)",
    )
    posterior_variance: float = setting(
        0.1, "the variance of the 'fixed' posterior, and the start of the 'isotropic' one"
    )
    flow_steps: int = setting(10, "steps of a planar or radial flow")
    likelihood: LikelihoodKind = setting(
        "gaussian",
        "p(x|z): the Gaussian of covariance and estimate, Bernoulli (cross-entropy of pixels "
        "between 0 and 1), a mixture of discretised logistics, or the plain squared error",
    )
    mixture_components: int = setting(10, "components of the logistic mixture")
    levels: int | None = setting(
        None,
        "grey levels of the pixels, as the logistic mixture counts them (default: those that the "
        "training images have; 256 of 8-bit images)",
    )
    latent_term: LatentTerm = setting(
        "kl",
        "what is charged for the latents, times beta: the KL, |z|^2 / 2, the maximum mean "
        "discrepancy from N(0, I), or nothing",
    )
    decoder_penalty: Penalty = setting(
        "none",
        "charged for the decoder: its squared weights (l2), the squared Frobenius norm of its "
        "Jacobian, or |d |x_hat|^2 / dz|^2 (vector-jacobian)",
    )
    penalty_weight: float = setting(1.0, "weight of the decoder's penalty")
    spectral_norm: bool = setting(
        False, "divide each weight of the decoder by its largest singular value"
    )

    def __post_init__(self) -> None:
        if self.latent_term == "kl" and self.posterior == "deterministic":
            raise ValueError(
                "latent_term must not be kl with the deterministic posterior, whose KL is infinite;"
                " use --latent-term squared-norm, mmd or none"
            )
        if not self.posterior_variance > 0:
            raise ValueError(
                f"posterior_variance must be positive, got {self.posterior_variance}; "
                "for none at all use --posterior deterministic"
            )
        for name, least in (("flow_steps", 1), ("mixture_components", 1), ("levels", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.penalty_weight >= 0:
            raise ValueError(f"penalty_weight must not be negative, got {self.penalty_weight}")


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

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "layers", "second_width", "second_layers"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def network_options(self) -> dict[str, int]:
        """The options that were set; the network's own defaults stand for the others."""
        chosen = {"width": self.width, "layers": self.layers}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class ModelConfig:
    """A `TwoStageVAE`, but for what the data decides (the shape of a sample and its range)."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    system: SystemConfig = field(default_factory=SystemConfig)

    def __post_init__(self) -> None:
        objective, system = self.objective, self.system
        if objective.posterior_samples > 1 and system.posterior == "deterministic":
            raise ValueError(
                f"posterior_samples must be 1 for the deterministic posterior, whose draws are all "
                f"the same, got {objective.posterior_samples}; leave it out"
            )
        if system.likelihood == "gaussian":
            return
        default = ObjectiveConfig()
        for name in ("covariance", "estimate", "variance"):
            if getattr(objective, name) != getattr(default, name):
                raise ValueError(
                    f"{name} belongs to the Gaussian likelihood, got {getattr(objective, name)} "
                    f"with likelihood {system.likelihood}; leave one of them out"
                )

    def describe(self) -> str:
        """The system in a few words, as tables and pages name it."""
        system, objective = self.system, self.objective
        words: list[str] = [system.likelihood]
        if system.likelihood == "gaussian":
            words = [objective.covariance, objective.estimate]
        words += [system.posterior] if system.posterior != "diagonal" else []
        words += [system.latent_term] if system.latent_term not in ("kl", "none") else []
        words += [f"{system.decoder_penalty} penalty"] if system.decoder_penalty != "none" else []
        words += ["spectral norm"] if system.spectral_norm else []
        return ", ".join(words)
