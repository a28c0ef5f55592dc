"""A trained run as the diagnostics see it: the model, the data, and the codes of its samples."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vaekern import diagnostics
from vaekern.data import Dataset
from vaekern.evaluation import (
    Extractor,
    GenerationFeatures,
    classifier_extractor,
    fit_feature_classifier,
    generation_features,
)
from vaekern.evaluation.generation import IMAGES, SOURCES
from vaekern.models import VAE, Posterior, TwoStageVAE
from vaekern.training.seeds import derived_seed

Split = Literal["test", "train"]

# Enough for every statistic of the encoder over the training set.
ENCODED = 10_000


class Part(NamedTuple):
    """Samples and their codes."""

    x: Tensor  # [n, *sample_shape], on the CPU
    q: Posterior  # of all n, on the model's device
    mu: Tensor  # [n, d], the code that stands for each
    logvar: Tensor  # [n, d]
    labels: Tensor | None  # [n]
    factors: Tensor | None  # [n, F]


class Subject:
    """What is evaluated.

    Args:
        model: in evaluation mode, on its device.
        data: what it was trained on.
        two_stages: whether the second stage was trained.
        seed: of the choice of samples and of all noise.
        samples: replaces the diagnostics' own sample counts.
        extractor: features for the distances between images; None trains a small classifier.
        stretch: stretch made images, see `vaekern.evaluation.generation_features`.
    """

    def __init__(
        self,
        model: TwoStageVAE,
        data: Dataset,
        *,
        two_stages: bool,
        seed: int = 0,
        samples: int | None = None,
        extractor: Extractor | None = None,
        stretch: bool = False,
    ):
        self.model = model
        self.data = data
        self.two_stages = two_stages
        self.samples = samples
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device)
        self._seed = seed
        self._parts: dict[tuple[Split, int], Part] = {}
        self._active: Tensor | None = None
        self._extractor = extractor
        self._stretch = stretch
        self._generation: tuple[GenerationFeatures, list[str]] | None = None

    @property
    def vae(self) -> VAE:
        """Stage 1."""
        return self.model.stage1

    def count(self, split: Split, default: int) -> int:
        """How many samples a diagnostic looks at: its own number unless another was asked for."""
        wanted = default if self.samples is None else self.samples
        return min(wanted, len(getattr(self.data, split)))

    def begin(self, name: str) -> None:
        """Noise of its own for every diagnostic: its numbers do not depend on what ran before."""
        self.generator.manual_seed(derived_seed(self._seed, zlib.crc32(name.encode())))

    def part(self, split: Split, n: int) -> Part:
        """n samples of a split, the same at every call; encoded once."""
        if (split, n) not in self._parts:
            x: Tensor = getattr(self.data, split)
            rows = torch.arange(len(x))
            if n < len(x):  # a folder's images are in the order of their classes
                rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(self._seed))
            rows = rows[:n]
            labels: Tensor | None = getattr(self.data, f"{split}_labels")
            factors: Tensor | None = getattr(self.data, f"{split}_factors")
            posterior = self.model.posterior(x[rows])
            self._parts[split, n] = Part(
                x[rows],
                posterior,
                posterior.center,
                posterior.logvar,
                None if labels is None else labels[rows],
                None if factors is None else factors[rows],
            )
        return self._parts[split, n]

    @property
    def active(self) -> Tensor:
        """[d] bool: the dimensions whose mean has a standard deviation above 0.5 in training."""
        if self._active is None:
            mu = self.part("train", self.count("train", ENCODED)).mu
            self._active = diagnostics.active_units(mu, definition="std").mask
        return self._active

    @property
    def has_extractor(self) -> bool:
        """Whether there is one, without a classifier having to be trained."""
        return self._extractor is not None

    @property
    def extractor(self) -> Extractor:
        """Features for the distances between images."""
        if self._extractor is None:
            classifier = fit_feature_classifier(self.data, seed=self._seed)
            self._extractor = classifier_extractor(classifier)
        return self._extractor

    @property
    def generation_seed(self) -> int:
        """Of the choice of images and of the noise in what is made."""
        return derived_seed(self._seed, zlib.crc32(b"generation"))

    @property
    def generation(self) -> tuple[GenerationFeatures, list[str]]:
        """Features of real and made images, and what there is to be said against them."""
        if self._generation is None:
            data, extractor = self.data, self.extractor
            if self.samples is not None:  # mixtures are fitted to as many codes, too
                few = self.part("train", self.count("train", self.samples))
                data = dataclasses.replace(
                    data, train=few.x, train_labels=few.labels, train_factors=few.factors
                )
            left_out = () if self.two_stages else ("second-stage",)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = generation_features(
                    self.model,
                    data,
                    extractor,
                    sources=[name for name in SOURCES if name not in left_out],
                    n=IMAGES if self.samples is None else max(2, self.samples),
                    stretch=self._stretch,
                    seed=self.generation_seed,
                )
            self._generation = found, [str(each.message) for each in caught]
        return self._generation

    def aggregate_posterior(self, n: int) -> dict[str, Tensor]:
        """Samples of q(z), and of q(u) where stage 2 was trained, each [n, d] by its name."""
        with torch.no_grad():
            z = self.part("train", n).q.sample(generator=self.generator)
            samples = {"z": z}
            if self.two_stages:
                samples["u"] = self.model.stage2.posterior(z).sample(generator=self.generator)
        return samples
