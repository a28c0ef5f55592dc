"""A trained run as the measures see it."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from vaekern.data import Dataset
from vaekern.evaluation import Extractor
from vaekern.training.checkpoints import second_stage_is_trained
from vaekern.training.config import TrainConfig
from vaekern.training.evaluation.subject import Subject
from vaekern.training.run import choose_device, load_data
from vaekern.training.run_directory import RunDirectory, load_model


class Finished:
    """A run that is trained to its end; what it holds is read when it is first asked for.

    Args:
        config: its settings.
        extractor: features for the distances between images; None trains a small classifier.
        stretch: whether generated images are stretched before these.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        extractor: Extractor | None = None,
        stretch: bool = False,
    ):
        self.config = config
        self._extractor = extractor
        self._stretch = stretch
        self.directory = RunDirectory(config.run_directory)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        return dict(json.loads(self.directory.metrics.read_text(encoding="utf-8")))

    @cached_property
    def data(self) -> Dataset:
        """What it was trained on."""
        return load_data(self.config)

    @cached_property
    def subject(self) -> Subject:
        """The model and its data, as the diagnostics take them."""
        model, _ = load_model(self.directory.path)
        return Subject(
            model.to(choose_device(self.config.run.device)),
            self.data,
            two_stages=second_stage_is_trained(self.directory),
            seed=self.config.run.seed,
            extractor=self._extractor,
            stretch=self._stretch,
        )
