"""Latent samplers: where the latents of generated samples come from.

`SAMPLERS` is the one table; a new sampler is a new row. `latent_sampler` makes one for any trained
model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from vaekern.models.samplers.base import (
    LatentSampler,
    PriorSampler,
    SecondStageSampler,
    encode_means,
)
from vaekern.models.samplers.interpolation import (
    InterpolationSampler,
    interpolation_strips,
    spherical_interpolation,
)
from vaekern.models.samplers.mixture import GaussianMixtureSampler
from vaekern.models.two_stage import TwoStageVAE
from vaekern.models.vae import VAE

if TYPE_CHECKING:
    from vaekern.data import Samples


class SamplerRow(NamedTuple):
    """A row of `SAMPLERS`.

    Attributes:
        summary: one line of help.
        codes: the split whose codes it is made from; None where it needs none.
        make: (model, the codes [N, d], seed) -> the sampler.
    """

    summary: str
    codes: Literal["train", "test"] | None
    make: Callable[[VAE | TwoStageVAE, Tensor | None, int], LatentSampler]


def _stage1(model: VAE | TwoStageVAE) -> VAE:
    return model.stage1 if isinstance(model, TwoStageVAE) else model


def _prior(model: VAE | TwoStageVAE, codes: Tensor | None, seed: int) -> LatentSampler:
    return PriorSampler(_stage1(model))


def _second_stage(model: VAE | TwoStageVAE, codes: Tensor | None, seed: int) -> LatentSampler:
    if not isinstance(model, TwoStageVAE):
        raise ValueError(
            "the sampler 'second-stage' needs a TwoStageVAE, got a VAE; train a second stage"
        )
    return SecondStageSampler(model)


def _mixture(
    model: VAE | TwoStageVAE, codes: Tensor | None, seed: int, *, components: int
) -> LatentSampler:
    assert codes is not None  # its row says so
    return GaussianMixtureSampler.fit(_stage1(model), codes, components=components, seed=seed)


def _interpolation(
    model: VAE | TwoStageVAE, codes: Tensor | None, seed: int, *, ratio: float | None
) -> LatentSampler:
    assert codes is not None
    return InterpolationSampler(_stage1(model), codes, ratio=ratio)


SAMPLERS: dict[str, SamplerRow] = {
    "prior": SamplerRow("the prior N(0, I)", None, _prior),
    "second-stage": SamplerRow("the second-stage VAE", None, _second_stage),
    "gmm-10": SamplerRow(
        "10 Gaussians fitted to the codes of the training set",
        "train",
        functools.partial(_mixture, components=10),
    ),
    "gmm-100": SamplerRow(
        "100 Gaussians fitted to the codes of the training set",
        "train",
        functools.partial(_mixture, components=100),
    ),
    "interpolation": SamplerRow(
        "spherical mid-points between codes of test samples",
        "test",
        functools.partial(_interpolation, ratio=0.5),
    ),
    "interpolation-random": SamplerRow(
        "points at random ratios between codes of test samples",
        "test",
        functools.partial(_interpolation, ratio=None),
    ),
}


def latent_sampler(
    name: str, model: VAE | TwoStageVAE, x: Samples | None = None, *, seed: int = 0
) -> LatentSampler:
    """The sampler that `SAMPLERS` lists under `name`, for a trained model.

    Args:
        name: prior, second-stage, gmm-10, gmm-100, interpolation or interpolation-random.
        model: in evaluation mode.
        x: samples [N, *sample_shape] whose codes it is made from: the training set for a mixture,
            the test set for an interpolation (`SAMPLERS[name].codes` says which); else not looked
            at.
        seed: of what is fitted.

    Raises:
        ValueError: an unknown name, no second stage to draw from, or no samples where it needs
            them.

    Example:
        >>> import torch, vaekern
        >>> encoder, decoder = vaekern.models.networks.mlp((6,), 2, width=8)
        >>> vae = VAE(encoder, decoder, vaekern.GaussianVAELoss(), latent_dim=2)
        >>> latent_sampler("gmm-10", vae, torch.rand(300, 6)).sample(4).shape
        torch.Size([4, 6])
        >>> {name: row.codes for name, row in SAMPLERS.items()}["interpolation"]
        'test'

    Source:
        Takida et al. 2022, section 6: tables 4, 5 and 6.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    row = SAMPLERS[name]
    if row.codes is not None and x is None:
        raise ValueError(
            f"the sampler {name!r} is made from the codes of the {row.codes} set, got none; "
            f"give x=data.{row.codes}"
        )
    codes = None if row.codes is None or x is None else encode_means(_stage1(model), x)
    return row.make(model, codes, seed)


__all__ = [
    "SAMPLERS",
    "GaussianMixtureSampler",
    "InterpolationSampler",
    "LatentSampler",
    "PriorSampler",
    "SamplerRow",
    "SecondStageSampler",
    "encode_means",
    "interpolation_strips",
    "latent_sampler",
    "spherical_interpolation",
]
