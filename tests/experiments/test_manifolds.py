"""The dimension of a manifold is found: a small run of the experiment of that name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vaekern import diagnostics, functional
from vaekern.training.config import TrainConfig
from vaekern.training.run import TrainingRun


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_two_dimensions_are_used_of_twenty(tmp_path: Path) -> None:
    """Seeds 0 to 3 gave 2 dimensions each, variances below 0.005 and above 0.75, and an MMD^2 of
    q(z) 4.4 to 6.6 times the prior's own that falls by 1.6 to 5.3 of these units."""
    settings = {
        "run": str(tmp_path / "run"),
        "seed": 0,
        "data": "manifold-images:2:2000",
        "image_size": 12,
        "preset": "two-stage",
        "latent_dim": 20,
        "threads": 1,
        "width": 64,
        "second_width": 64,
        "stage1": {
            "epochs": 40,
            "batch_size": 50,
            "lr": 2e-3,
            "halve_every": 40,
            "variance_lr": 4e-3,
        },
        "stage2": {"epochs": 30, "batch_size": 50, "lr": 2e-3, "halve_every": 15},
    }
    run = TrainingRun(TrainConfig.from_flat(settings))
    try:
        run.start()
        run.trainer.train()
    finally:
        run.close()
    model = run.model.eval()
    # gamma falls from 1 by a factor of 300; by how much more is a matter of training time
    x_logvar = model.stage1.loss.x_logvar
    assert x_logvar is not None
    assert float(x_logvar.detach()) < math.log(1 / 300)
    posterior = model.posterior(run.data.train)
    spectrum = diagnostics.encoder_variance_spectrum(posterior.logvar)
    assert spectrum.active == 2
    assert spectrum.variance[1] < 0.05
    assert spectrum.variance[2] > 0.6

    def mmd(latents: torch.Tensor) -> float:
        generator = torch.Generator().manual_seed(0)
        return float(diagnostics.maximum_mean_discrepancy(latents, generator=generator))

    generator = torch.Generator().manual_seed(0)
    z = posterior.sample(generator=generator)
    with torch.no_grad():
        u = functional.reparameterize(*model.stage2.encode(z), generator=generator)
    itself = [mmd(torch.randn(len(z), 20, generator=generator)) for _ in range(8)]
    spread = math.sqrt(sum(value**2 for value in itself) / len(itself))
    assert mmd(z) > 4 * spread
    assert mmd(u) < mmd(z) - spread
