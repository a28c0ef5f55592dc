"""TrainingRun: what is set up before the loop starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vaekern.training import TrainConfig, TrainingRun
from vaekern.training.run import choose_device, choose_threads

Make = Callable[..., TrainConfig]


def test_nothing_is_written_before_the_run_starts(make_config: Make) -> None:
    run = TrainingRun(make_config())
    assert not run.path.exists()
    assert "81 samples of 1x4x4" in run.summary()


def test_seed_decides_the_weights(make_config: Make) -> None:
    first = TrainingRun(make_config("a", seed=1)).model.state_dict()
    torch.manual_seed(7)
    again = TrainingRun(make_config("b", seed=1)).model.state_dict()
    other = TrainingRun(make_config("c", seed=2)).model.state_dict()
    name = "stage1.encoder.head.weight"
    assert first[name].equal(again[name])
    assert not first[name].equal(other[name])


def test_a_small_model_trains_on_one_thread_unless_asked_otherwise(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    TrainingRun(make_config("a"))
    TrainingRun(make_config("b", threads=3))
    assert asked == [1, 3]
    assert choose_threads(None, torch.nn.Linear(1000, 1000)) is None


def test_auto_takes_the_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but torch finds none"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cpu").type == "cpu"
