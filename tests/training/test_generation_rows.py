"""`vaekern evaluate`: the rows on what a model makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vaekern.cli import main
from vaekern.evaluation import generation_scores, module_extractor
from vaekern.models import SAMPLERS
from vaekern.storage.errors import RunError
from vaekern.training import TrainConfig, TrainingRun, evaluate, load_model
from vaekern.training.evaluation import needs
from vaekern.training.evaluation.subject import Subject

ROWS = ["frechet_distances", "kernel_distances", "precision_recall"]
PIXELS = module_extractor(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), "pixels")  # four

Make = Callable[..., TrainConfig]
Train = Callable[..., TrainingRun]


@pytest.fixture
def run(make_config: Make, train: Train) -> TrainingRun:
    return train(make_config())


def test_the_rows_hold_the_scores(run: TrainingRun) -> None:
    found = evaluate(run.path, only=ROWS, extractor=PIXELS, seed=2)
    model, _ = load_model(run.path)
    subject = Subject(model, run.data, two_stages=True, seed=2, extractor=PIXELS)
    expected, notes = subject.generation
    assert notes == []
    # 81 images: too few for a hundred Gaussians
    assert list(expected.skipped) == ["gmm-100"]
    scores = ("frechet", "kernel", "precision_recall")
    metrics = ("FD-pixels", "KD-pixels", "precision and recall")
    for name, score, metric in zip(ROWS, scores, metrics, strict=True):
        outcome = found.outcomes[name]
        assert (outcome.status, outcome.n, outcome.split) == ("done", 81, "train")
        seed = subject.generation_seed
        direct = generation_scores(model, run.data, PIXELS, scores=(score,), seed=seed)
        for key, value in direct[score].items():
            assert outcome.values[key] == value, key
        assert outcome.values["metric"] == metric
        assert outcome.values["extractor"] == "features of pixels"
        assert list(outcome.values["left_out"]) == ["gmm-100"]
        assert "note" not in outcome.values
    lines = [line.split() for line in found.table.splitlines()]
    values = found.outcomes["frechet_distances"].values
    for name in set(SAMPLERS) - {"gmm-100"}:
        assert any(line[:2] == [name, f"{values[name]:.3f}"] for line in lines)
    assert "gmm-100" not in found.table
    assert "      in features of pixels; preprocessing: none; float32" in found.table
    values = found.outcomes["precision_recall"].values
    assert f"recall: {values['second-stage_recall']:.3f}" in found.table
    about = json.loads((found.path / "evaluation.json").read_text())
    assert (about["extractor"], about["stretch"]) == ("features of pixels", False)


def test_warnings_stand_in_the_table(run: TrainingRun) -> None:
    found = evaluate(run.path, only=ROWS[:1], extractor=PIXELS, samples=12, stretch=True)
    values = found.outcomes[ROWS[0]].values
    assert "10 covariances in 2 dimensions take at least 30 samples, got 12" in values["note"]
    assert values["note"] in " ".join(found.table.split())
    assert values["reference_samples"] == 12
    assert "stretched" in values["preprocessing"]
    found = evaluate(run.path, only=ROWS[:1], extractor=PIXELS, samples=4)
    note = found.outcomes[ROWS[0]].values["note"]
    assert note.startswith("covariances of 4 features take more than 4 images, got 4 in the ref")
    assert note in " ".join(found.table.split())


def test_without_a_second_stage_nothing_is_drawn_from_it(make_config: Make, train: Train) -> None:
    run = train(make_config(stage2={"epochs": 0}))
    values = evaluate(run.path, only=ROWS[:1], extractor=PIXELS).outcomes[ROWS[0]].values
    assert "second-stage" not in values
    assert "prior" in values


def test_what_is_missing_is_named(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(run.path, only=[*ROWS, "active_units"])
    for name in ROWS:
        assert found.outcomes[name].reason == (
            f"{run.data.name} has no classes to train a classifier on; give --inception FILE"
        )
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    found = evaluate(run.path, only=ROWS, extractor=PIXELS)
    assert found.outcomes["kernel_distances"].reason == (
        "torchmetrics is not installed; pip install 'vaekern[eval]'"
    )
    assert found.outcomes["precision_recall"].status == "done"
    # which has added to the first evaluation, whose other rows do not depend on features
    path = found.path / "evaluation.json"
    assert {"active_units", *ROWS} == set(json.loads(path.read_text())["diagnostics"])
    with pytest.raises(RunError, match=r"\(extractor: features of pixels -> None\), of which 1 "):
        evaluate(run.path, only=["active_units", "kernel_distances", "frechet_distances"])


def test_a_file_that_is_no_inception_is_refused_before_anything(
    run: TrainingRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(10, 2)}, path)
    assert main(["evaluate", str(run.path), "--inception", str(path)]) == 2
    error = capsys.readouterr().err
    assert "does not hold the Inception network of the FID" in error
    assert error.count("\n") == 1
    assert not (run.path / "evaluation").exists()
    with pytest.raises(ValueError, match="give inception or an extractor, not both"):
        evaluate(run.path, inception=path, extractor=PIXELS)
