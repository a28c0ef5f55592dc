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
        "The variance has a learning rate of its own (stage1.variance_lr): at the paper's 1e-4, "
        "that of the weights, it needs 10,000 steps for a factor of e^2.",
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
        _gaussian("diag-d", "mle"),
        f"{_TAKIDA}, table 2 and appendix G (Diag-D)",
        "one variance for each pixel of each input, at its maximum likelihood",
        _EPS + " With one draw this is a robust loss, 1/2 log(r^2 + 1e-6) summed over the pixels.",
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
