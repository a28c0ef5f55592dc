"""The systems of the papers, by name: settings that `vaekern train --preset NAME` starts from."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One system of the papers.

    Attributes:
        settings: what differs from the defaults, as `TrainConfig.from_flat` takes it.
        source: the paper and the place in it.
        summary: one line on what the system is.
        notes: what was chosen where the paper leaves a choice open, and the paper's own values
            where they are not those of the settings.
    """

    settings: Mapping[str, Any]
    source: str
    summary: str
    notes: str = ""


_DAI_WIPF = "Dai & Wipf 2019, Diagnosing and Enhancing VAE Models"
_TAKIDA = "Takida et al. 2022, Preventing Oversmoothing in VAE"
_ROLINEK = "Rolinek et al. 2019, VAEs Pursue PCA Directions (by Accident)"


def _gaussian(covariance: str, estimate: str) -> dict[str, Any]:
    return {"covariance": covariance, "estimate": estimate}


_HEAD = (
    "The paper does not say what predicts the variance, from what, nor how it is bounded: here it "
    "is a second head on the decoder's features, a function of z, whose log-variance is bounded "
    "below at -20."
)
_EPS = "1e-6 is added inside the logarithm, as in the paper; one draw of z for each input."

_FLOW = (
    "Dai & Wipf say neither which flow nor how long: --posterior planar or radial, and "
    "--flow-steps 10, whose parameters are the encoder's, as in Rezende & Mohamed's algorithm 1. "
    "The KL is estimated by its draws."
)
_GHOSH = "Ghosh et al. 2020, From Variational to Deterministic Autoencoders"
_AUTOENCODER: dict[str, Any] = {
    "likelihood": "squared-error",
    "posterior": "deterministic",
    "latent_term": "none",
}
_RAE = _AUTOENCODER | {"latent_term": "squared-norm", "beta": 4e-3}
_RAE_NOTE = (
    "The loss is |x_hat - x|^2 + beta |z|^2 / 2 + penalty, summed over a sample; their code takes "
    "means over D pixels and d codes, so that its weight w is beta = 2 w D / d. Here w = 5e-4, "
    "that of RAE on MNIST (1e-4 for the others; CelebA 1e-4, CIFAR-10 1e-2 and 1e-3), with D = 64 "
    "and d = 16: change beta in proportion for other data."
)

