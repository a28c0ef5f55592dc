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
from vaekern.evaluation import fit_feature_classifier
from vaekern.experiments import EXPERIMENTS, Column, Experiment, Row, reproduce, running
from vaekern.experiments.flags import parse_settings
from vaekern.experiments.plan import check, make_plan
from vaekern.experiments.procedures import PROCEDURES
from vaekern.storage.errors import DivergedError, RunError
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
    # of every row, so that none is named
    assert "\ndisentanglement_score was not computed: " in page
    assert "Shortened: stage 1 of the longest row to 1 epoch, all other lengths" in page
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
        ({"seeds": 0}, "seeds must be a number from 1 to 10000, got 0"),
        ({"seeds": 10**10}, "seeds must be a number from 1 to 10000, got 10000000000"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"settings": {"latentdim": 3}}, "there is no setting 'latentdim'"),
        ({"settings": {"seed": 3}}, "settings must not hold 'seed'; use seeds"),
        ({"settings": {"preset": "ae"}}, "settings must not hold 'preset'; use rows"),
        (
            {"settings": {"latent_dim": "x"}},
            "row 'fixed' cannot be trained on npy:.*; change --data",
        ),
        ({"seeds": [0, 0]}, r"seeds must differ from one another, got \[0, 0\]"),
        ({"seeds": []}, r"seeds must hold at least one whole number from 0 on, got \[\]"),
        ({"rows": []}, "rows must name at least one row, got none"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, got 'gpu'"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": "mle"}, r"rows must be names in a list, got the text 'mle'; pass \['mle'\]"),
        ({"epochs": 1.5}, "epochs must be a whole number or None, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"data": 3}, "data must be a spec such as 'digits', got int"),
        ({"settings": 3}, "settings must be a mapping, got int"),
        ({"seeds": "3"}, "seeds must be a whole number or a list of them, got '3'"),
    ],
)
def test_arguments_of_another_type(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        reproduce(**{"name": "tiny", "out": tmp_path / "out", "show": _quiet} | arguments)
    assert not (tmp_path / "out").exists()


def test_settings_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_settings(["stage1.lr=1e-4", "early-stopping=none", "tf32=true"]) == {
        "stage1": {"lr": 1e-4},
        "early_stopping": None,
        "tf32": True,
    }
    assert parse_settings(["logvar_clamp=[-30, 20]"]) == {"logvar_clamp": (-30.0, 20.0)}
    for words, text in (
        ("stage1.lr=[1", "--set stage1.lr must be a number, got '[1'"),
        ("latent_dim=x", "--set latent_dim must be a whole number, got 'x'"),
        ("latentdim=3", "--set has no setting 'latentdim'; did you mean latent_dim?"),
        ("stage1=3", "--set has no setting 'stage1'"),
        ("estimate=x", "--set estimate must be one of mle, learned, fixed, got 'x'"),
    ):
        assert cli.main(["reproduce", "tiny", "--set", words]) == 2
        assert text in capsys.readouterr().err


def test_lengths_are_shortened_in_proportion_and_given_ones_are_not(tmp_path: Path) -> None:
    rows = (
        Row("long", "long", {"stage1": {"epochs": 40}, "covariance": "diag-d", "eps_start": 0.3}),
        Row("short", "short", {"stage1": {"epochs": 10}}),
    )
    running.EXPERIMENTS["tiny"] = replace(running.EXPERIMENTS["tiny"], rows=rows)
    plan = make_plan(
        "tiny",
        running.EXPERIMENTS,
        **dict.fromkeys(("data", "out", "rows")),
        seeds=1,
        epochs=8,
        settings={"stage2": {"epochs": 3}},
        device="cpu",
    )
    found = {row.name: plan.config(row, 0) for row in rows}
    assert [found[name].stage1.epochs for name in ("long", "short")] == [8, 2]
    assert found["short"].stage1.halve_every == 10
    assert [each.stage2.epochs for each in found.values()] == [3, 3]


def test_a_smaller_call_keeps_what_a_larger_one_found(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = reproduce("tiny", seeds=2, epochs=1, out=out, show=_quiet)
    part = reproduce("tiny", seeds=[5], rows=["fixed"], epochs=1, out=out, show=_quiet)
    assert [row.name for row in part.results.rows] == ["fixed", "mle", "mle-two"]
    assert list(part.results.seeds) == [0, 1, 5]
    for key, values in whole.results.values.items():
        assert part.results.values[key] == values
    assert "Seeds: 0, 1, 5;" in part.page
    assert "Fewer runs than seeds: Iso-I 2 of 3; Iso-I, second stage 2 of 3." in part.page
    assert f"--seeds 0,1,5 --epochs 1 --out {out}" in part.page
    # A baseline that is trained for another row is no row of the table.
    alone = reproduce("tiny", seeds=1, rows=["mle"], epochs=1, out=tmp_path / "b", show=_quiet)
    assert [row.name for row in alone.results.rows] == ["mle"]
    assert "excess" in alone.results.values["mle", 0]


def test_damaged_files_of_the_experiment(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = reproduce("tiny", seeds=1, rows=["fixed"], epochs=1, out=out, show=_quiet)
    weights = (out / "runs/fixed/seed-0/best-stage1.safetensors").read_bytes()
    for text in (
        '{"complete": true',
        '{"complete": true, "measures": null, "skipped": {}}',
        '{"complete": true, "measures": {"report": {"squared_error": "abc"}}, "skipped": {}}',
        "[]",
    ):
        (out / "runs/fixed/seed-0/experiment.json").write_text(text)
        again = reproduce("tiny", seeds=1, rows=["fixed"], epochs=1, out=out, show=_quiet)
        assert again.results.values == found.results.values
    assert (out / "runs/fixed/seed-0/best-stage1.safetensors").read_bytes() == weights
    (out / "experiment.json").write_text("{")
    with pytest.raises(RunError, match=r"is damaged; remove it, and the same command writes it ag"):
        reproduce("tiny", seeds=1, rows=["fixed"], epochs=1, out=out, show=_quiet)
    (out / "experiment.json").unlink()
    again = reproduce("tiny", seeds=1, rows=["fixed"], epochs=1, out=out, show=_quiet)
    assert again.results.values == found.results.values


def test_data_that_have_changed_are_not_mixed(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npy"
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.save(path, images)
    call = {"data": f"npy:{path}", "rows": ["fixed"], "epochs": 1, "out": tmp_path / "out"}
    reproduce("tiny", seeds=1, show=_quiet, **call)
    np.save(path, images[:40])
    before = (tmp_path / "out/table.md").read_text()
    with pytest.raises(RunError, match="is not the data that"):
        reproduce("tiny", seeds=2, show=_quiet, **call)
    assert (tmp_path / "out/table.md").read_text() == before
    # a run that was not asked for is in no mean with runs on other data
    said: list[str] = []
    found = reproduce("tiny", seeds=[1], show=said.append, **call)
    assert [seed for _, seed in found.results.values] == [1]
    assert sum("fixed, seed 0: left out of the table: " in text for text in said) == 1


def test_a_loss_that_diverges_is_told_what_helps_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(config: Any, show: Any) -> Any:
        raise DivergedError("the loss of stage 1 became NaN", "continue with --resume")

    monkeypatch.setitem(PROCEDURES, "train", diverge)
    found = reproduce("tiny", seeds=1, rows=["fixed"], out=tmp_path / "out", show=_quiet)
    (reason,) = found.results.failed.values()
    assert reason == (
        "the loss of stage 1 became NaN; lower --set stage1.lr, or --set clip_norm=1, with another "
        "--out DIR"
    )


def test_images_are_compared_in_the_same_features_in_all_runs(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = (
        Column("fd", "{frechet}, samples", "frechet_distances", "prior"),
        Column("error", "squared error", "report", "squared_error"),
    )
    running.EXPERIMENTS["tiny"] = replace(experiment, columns=columns)
    said: list[str] = []
    call = {"rows": ["fixed"], "epochs": 1, "show": said.append}
    found = reproduce("tiny", seeds=1, out=tmp_path / "a", **call)  # without classes
    assert [column.name for column in found.results.present()] == ["error"]
    assert "without FD, samples; for these give --inception FILE" in said[0]
    running.EXPERIMENTS["tiny"] = replace(experiment, columns=columns[:1])
    with pytest.raises(ValueError, match=r"tiny has no other columns \(FD, samples\); give --in"):
        reproduce("tiny", seeds=1, out=tmp_path / "b", **call)
    assert not (tmp_path / "b").exists()

    trained: list[int] = []

    def fit(data: Any, *, seed: int) -> Any:
        trained.append(seed)
        return fit_feature_classifier(data, seed=seed)

    monkeypatch.setattr(running, "fit_feature_classifier", fit)
    call["settings"] = {"stage2": {"epochs": 0}}
    found = reproduce("tiny", data="digits", seeds=2, out=tmp_path / "c", **call)
    assert trained == [0]
    assert "trained on the data, the same for all runs." in found.page
    again = reproduce("tiny", data="digits", seeds=2, out=tmp_path / "c", **call)
    assert trained == [0]  # it is kept
    assert again.results.values == found.results.values


def test_experiments_that_need_factors_or_have_their_own_data(tmp_path: Path) -> None:
    for name, data, message in (
        ("rolinek-restarts", "digits", "must have known factors of variation, got digits; choose"),
        ("rolinek-scale-ratios", "synth-nonlin", "data must be left out for rolinek-scale-ratios"),
        ("manifolds", "digits", "row 'r-2' cannot be trained on digits:2"),
    ):
        with pytest.raises(ValueError, match=message):
            check(
                make_plan(
                    name,
                    EXPERIMENTS,
                    data=data,
                    out=tmp_path / "out",
                    seeds=1,
                    rows=None,
                    epochs=None,
                    settings={},
                    device="cpu",
                )
            )


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
    before = (out / "table.md").read_text()
    with pytest.raises(RunError, match=r"with other settings .* \(latent_dim: 2 -> 3\)"):
        reproduce("tiny", seeds=1, rows=["fixed"], epochs=1, out=out, show=_quiet)
    assert (out / "table.md").read_text() == before


def test_a_run_is_no_other_experiment_when_it_is_half_done(
    tmp_path: Path, experiment: Experiment
) -> None:
    """Nor when it was trained further by hand: its settings are then others."""
    out, call = tmp_path / "out", {"seeds": 1, "rows": ["fixed"], "epochs": 1, "show": _quiet}
    reproduce("tiny", out=out, **call)
    run = out / "runs/fixed/seed-0"
    (run / "experiment.json").unlink()
    (out / "experiment.json").unlink()  # as a message about a damaged one says
    (out / ".tmp-0123abcd-experiment.json").write_text("{")  # as a killed process leaves it
    (out / "reproduce.lock").touch()
    config = (run / "config.yaml").read_text()
    with pytest.raises(RunError, match=r"\(stage1.lr: 0.001 -> 0.05\)"):
        reproduce("tiny", out=out, settings={"stage1": {"lr": 0.05}}, **call)
    assert (run / "config.yaml").read_text() == config
    assert not list(out.glob(".tmp-*"))
    (out / "experiment.json").unlink()
    # the machine's own settings are no others
    reproduce("tiny", out=out, device="cpu", settings={"threads": 1}, **call)


def test_seeds_that_were_not_asked_for_are_checked_too(tmp_path: Path) -> None:
    call = {"rows": ["fixed"], "epochs": 1, "out": tmp_path / "out"}
    reproduce("tiny", seeds=2, show=_quiet, **call)
    (tmp_path / "out/experiment.json").unlink()
    said: list[str] = []
    other = {"stage1": {"lr": 0.1}}
    found = reproduce("tiny", seeds=[5], settings=other, show=said.append, **call)
    assert [seed for _, seed in found.results.values] == [5]
    assert "With other settings than the experiment's own: stage1.lr=0.1." in found.page
    assert sum("left out of the table" in text for text in said) == 2


def test_a_lost_table_loses_no_row(tmp_path: Path) -> None:
    call = {"seeds": 1, "epochs": 1, "out": tmp_path / "out", "show": _quiet}
    reproduce("tiny", **call)
    (tmp_path / "out/results.json").write_text("")
    found = reproduce("tiny", rows=["fixed"], **call)
    assert [row.name for row in found.results.rows] == ["fixed", "mle", "mle-two"]


def test_cells_of_fewer_runs_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = running.MEASURES["report"]

    def sometimes(run: Any) -> Any:
        return dict(measure(run)) | ({"mse": math.nan} if run.config.run.seed == 1 else {})

    monkeypatch.setitem(running.MEASURES, "report", sometimes)
    columns = (
        Column("error", "MSE", "report", "mse"),
        Column("mmd", "MMD", "report", "mmd_stage1"),
    )
    tiny = replace(running.EXPERIMENTS["tiny"], columns=columns)
    monkeypatch.setitem(running.EXPERIMENTS, "tiny", tiny)
    found = reproduce("tiny", seeds=3, rows=["fixed"], epochs=1, out=tmp_path / "o", show=_quiet)
    sentence = "Fewer numbers than runs, the others not finite or not there: sigma = 1, MSE 2 of 3."
    assert sentence in found.page


def test_measures_have_the_threads_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it makes no difference whether a run is measured by the process that trained it."""
    threads: list[int] = []

    def count(run: Any) -> dict[str, float]:
        threads.append(torch.get_num_threads())
        return {"knn": 1.0}

    torch.set_num_threads(2)
    monkeypatch.setitem(running.MEASURES, "disentanglement_score", count)
    call = {"seeds": 1, "rows": ["fixed"], "epochs": 1, "out": tmp_path / "out", "show": _quiet}
    reproduce("tiny", **call)
    record = tmp_path / "out/runs/fixed/seed-0/experiment.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"measures": {}}))
    reproduce("tiny", **call)
    assert threads == [1, 1]  # of a small model
    assert torch.get_num_threads() == 2


def test_features_do_not_depend_on_the_seeds_that_came_first(tmp_path: Path, images: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=values, y=np.arange(60) % 3)
    column = Column("fd", "FD", "frechet_distances", "prior")
    running.EXPERIMENTS["tiny"] = replace(running.EXPERIMENTS["tiny"], columns=(column,))
    call = {"data": f"npy:{tmp_path / 'x.npz'}", "rows": ["fixed"], "epochs": 1, "show": _quiet}
    reproduce("tiny", seeds=[5], out=tmp_path / "a", **call)
    grown = reproduce("tiny", seeds=2, out=tmp_path / "a", **call)
    once = reproduce("tiny", seeds=[0, 1, 5], out=tmp_path / "b", **call)
    assert grown.results.values == once.results.values


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--list"]) == 0
    assert "digits: Every preset\n" in capsys.readouterr().out
    assert cli.main(["reproduce", "tiny", "--set", "beta"]) == 2
    assert "--set must be NAME=VALUE, got 'beta'" in capsys.readouterr().err


def _quiet(text: str) -> None:
    pass
