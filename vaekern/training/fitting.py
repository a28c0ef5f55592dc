"""What the settings leave to the data, and whether both go together."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from vaekern.data import Dataset
from vaekern.models.likelihoods import LIKELIHOODS, LogisticMixture, grey_levels
from vaekern.training.config import TrainConfig

LOOKED_AT = 1000  # training images


def fitted(config: TrainConfig, data: Dataset) -> TrainConfig:
    """The settings with what they leave open as the data have it: `levels`.

    Raises:
        ValueError: one training sample alone, or pixels that the likelihood has no word for.

    Example:
        >>> from vaekern.data import load
        >>> config = TrainConfig.from_flat({"preset": "vae-logistic-mixture"})
        >>> fitted(config, load("digits")).system.levels  # grey levels of 1/16
        17
    """
    if len(data.train) < 2:
        raise ValueError(
            f"{config.data.data} must hold at least 2 training samples, got {len(data.train)}; "
            "supply more"
        )
    system = config.system
    if system.likelihood == "gaussian" or data.kind != "image":
        return config
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.train), generator=generator)[:LOOKED_AT]
    pixels = data.train[rows.sort().values]
    kind = LIKELIHOODS[system.likelihood]
    options: dict[str, Any] = {}
    if kind is LogisticMixture:
        levels = system.levels or grey_levels(pixels)
        system, options = dataclasses.replace(system, levels=levels), {"levels": levels}
    try:
        kind(**options).check_pixels(pixels)
    except ValueError as error:
        raise ValueError(f"{config.data.data}: {error}") from None
    return dataclasses.replace(config, system=system)