#: Every preset; a new one is a new row.
PRESETS: dict[str, Preset] = {
    "vae-fixed": Preset(
        _gaussian("iso-i", "fixed"),
        f"{_DAI_WIPF}, table 1 (fixed gamma); {_TAKIDA}, table 4 (sigma^2 = 1)",
        "Gaussian decoder with the fixed variance 1",
        "Other fixed variances: --variance.",
    ),
    "vae-learned": Preset(
        _gaussian("iso-i", "learned"),
        f"{_DAI_WIPF}, table 1 (learned gamma); {_TAKIDA}, table 4 (trainable Iso-I)",
        "Gaussian decoder, one variance learned by gradient",
        "log sigma^2 has a learning rate of its own (stage1.variance_lr). The paper learns log "
        "sigma at that of the weights, 1e-4: a factor of e in sigma takes 10,000 steps, as it does "
        "here at a variance_lr of 2e-4.",
    ),
    "two-stage": Preset(
        _gaussian("iso-i", "learned"),
        f"{_DAI_WIPF}, section 4 and table 1 (2-stage VAE)",
        "learned variance, and a second VAE that learns the latents",
        "The settings of vae-learned: every preset trains a second stage unless told "
        "--stage2.epochs 0. The paper's second stage has --second-width 1024.",
    ),
    "mle-iso-i": Preset(
        _gaussian("iso-i", "mle"),
        f"{_TAKIDA}, table 2 and appendix G (Iso-I)",
        "one variance, at its maximum likelihood over the batch",
        "One draw of z for each input, as in the paper's algorithm 1; nothing is added inside the "
        "logarithm.",
    ),
    "mle-iso-d": Preset(
        _gaussian("iso-d", "mle"),
        f"{_TAKIDA}, table 2 and appendix G (Iso-D)",
        "one variance for each input, at its maximum likelihood",
        _EPS,
    ),
    "mle-diag-i": Preset(
        _gaussian("diag-i", "mle"),
        f"{_TAKIDA}, table 2 and appendix G (Diag-I)",
        "one variance for each pixel, at its maximum likelihood over the batch",
        _EPS,
    ),
    "mle-diag-d": Preset(
        _gaussian("diag-d", "mle") | {"eps_start": 0.3},
        f"{_TAKIDA}, table 2 and appendix G (Diag-D)",
        "one variance for each pixel of each input, at its maximum likelihood",
        _EPS + " With one draw this is a robust loss, 1/2 log(r^2 + 1e-6) summed over the pixels, "
        "which collapses at once where most pixels have a commonest value, as the black of digits. "
        "The paper says nothing of it: here eps starts at 0.3 and falls to 1e-6 in the first two "
        "thirds of stage 1 (--eps-start null leaves it at 1e-6).",
    ),
    "learned-iso-d": Preset(
        _gaussian("iso-d", "learned"),
        f"{_TAKIDA}, table 4 (trainable Iso-D)",
        "one variance for each input, predicted by the decoder",
        _HEAD,
    ),
    "learned-diag-i": Preset(
        _gaussian("diag-i", "learned"),
        f"{_TAKIDA}, table 4 (trainable Diag-I)",
        "one variance for each pixel, learned by gradient",
        "The variances share a learning rate of their own (stage1.variance_lr). "
        "Trainable Iso-I is vae-learned.",
    ),
    "learned-diag-d": Preset(
        _gaussian("diag-d", "learned"),
        f"{_TAKIDA}, table 4 (trainable Diag-D)",
        "one variance for each pixel of each input, predicted by the decoder",
        _HEAD + " The paper reports that it did not converge on CelebA.",
    ),
    "beta-vae": Preset(
        _gaussian("iso-i", "fixed") | {"variance": 0.5, "beta": 4.0},
        f"{_ROLINEK}, equations 11 and 12",
        "squared error and 4 times the KL",
        "The loss of the paper is |x_hat - x|^2 + beta KL, squared error summed and without a "
        "factor 1/2: a Gaussian decoder of variance 1/2. Beta is 4, their choice for dSprites; "
        "they use 1e-4 for Synth. Lin., 1e-3 for Synth. Non-Lin. and 1 for MNIST.",
    ),
    "beta-vae-full": Preset(
        _gaussian("iso-i", "fixed") | {"variance": 0.5, "beta": 4.0, "posterior": "full"},
        f"{_ROLINEK}, section 5.1 and table 2 (beta-VAE_Sigma)",
        "beta-VAE whose encoder has a full covariance",
        "The paper does not say how the covariance is parametrised: here it is L L^T, the diagonal "
        "of L as the diagonal encoder's standard deviation, the rest linear outputs beside it.",
    ),
    "vae-bernoulli": Preset(
        {"likelihood": "bernoulli"},
        f"{_DAI_WIPF}, table 1 (cross-entropy); {_TAKIDA}, table 4 (Bernoulli)",
        "cross-entropy of pixels between 0 and 1",
        "The pixels are not made binary, as in both papers, so the loss bounds no likelihood. "
        "Samples are the decoder's means.",
    ),
    "vae-logistic-mixture": Preset(
        {"likelihood": "logistic-mixture"},
        f"{_TAKIDA}, table 4 (MoL); Salimans et al. 2017, PixelCNN++",
        "a mixture of discretised logistic distributions for each pixel",
        "The paper names neither the number of components nor the head: here 10, and a last layer "
        "with all their numbers, as in PixelCNN++. Samples are the mixture's means. Its likelihood "
        "is that of grey levels (--levels, by default those of the training images), no density.",
    ),
    "vae-planar-flow": Preset(
        _gaussian("iso-i", "learned") | {"posterior": "planar"},
        f"{_DAI_WIPF}, table 1 (VAE + Flow); Rezende & Mohamed 2015",
        "learned variance, and an encoder augmented with a planar flow",
        _FLOW,
    ),
    "vae-radial-flow": Preset(
        _gaussian("iso-i", "learned") | {"posterior": "radial"},
        f"{_DAI_WIPF}, table 1 (VAE + Flow); Rezende & Mohamed 2015",
        "learned variance, and an encoder augmented with a radial flow",
        _FLOW,
    ),
    "vae-isotropic": Preset(
        _gaussian("iso-i", "fixed")
        | {"variance": 0.1, "posterior": "isotropic", "posterior_variance": 1.0},
        f"{_TAKIDA}, section 4.2 and table 1",
        "one learned variance sigma_z^2 for all codes, sigma_x^2 fixed at 0.1",
        "The paper takes sigma_x^2 = 10^0, 10^-0.1, ..., 10^-1 (--variance) and does not say where "
        "sigma_z^2 starts: here at 1, the prior's, with the learning rate of other variances.",
    ),
    "vae-deterministic": Preset(
        _gaussian("iso-i", "fixed")
        | {"variance": 0.1, "posterior": "deterministic", "latent_term": "squared-norm"},
        f"{_TAKIDA}, section 4.2 and table 1 (deterministic)",
        "vae-isotropic with sigma_z^2 = 0: z is the encoder's mean",
        "What is left of the KL is |z|^2 / 2.",
    ),
    "vae-isotropic-fixed": Preset(
        _gaussian("iso-i", "mle") | {"posterior": "fixed", "posterior_variance": 0.1},
        f"{_TAKIDA}, appendix E and table E.8",
        "one fixed variance sigma_z^2 = 0.1 for all codes, mle-iso-i decoder",
        "The paper takes sigma_z^2 = 10^1, 10^0.9, ..., 10^-1 (--posterior-variance).",
    ),
    "ae": Preset(
        _AUTOENCODER,
        f"{_TAKIDA}, table 4 (AE); {_GHOSH}",
        "plain autoencoder: squared error, nothing else",
        "No prior: samples are those of the second stage, or of a density fitted to the codes.",
    ),
    "rae": Preset(
        _RAE,
        f"{_GHOSH}, equation 5 and table 1 (RAE); {_TAKIDA}, table 4",
        "autoencoder with a penalty on the squared norm of its codes",
        _RAE_NOTE + " The decoder is not regularised, as in the rows named RAE.",
    ),
    "rae-l2": Preset(
        _RAE | {"decoder_penalty": "l2", "penalty_weight": 6.4e-6},
        f"{_GHOSH}, table 1 (RAE-L2)",
        "RAE with weight decay of the decoder",
        _RAE_NOTE + " All weight matrices and kernels of the decoder count; the released code "
        "leaves out the dense layer. Its weight is 1e-7 times D (64 here; 1e-6 on CIFAR-10).",
    ),
    "rae-gp": Preset(
        _RAE | {"decoder_penalty": "jacobian", "penalty_weight": 1e-3},
        f"{_GHOSH}, equation 9 and table 1 (RAE-GP); {_TAKIDA}, section 4.1",
        "RAE with the squared Frobenius norm of the decoder's Jacobian",
        _RAE_NOTE
        + " One random probe for each sample, whose expectation is the norm. No published "
        "weight belongs to this form: the released code computes another (rae-gp-released).",
    ),
    "rae-gp-released": Preset(
        _RAE | {"decoder_penalty": "vector-jacobian", "penalty_weight": 2e-7},
        f"{_GHOSH}, table 1 (RAE-GP), as its released code computes it",
        "RAE with the gradient of |x_hat|^2 in place of the Jacobian's norm",
        _RAE_NOTE + " The weight is 5e-8 times D / d (D = 64, d = 16 here; 1e-7 on CelebA).",
    ),
    "rae-sn": Preset(
        _RAE | {"beta": 0.072, "spectral_norm": True},
        f"{_GHOSH}, table 1 (RAE-SN)",
        "RAE whose decoder is spectrally normalised",
        "Each weight of the decoder is divided by its largest singular value, the last layer's "
        "too, as in the released code. Without batch norm (--network mlp) no change of z then "
        "moves the logits further than z: images are reconstructed poorly. Beta is 2 w D / d with "
        "w = 9e-3, their MNIST value (CelebA 2.4e-3, CIFAR-10 0.03), where their code normalises "
        "the encoder too.",
    ),
    "wae-mmd": Preset(
        _AUTOENCODER | {"latent_term": "mmd", "beta": 16.0, "stage1": {"batch_size": 100}},
        "Tolstikhin et al. 2018, Wasserstein Auto-Encoders; "
        f"{_DAI_WIPF}, table 1; {_TAKIDA}, table 4",
        "autoencoder whose codes are drawn to N(0, I) by their MMD",
        "Deterministic encoder, without the input noise and the pretraining of their code. Its "
        "loss is 0.05 |x_hat - x|^2 + lambda MMD^2, lambda 10 on MNIST, and 100 on CelebA with "
        "pixels from -1 to 1: beta = 200, and 500 for pixels from 0 to 1. Here 16, MNIST's times "
        "64 / 784. Neither of the other papers names the weight it used.",
    ),
}


