"""A tiny experiment from its command line to its table: trained, stopped, continued, failed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaekern import cli
from vaekern.experiments import Column, Experiment, Row, reproduce, running
from vaekern.experiments.procedures import PROCEDURES
from vaekern.storage.errors import RunError
from vaekern.training import TrainConfig

COLUMNS = (
    Column("error", "squared error", "report", "squared_error"),
    Column("excess", "over the first", "report", "mse", relative=True),
    Column("mmd", "MMD²", "report", "mmd_stage{stage}"),
    Column("factors", "score", "disentanglement_score", "knn"),
)
ROWS = (
    Row("fixed", "sigma = 1", {"preset": "vae-fixed"}),
    Row("mle", "Iso-I", {"preset": "mle-iso-i"}, baseline="fixed"),
    Row("mle-two", "Iso-I, second stage", keys={"stage": 2}, run="mle"),
)
TINY = {
    "latent_dim": 2,
    "width": 8,
    "second_width": 8,
    "stage1": {"epochs": 4, "batch_size": 20},
    "stage2": {"epochs": 4, "batch_size": 20},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    values = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    path = tmp_path_factory.mktemp("data") / "noise.npy"
    np.save(path, values)
    return f"npy:{path}"


@pytest.fixture(autouse=True)
def experiment(images: str, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Two systems; a third row that shares the runs of the second."""
    tiny = Experiment("Tiny", "ours", ROWS, COLUMNS, TINY, data=images, kind="image")
    monkeypatch.setattr(running, "EXPERIMENTS", {"tiny": tiny})
    return tiny


def runs_of(out: Path) -> dict[str, Any]:
    """Every file of every run, by when it was written."""
    return {str(p): p.stat().st_mtime_ns for p in sorted(out.glob("runs/*/*/*.safetensors"))}


