"""A run small enough to repeat: 90 images of 4x4 pixels, a few steps an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaekern.training import TrainConfig, TrainingRun


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps this small gain nothing from more threads, and wait for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .npy file of uint8 images: blobs at random places."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:4, :4]
    centre = rng.uniform(0, 3, size=(90, 2, 1, 1))
    blobs = np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2))
    path = tmp_path_factory.mktemp("data") / "blobs.npy"
    np.save(path, (255 * blobs).astype(np.uint8))
    return path


@pytest.fixture
def make_config(images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a few seconds; settings by their flat names, stages as dictionaries."""

    def make(run: str = "run", **settings: Any) -> TrainConfig:
        small = {
            "run": str(tmp_path / run),
            "data": f"npy:{images}",
            "latent_dim": 2,
            "width": 12,
            "second_width": 12,
            "checkpoint_seconds": 1000.0,
            "stage1": {"epochs": 3, "batch_size": 20} | settings.pop("stage1", {}),
            "stage2": {"epochs": 3, "batch_size": 20} | settings.pop("stage2", {}),
        }
        return TrainConfig.from_flat(small | settings)

    return make


@pytest.fixture
def train() -> Callable[..., TrainingRun]:
    """Train both stages, without the pictures and the table."""

    def train(config: TrainConfig, *, resume: bool = False) -> TrainingRun:
        run = TrainingRun(config, resume=resume)
        try:
            run.start()
            run.trainer.train()
        finally:
            run.close()
        return run

    return train