def preset(name: str) -> Preset:
    """The row of `PRESETS` under a name.

    Raises:
        ValueError: there is none; the text suggests the nearest.

    Example:
        >>> preset("mle-iso-i").settings["estimate"]
        'mle'
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"there is no preset {name!r}; {hint}`vaekern train --preset list` prints all of them"
        )
    return PRESETS[name]


def with_preset(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings that name a preset, its own added where they say nothing themselves."""
    given = dict(flat)
    if given.get("preset") is None:
        return given
    merged: dict[str, Any] = dict(preset(given["preset"]).settings)
    for key, value in given.items():
        if isinstance(value, Mapping):  # a stage
            value = {**merged.get(key, {}), **value}
        merged[key] = value
    return merged


def describe_presets() -> str:
    """What `vaekern train --preset list` prints: name, summary, source and notes."""
    lines = [
        "Systems that `vaekern train --preset NAME` trains; flags win over a preset's settings."
    ]
    for name, row in PRESETS.items():
        lines += ["", f"{name}: {row.summary}"]
        for text in (row.source, row.notes):
            lines += textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def preset_table() -> str:
    """The presets as the README lists them."""
    rows = [f"| `{name}` | {row.summary} |" for name, row in PRESETS.items()]
    return "\n".join(["| `--preset` | the system |", "|---|---|", *rows])
