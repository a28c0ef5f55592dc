"""The best epoch's weights: which, where they are kept, how they are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekern.cli import main
from vaekern.storage.tensors import load_tensors, save_tensors
from vaekern.training import RunError, TrainConfig, TrainingRun, load_model
from vaekern.training.best import Best
from vaekern.training.run_directory import MODEL

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]

# So large a learning rate that the last epoch is not the best.
ROUGH = {"epochs": 8, "lr": 1.0, "halve_every": 1000}


def best_epoch(run: TrainingRun, stage: int, beta: float) -> int:
    records = [json.loads(line) for line in run.directory.log.read_text().splitlines()]
    losses = [r["reconstruction"] + beta * r["kl"] for r in records if r["stage"] == stage]
    return 1 + losses.index(min(losses))


def test_best_weights_are_those_of_a_run_that_ends_there(make_config: Make, train: Train) -> None:
    run = train(make_config(beta=2.0, stage1=ROUGH, stage2=ROUGH))
    epoch = best_epoch(run, 1, 2.0)
    assert epoch < 8
    model, _ = load_model(run.path, best_of_stage=1)
    short = train(make_config("1", beta=2.0, stage1=ROUGH | {"epochs": epoch}))
    expected = short.model.stage1.state_dict()
    assert all(value.equal(expected[k]) for k, value in model.stage1.state_dict().items())

    epoch = best_epoch(run, 2, 1.0)
    assert epoch < 8
    model, _ = load_model(run.path, best_of_stage=2)
    short = train(make_config("2", beta=2.0, stage1=ROUGH, stage2=ROUGH | {"epochs": epoch}))
    expected = short.model.state_dict()  # stage 1 as stage 2 was trained on it: its last
    assert all(value.equal(expected[k]) for k, value in model.state_dict().items())
    # Continued, it finds nothing better than what it had.
    train(make_config("2", beta=2.0, stage1=ROUGH, stage2=ROUGH), resume=True)
    model, _ = load_model(short.path, best_of_stage=2)
    assert all(value.equal(expected[k]) for k, value in model.state_dict().items())


def test_best_weights_have_batch_norm_statistics_of_their_own(
    make_config: Make, train: Train
) -> None:
    options = {"network": "infogan", "width": None}
    run = train(make_config(**options, stage1={"epochs": 1}, stage2={"epochs": 0}))
    model, _ = load_model(run.path, best_of_stage=1)  # one epoch: the best is the last
    expected = run.model.stage1.state_dict()
    assert any("running_var" in name and value.ne(1).any() for name, value in expected.items())
    assert all(value.equal(expected[k]) for k, value in model.stage1.state_dict().items())


def test_the_lowest_loss_wins_and_nan_never_does() -> None:
    best = Best(torch.device("cpu"))
    assert best.tensors() == {}
    weights = {"w": torch.zeros(2), "n": torch.tensor(0)}
    for epoch, loss in enumerate((3.0, torch.nan, 1.0, 1.0, 2.0), start=1):
        weights["w"].fill_(epoch)  # in place, as an optimiser does
        weights["n"].fill_(epoch)
        best.update(torch.tensor(loss), epoch, weights)
    assert (best.loss.item(), best.epoch.item()) == (1.0, 3)
    assert best.weights["w"].tolist() == [3.0, 3.0]
    assert best.weights["n"] == 3
    again = Best.of_checkpoint(best.tensors(), torch.device("cpu"))
    assert again.tensors().keys() == best.tensors().keys()
    again.update(torch.tensor(1.5), 6, weights)
    assert again.epoch.item() == 3


def test_samples_of_the_best_weights(
    make_config: Make, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(make_config())
    for stage in (1, 2):
        path = run.directory.best(stage)
        state, header = load_tensors(path, MODEL)
        bias = {1: "stage1.decoder.head.bias", 2: "stage2.decoder.z_hat.bias"}[stage]
        state[bias] += 0.1  # so that best and last differ in whatever is drawn
        save_tensors(path, state, MODEL, header)
        words = ["sample", str(run.path), "--n", "3", "--stage", str(stage)]
        assert main(words) == 0
        assert main([*words, "--weights", "best"]) == 0
        name = f"samples-stage{stage}-seed0"
        last = np.load(run.path / f"{name}.npy")
        best = np.load(run.path / f"{name}-best.npy")
        model, _ = load_model(run.path, best_of_stage=stage)
        drawn = model.sample(3, stage=stage, generator=torch.Generator().manual_seed(0))
        np.testing.assert_array_equal(best, drawn.numpy())
        assert not np.array_equal(best, last)
    run.directory.best(1).unlink()
    capsys.readouterr()
    assert main(["sample", str(run.path), "--stage", "1", "--weights", "best"]) == 2
    assert "holds no best weights of stage 1: they come" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"holds no best weights of stage 1"):
        load_model(run.path, best_of_stage=1)
