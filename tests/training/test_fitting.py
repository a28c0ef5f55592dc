"""What the settings leave to the data, and data that they cannot go with."""

from __future__ import annotations

import dataclasses
import doctest

import pytest
import torch

from vaekern.data import Dataset, load
from vaekern.training import TrainConfig, fitting
from vaekern.training.fitting import fitted


def config(**settings: object) -> TrainConfig:
    return TrainConfig.from_flat(settings)


def test_grey_levels_are_those_of_the_images() -> None:
    digits = load("digits")
    asked = config(preset="vae-logistic-mixture")
    assert asked.system.levels is None
    assert fitted(asked, digits).system.levels == 17
    binary = dataclasses.replace(digits, train=digits.train.round())
    assert fitted(asked, binary).system.levels == 2
    assert fitted(config(preset="vae-logistic-mixture", levels=33), digits).system.levels == 33
    with pytest.raises(
        ValueError, match=r"^digits: .*one of 12 levels .* choose a Gaussian preset"
    ):
        fitted(config(preset="vae-logistic-mixture", levels=12), digits)


@pytest.mark.parametrize("preset", ["vae-bernoulli", "vae-logistic-mixture"])
def test_noise_leaves_the_range_of_pixels(preset: str) -> None:
    noisy = "noisy:uniform:0.1:digits"
    with pytest.raises(ValueError, match=rf"^{noisy}: likelihood '{preset[4:]}'.* needs pixels"):
        fitted(config(preset=preset, data=noisy), load(noisy))
    fitted(config(preset="mle-iso-i"), load(noisy))


def test_one_sample_is_too_few() -> None:
    one = Dataset("one", "vector", torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="npy:x must hold at least 2 training samples, got 1; sup"):
        fitted(config(data="npy:x"), one)


def test_examples() -> None:
    assert doctest.testmod(fitting) == (0, 3)
