"""Directories and files that are not what they should be: one sentence, nothing overwritten."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vaekern.models import TwoStageVAE
from vaekern.storage import files as files_module
from vaekern.storage.files import write_atomically
from vaekern.storage.tensors import load_tensors, save_tensors
from vaekern.training import RunDirectory, RunError, TrainConfig, TrainingRun, load_model

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]


def test_a_run_is_not_overwritten(make_config: Make, train: Train) -> None:
    config = make_config()
    run = train(config)
    before = run.directory.model.read_bytes()
    with pytest.raises(
        RunError, match=r"already holds a run; continue it with --resume, or choose"
    ):
        TrainingRun(config)
    assert run.directory.model.read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_directory_is_refused(make_config: Make, tmp_path: Path, resume: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"is not a vaekern run .* is not empty; choose another"):
        TrainingRun(make_config(), resume=resume)
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for path in ("run", "run/below"):
        with pytest.raises(RunError, match=r"is a file, or below one, but a run needs a directory"):
            TrainingRun(make_config(path))


def test_what_a_crash_left_counts_as_empty(make_config: Make, train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{files_module.PREFIX}ab-run.json").write_text("{")
    assert not RunDirectory(tmp_path / "run").is_run()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "run.json is damaged or not from vaekern"),
        ('{"format": "something", "version": 1}', "run.json is damaged or not from vaekern"),
        ('{"format": "vaekern run", "version": 99}', "newer vaekern .*99.*; update vaekern"),
    ],
)
def test_a_foreign_description_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        RunDirectory(tmp_path).is_run()


def test_damaged_files_are_named(make_config: Make, train: Train) -> None:
    config = make_config()
    run = train(config)
    model = run.directory.model
    model.unlink()
    with pytest.raises(RunError, match=r"there is no file .*model.safetensors; restore it"):
        load_model(run.path)
    save_tensors(model, {"weight": torch.zeros(3)}, "vaekern model", {})
    with pytest.raises(
        RunError, match=r"does not hold this model: .* tensors differ, the first is"
    ):
        load_model(run.path)
    run.directory.config.write_text("covariance: [")
    with pytest.raises(RunError, match=r"cannot read .*config.yaml"):
        load_model(run.path)


def test_tensors_come_back_with_their_header(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4).T,
        "b": torch.tensor(7),
        "c": torch.zeros(2, dtype=torch.uint8),
    }
    save_tensors(tmp_path / "x", tensors, "kind", {"epoch": 3})
    loaded, header = load_tensors(tmp_path / "x", "kind")
    assert header == {"epoch": 3}
    assert all(loaded[name].equal(value) for name, value in tensors.items())


def test_the_new_content_appears_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(source: Path, target: Path) -> None:
        assert Path(source).read_text() == "new"  # complete before it takes the old one's place
        assert Path(target).read_text() == "old"
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match=r"cannot write .*file \(Permission denied\); give a --run"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunError, match=r"no space left on the disk to write .*file .*; what was saved"
    ):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]  # no half-written file is left behind


def test_full_disk_during_training_keeps_the_checkpoint(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(checkpoint_seconds=1e-6)  # after every step
    calls = iter(range(10**9))
    fsync = os.fsync

    def full(number: int) -> None:
        if next(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"no space left"):
            train(config)
    never = train(make_config("never"))
    continued = train(config, resume=True)
    expected = never.model.state_dict()
    assert all(v.equal(expected[k]) for k, v in continued.model.state_dict().items())


def test_a_directory_that_cannot_be_made_is_named(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **options: bool) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    run = TrainingRun(make_config())
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot create .* \(Permission denied\); choose another"):
        run.start()


def test_description_says_what_the_data_was(make_config: Make, train: Train) -> None:
    run = train(make_config())
    data = json.loads(run.directory.description.read_text())["data"]
    assert data["sample_shape"] == [1, 4, 4]
    assert data["value_range"] == [0.0, 1.0]
    assert data["train"] + data["test"] == 90


def test_a_run_is_a_model_that_can_be_shared(
    make_config: Make, train: Train, tmp_path: Path
) -> None:
    run = train(make_config(covariance="diag-i"))
    model = TwoStageVAE.from_pretrained(run.path)
    expected, _ = load_model(run.path)
    assert all(v.equal(expected.state_dict()[k]) for k, v in model.state_dict().items())
    noise = torch.Generator()
    samples = [each.sample(5, generator=noise.manual_seed(1)) for each in (model, expected)]
    assert samples[0].equal(samples[1])
    with pytest.raises(RunError, match=r"is a run of vaekern train, which from_pretrained loads"):
        model.save_pretrained(run.path)
    model.save_pretrained(tmp_path / "shared")
    again = TwoStageVAE.from_pretrained(tmp_path / "shared")
    assert all(v.equal(expected.state_dict()[k]) for k, v in again.state_dict().items())
    (run.path / "config.json").unlink()  # as runs of older versions are
    with pytest.raises(RunError, match=r"holds no config.json; continue the run once with"):
        TwoStageVAE.from_pretrained(run.path)
