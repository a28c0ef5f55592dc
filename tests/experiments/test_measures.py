"""What is computed of finished runs, against the truth."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vaekern.data import load
from vaekern.experiments.clock import Clock
from vaekern.experiments.measures import NotApplicable, noise_variances, training_time


class _Clean:
    """A model that has learned the images and none of the noise on them."""

    def __init__(self, noisy: torch.Tensor, clean: torch.Tensor):
        self.known = {row.numpy().tobytes(): image for row, image in zip(noisy, clean, strict=True)}

    def reconstruct(self, x: torch.Tensor, *, generator: Any) -> torch.Tensor:
        return torch.stack([self.known[row.numpy().tobytes()] for row in x])


def fake(covariance: str, pattern: str, estimate: str = "mle") -> Any:
    clean, noisy = load("digits"), load(f"noisy:{pattern}:0.1:digits")
    vae = _Clean(torch.cat([noisy.train, noisy.test]), torch.cat([clean.train, clean.test]))
    subject = SimpleNamespace(
        vae=vae, device=torch.device("cpu"), generator=None, begin=lambda name: None
    )
    objective = SimpleNamespace(covariance=covariance, estimate=estimate)
    return SimpleNamespace(
        data=noisy,
        subject=subject,
        config=SimpleNamespace(objective=objective),
    )


@pytest.mark.parametrize(
    ("covariance", "pattern", "noisy", "clean"),
    [
        ("iso-i", "uniform", ["SU", "BL"], []),
        ("diag-i", "spatial", ["U", "SU", "BU"], ["L", "SL", "BL"]),
        ("iso-d", "conditional", ["S", "SU", "SL"], ["B", "BU"]),
        ("diag-d", "spatial-conditional", ["SU"], ["L", "B", "SL", "BU"]),
    ],
)
def test_noise_is_found_where_it_is(
    covariance: str, pattern: str, noisy: list[str], clean: list[str]
) -> None:
    found = noise_variances(fake(covariance, pattern))
    # 720 test or 6,400 training pixels or more: the mean of squares of N(0, 0.1) strays by
    # 0.1 sqrt(2 / n) = 0.0053 at the least n, of which this is four.
    for name in noisy:
        assert found[f"train_{name}"] == pytest.approx(0.1, abs=0.0071)
        assert found[f"test_{name}"] == pytest.approx(0.1, abs=0.0211)
    for name in clean:
        assert found[f"train_{name}"] == 0


def test_an_objective_that_cannot_tell_gives_the_mean() -> None:
    found = noise_variances(fake("iso-i", "spatial"))
    assert found["train_U"] == found["train_L"] == pytest.approx(0.05, abs=0.004)
    found = noise_variances(fake("diag-i", "conditional"))
    assert found["train_SU"] == found["train_BU"] == pytest.approx(0.05, abs=0.004)


def test_what_has_no_noise_variance() -> None:
    with pytest.raises(NotApplicable, match="learned variance is no estimate"):
        noise_variances(fake("iso-i", "uniform", "learned"))
    run = fake("iso-i", "uniform")
    run.data = load("digits")
    with pytest.raises(NotApplicable, match="the data hold no noise of a known place"):
        noise_variances(run)


def test_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of stage 1's epochs; the first of a piece counts where there is no other."""
    run = SimpleNamespace(directory=SimpleNamespace(path=tmp_path))
    with pytest.raises(NotApplicable, match="not timed"):
        training_time(run)
    now = [0.0]
    monkeypatch.setattr("vaekern.experiments.clock.time.monotonic", lambda: now[0])

    def piece(*epochs: tuple[int, float]) -> Clock:
        clock = Clock(tmp_path)
        clock.start()
        for stage, seconds in epochs:
            now[0] += seconds
            clock.tick(stage)
        now[0] += 0.5  # cut off in the middle of the next
        clock.write()
        return clock

    assert piece((1, 9.0)).seconds == 9.5
    assert training_time(run) == {"seconds_per_epoch": 9.0}
    assert piece((1, 8.0), (1, 2.0), (1, 3.0), (2, 50.0), (2, 40.0)).epochs == 5
    piece((1, 7.0), (1, 2.5))
    assert training_time(run) == {"seconds_per_epoch": 2.5}  # of 2, 3 and 2.5
    (tmp_path / "epoch_seconds.json").write_text("[1")  # damaged: nothing is known
    with pytest.raises(NotApplicable):
        training_time(run)