def test_two_rows_and_two_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "tiny", "--seeds", "2", "--epochs", "1", "--out", str(out)]
    assert cli.main(words) == 0
    assert sorted(p.parent.name + "/" + p.name for p in out.glob("runs/*/*")) == [
        "fixed/seed-0",
        "fixed/seed-1",
        "mle/seed-0",
        "mle/seed-1",
    ]
    metrics = {
        (row, seed): json.loads((out / f"runs/{row}/seed-{seed}/metrics.json").read_text())
        for row in ("fixed", "mle")
        for seed in (0, 1)
    }
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    errors = [16 * metrics["mle", seed]["mse"] for seed in (0, 1)]
    cell = rows["mle"]["columns"]["error"]
    assert cell["mean"] == pytest.approx(sum(errors) / 2, rel=1e-12)
    # Half the distance of two numbers, times the root of two.
    assert cell["std"] == pytest.approx(abs(errors[0] - errors[1]) / math.sqrt(2), rel=1e-9)
    assert cell["n"] == 2
    differences = [metrics["mle", s]["mse"] - metrics["fixed", s]["mse"] for s in (0, 1)]
    assert rows["mle"]["columns"]["excess"]["mean"] == pytest.approx(sum(differences) / 2)
    assert rows["fixed"]["columns"]["excess"]["n"] == 0  # it has no baseline
    both = [metrics["mle", seed]["mmd_stage2"] for seed in (0, 1)]
    assert rows["mle-two"]["columns"]["mmd"]["mean"] == pytest.approx(sum(both) / 2)
    config = (out / "runs/mle/seed-1/config.yaml").read_text()
    assert "preset: mle-iso-i" in config
    assert "seed: 1" in config
    assert "halve_every: 12" in config  # a quarter of 50, as the epochs are a quarter of 4

    page = (out / "table.md").read_text()
    assert f"| Iso-I | {cell['mean']:.3f} ± {cell['std']:.3f} |" in page
    assert "disentanglement_score was not computed" in page
    assert "score |" not in page  # the column of a measure that does not apply
    assert "vaekern reproduce tiny --data" in page
    assert "Not complete" not in page
    table = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    found = next(row for row in table if (row["row"], row["column"]) == ("mle", "error"))
    assert float(found["mean"]) == cell["mean"]
    assert (out / "dots.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    # Once more with a third seed: what is there is used, and said to be.
    before, _ = runs_of(out), capsys.readouterr()
    words[3] = "3"
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "[1/6] fixed, seed 0: finished before, skipped" in said
    assert "[6/6] mle, seed 2: trained, 2 epochs" in said
    after = runs_of(out)
    assert {path: after[path] for path in before} == before
    assert "Seeds: 0, 1, 2;" in (out / "table.md").read_text()


def test_an_interrupted_experiment_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second run: its checkpoint is taken up, the first run is left alone."""
    whole = reproduce("tiny", seeds=1, epochs=2, rows=["mle"], out=tmp_path / "whole", show=_quiet)
    from vaekern.training.trainer import Trainer

    out, trained = tmp_path / "out", Trainer._end_epoch

    def stop(trainer: Trainer, *arguments: Any) -> Any:
        result = trained(trainer, *arguments)
        if "mle" in str(trainer.directory.path) and trainer.position.epoch == 1:
            trainer.save()
            raise KeyboardInterrupt
        return result

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            reproduce("tiny", seeds=1, epochs=2, out=out, show=said.append)
    assert "Not complete: the same command goes on" in (out / "table.md").read_text()
    before = runs_of(out / "runs/fixed")
    found = reproduce("tiny", seeds=1, epochs=2, out=out, show=said.append)
    assert runs_of(out / "runs/fixed") == before
    assert "[1/2] fixed, seed 0: finished before, skipped" in said
    assert "[2/2] mle, seed 0: goes on from stage 1, epoch 1" in said
    assert found.results.values["mle", 0] == whole.results.values["mle", 0]  # to the last bit


def test_a_row_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = PROCEDURES["train"]

    def fail(config: Any, show: Any) -> Any:
        if config.run.preset == "vae-fixed" and config.run.seed == 0:
            raise RunError("the loss became NaN")
        return train(config, show)

    monkeypatch.setitem(PROCEDURES, "train", fail)
    words = ["reproduce", "tiny", "--seeds", "2", "--epochs", "1", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert "1 runs failed: fixed, seed 0; table.md says why" in said.err
    assert "- fixed, seed 0: the loss became NaN" in said.out
    assert "Fewer runs than seeds: sigma = 1 1 of 2." in said.out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["columns"]["error"]["n"] for row in results["rows"]] == [1, 2, 2]
    # The one of the failed run's seed has nothing to be relative to.
    assert results["rows"][1]["columns"]["excess"]["n"] == 1


def test_training_alone_is_reported_later(tmp_path: Path, images: str) -> None:
    flat = {**TINY, "data": images, "run": str(tmp_path / "run"), "stage2": {"epochs": 1}}
    config = TrainConfig.from_flat(flat)
    first = PROCEDURES["train only"](config, _quiet)
    assert (first.epochs, (tmp_path / "run/metrics.json").exists()) == (5, False)
    weights = (tmp_path / "run/best-stage1.safetensors").read_bytes()
    assert PROCEDURES["train"](config, _quiet).epochs == 0
    assert (tmp_path / "run/metrics.json").exists()
    assert (tmp_path / "run/best-stage1.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "tony"}, "there is no experiment 'tony'; did you mean 'tiny'?"),
        ({"rows": ["mlee"]}, "tiny has no row 'mlee'; did you mean 'mle'? its rows are fixed, mle"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"settings": {"latentdim": 3}}, "there is no setting 'latentdim'"),
        ({"data": "synth-lin"}, "data of tiny must be images, got synth-lin, which holds vectors"),
        (
            {"settings": {"network": "infogan"}, "data": "ODD"},
            "row 'fixed' cannot be trained on npy:.*odd.npy: network 'infogan' has no option",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if arguments.get("data") == "ODD":
        np.save(tmp_path / "odd.npy", np.zeros((9, 5, 5), dtype=np.uint8))
        arguments["data"] = f"npy:{tmp_path / 'odd.npy'}"
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        reproduce(**{"name": "tiny", "out": out, "show": _quiet} | arguments)
    assert not out.exists()


def test_a_directory_belongs_to_one_experiment(tmp_path: Path, experiment: Experiment) -> None:
    out = tmp_path / "out"
    reproduce("tiny", seeds=1, rows=["fixed"], epochs=1, out=out, show=_quiet)
    with pytest.raises(RunError, match="with other settings \\(epochs: 1 -> 2\\); leave these out"):
        reproduce("tiny", seeds=1, rows=["fixed"], epochs=2, out=out, show=_quiet)
    with pytest.raises(RunError, match=r"settings: \{\} -> \{'beta': 2.0\}"):
        reproduce("tiny", seeds=1, epochs=1, settings={"beta": 2.0}, out=out, show=_quiet)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no experiment; choose another"):
        reproduce("tiny", out=tmp_path / "other", show=_quiet)
    changed = replace(experiment, settings={**TINY, "latent_dim": 3})
    running.EXPERIMENTS["tiny"] = changed
    found = reproduce("tiny", seeds=1, rows=["fixed"], epochs=1, out=out, show=_quiet)
    assert "was trained with other settings" in found.results.failed["fixed, seed 0"]


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--list"]) == 0
    assert "digits: Every preset on handwritten digits" in capsys.readouterr().out
    assert cli.main(["reproduce", "tiny", "--set", "beta"]) == 2
    assert "--set must be NAME=VALUE, got 'beta'" in capsys.readouterr().err


def _quiet(text: str) -> None:
    pass
