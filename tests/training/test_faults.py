"""Damaged files, a full disk, NaN, no memory: one sentence, the last good state, the same end."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vaekern.cli import main
from vaekern.storage.files import PREFIX, append, write_atomically
from vaekern.storage.tensors import load_tensors, save_tensors
from vaekern.training import RunDirectory, RunError, TrainConfig, TrainingRun, run, trainer
from vaekern.training.checkpoints import CHECKPOINT, reached
from vaekern.training.report import report
from vaekern.training.run_directory import MODEL
from vaekern.training.sources import Images, Latents

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_same_end(continued: TrainingRun, never: TrainingRun) -> None:
    expected = never.model.state_dict()
    for name, value in continued.model.state_dict().items():
        assert value.equal(expected[name]), name
    written, _ = load_tensors(continued.directory.model, MODEL)
    assert all(value.equal(expected[name]) for name, value in written.items())
    assert continued.directory.log.read_text() == never.directory.log.read_text()
    assert not list(continued.path.rglob(f"{PREFIX}*"))


def plant(
    step: int, monkeypatch: pytest.MonkeyPatch, fault: Callable[[torch.Tensor], None]
) -> None:
    """Call `fault` with the batch of the given step, counted over both stages."""
    count = iter(range(1, 10**9))

    def planted(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def batch(self: object, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            x = original(self, rows, generator)
            if next(count) == step:
                fault(x)
            return x

        return batch

    for source in (Images, Latents):
        monkeypatch.setattr(source, "batch", planted(source.batch))


# -- damaged and foreign checkpoints ------------------------------------------------------------


def prefixes(content: bytes) -> Iterator[tuple[str, bytes]]:
    header = 8 + int.from_bytes(content[:8], "little")
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1):
        yield f"first {length} bytes", content[:length]
    for length in (len(content) // 2, len(content) - 1):
        yield f"first {length} bytes", content[:length]
    yield "longer", content + b"\0"
    yield "zeros", bytes(len(content))
    yield "text", b"precious thesis\n" * 100


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    make_config: Make, train: Train
) -> None:
    never = train(make_config("never"))
    config = make_config(stage2={"epochs": 1})
    directory = train(config).directory
    good = {
        each: each.read_bytes()
        for each in (directory.checkpoint, directory.previous_checkpoint, directory.log)
    }
    before = good[directory.checkpoint]
    for what, content in prefixes(before):
        for path, whole in good.items():
            path.write_bytes(whole)
        directory.checkpoint.write_bytes(content)
        longer = make_config()
        with pytest.warns(UserWarning, match="set aside") as caught:
            TrainingRun(longer, resume=True).close()
        (note,) = (str(each.message) for each in caught)
        assert f"{directory.checkpoint} is damaged" in note, what
        assert note.startswith("going on from the checkpoint before the last, stage 2, epoch 0: ")
        assert note.endswith("; it is set aside as skipped-checkpoint.safetensors")
        assert "\n" not in note
        with pytest.warns(UserWarning, match="set aside"):
            continued = train(longer, resume=True)
        assert_same_end(continued, never)
        assert directory.skipped_checkpoint.read_bytes() == content


def test_a_checkpoint_of_something_else_is_skipped(make_config: Make, train: Train) -> None:
    never, other = train(make_config("never")), train(make_config("other", seed=3))
    wider = train(make_config("wider", width=14))
    config = make_config()
    directory = train(config).directory
    tensors, header = load_tensors(directory.checkpoint, CHECKPOINT)
    del tensors["random.noise"]
    save_tensors(Path(f"{directory.path}.incomplete"), tensors, CHECKPOINT, header)
    for foreign, message in (
        (directory.model, "was not written by vaekern as vaekern checkpoint"),
        (other.directory.checkpoint, "was written by a run with other settings (seed: 3 -> 0)"),
        (wider.directory.checkpoint, "was written by a run with other settings (width: 14 -> 12)"),
        (Path(f"{directory.path}.incomplete"), "does not belong to this version of vaekern"),
    ):
        directory.checkpoint.write_bytes(foreign.read_bytes())
        directory.previous_checkpoint.write_bytes(foreign.read_bytes())
        with pytest.raises(RunError, match=r"no checkpoint of .* is of use: .*; restore one") as e:
            TrainingRun(config, resume=True)
        assert str(e.value).count(message) == 2
        directory.previous_checkpoint.write_bytes(never.directory.previous_checkpoint.read_bytes())
        with pytest.warns(UserWarning, match="set aside"):
            continued = train(config, resume=True)
        assert_same_end(continued, never)


def test_no_checkpoint_at_all(make_config: Make, train: Train) -> None:
    config = make_config()
    directory = train(config).directory
    directory.previous_checkpoint.unlink()
    directory.checkpoint.write_bytes(b"")
    with pytest.raises(RunError, match=r"/checkpoint.safetensors is damaged .*; restore it from"):
        TrainingRun(config, resume=True)
    directory.checkpoint.unlink()
    with pytest.raises(RunError, match="holds weights but no checkpoint to continue from; restore"):
        TrainingRun(config, resume=True)
    assert directory.log.read_text().count("\n") == 6  # nothing was thrown away


def test_weights_behind_their_checkpoint_are_written_again(make_config: Make, train: Train) -> None:
    config = make_config()
    never = train(config)
    weights = never.directory.model.read_bytes()
    for content in (None, b"", weights[:100]):
        never.directory.model.unlink()
        if content is not None:
            never.directory.model.write_bytes(content)
        assert_same_end(train(config, resume=True), never)


def test_what_killed_writers_left_is_removed(make_config: Make, train: Train) -> None:
    config = make_config()
    directory = train(config).directory
    for folder in (directory.path, directory.figures):
        (folder / f"{PREFIX}ab-file").write_text("half")
    train(config, resume=True)
    assert not list(directory.path.rglob(f"{PREFIX}*"))


# -- a full disk ----------------------------------------------------------------------------------


def test_the_disk_full_at_every_write(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = train(make_config("never"))
    fsync, attempts = os.fsync, 0
    while True:
        attempts += 1
        config, calls = make_config(f"full{attempts}"), iter(range(1, 10**9))

        def full(number: int, calls: Iterator[int] = calls, at: int = attempts) -> None:
            if next(calls) >= at:
                raise FULL
            fsync(number)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                train(config)
            break
        except RunError as error:
            assert str(error).startswith("no space left on the disk to write ")  # noqa: PT017
        assert not list(Path(config.run_directory).rglob(f"{PREFIX}*"))
        assert_same_end(train(config, resume=True), never)
    assert attempts > 10


def test_the_disk_full_in_the_report(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(stage1={"epochs": 1}, stage2={"epochs": 0})
    done = train(config)
    directory, fsync = done.directory, os.fsync
    table = report(done.model, done.data, config, directory)
    files = [directory.metrics, directory.table, *directory.figures.iterdir()]
    before = {path: path.read_bytes() for path in files}
    calls = iter(range(10**9))

    def full(number: int) -> None:
        if next(calls) == 2:
            raise FULL
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"no space left .*/figures/.*\.png .*--resume"):
            report(done.model, done.data, config, directory)
    assert {path: path.read_bytes() for path in files} == before
    assert TrainingRun(config, resume=True)() == table


def test_lines_are_added_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    append(path, "one\n")

    def full(number: int) -> None:
        assert path.read_text() == "one\ntwo\n"
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="no space left"):
            append(path, "two\n")
    assert path.read_text() == "one\n"
    if Path("/dev/full").exists():
        with pytest.raises(RunError, match=r"no space left on the disk to write /dev/full"):
            append(Path("/dev/full"), "one\n")


@pytest.mark.parametrize("links", [True, False])
def test_the_previous_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, previous = tmp_path / "file", tmp_path / "before"
    for content in ("1", "2", "3"):
        write_atomically(path, content, previous=previous)
    assert (path.read_text(), previous.read_text()) == ("3", "2")
    previous.unlink()
    os.link(path, previous) if links else None  # as a process leaves them that stops in between
    write_atomically(path, "4", previous=previous)
    assert (path.read_text(), previous.read_text()) == ("4", "3")
    assert len(list(tmp_path.iterdir())) == 2


# -- a loss that is not finite -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "where", "seconds"),
    [
        (6, "stage 1 became infinite or NaN in epoch 2, step 6;", 0.0),
        (6, "stage 1 became infinite or NaN in epoch 2, step 6;", 1000.0),
        (12, "stage 1 became infinite or NaN in epoch 3, step 12;", 1000.0),
        (18, "stage 2 became infinite or NaN in epoch 2, step 6;", 1000.0),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_planted_nan_is_found_at_its_step(
    step: int,
    where: str,
    seconds: float,
    value: float,
    make_config: Make,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(checkpoint_seconds=1e-6 if seconds == 0 else 1000.0)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "BLOCK_SECONDS", seconds)
        plant(step, patch, lambda x: x.view(-1)[:1].fill_(value))
        with pytest.raises(RunError, match=where) as error:
            train(config)
    assert "--resume and a smaller --stage" in str(error.value)
    assert "--clip-norm" in str(error.value)
    assert "\n" not in str(error.value)
    for path, kind in (
        (RunDirectory(config.run_directory).checkpoint, CHECKPOINT),
        (RunDirectory(config.run_directory).model, MODEL),
    ):
        tensors, _ = load_tensors(path, kind)
        assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    if seconds == 0:
        assert reached(RunDirectory(config.run_directory)).step == step - 1
    assert_same_end(train(config, resume=True), train(make_config("never")))


def test_an_optimiser_that_is_not_finite_is_never_saved(make_config: Make, train: Train) -> None:
    """Adam never moves a weight again whose squared gradient overflowed: finite, and lost."""
    done = train(make_config())
    assert done.trainer.state.optimizer is not None
    next(iter(done.trainer.state.optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = math.inf
    with pytest.raises(RunError, match="loss of stage 2 became infinite or NaN after epoch 3"):
        done.trainer.save()


# -- no memory -------------------------------------------------------------------------------------


def allocate(x: torch.Tensor) -> None:
    torch.empty(2**60, dtype=torch.uint8)  # what torch itself says where there is not enough


def cuda(x: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def python(x: torch.Tensor) -> None:
    raise MemoryError


@pytest.mark.parametrize("fault", [allocate, cuda, python])
def test_out_of_memory_keeps_the_last_checkpoint(
    fault: Callable[[torch.Tensor], None],
    make_config: Make,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    never, config = train(make_config("never")), make_config(checkpoint_seconds=1e-6)
    (tmp_path / "config.yaml").write_bytes(never.directory.config.read_bytes())
    words = ["--config", str(tmp_path / "config.yaml"), "--run", config.run_directory]
    with monkeypatch.context() as patch:
        plant(18, patch, fault)
        assert main(["train", *words, "--checkpoint-seconds", "1e-6"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "vaekern: out of memory in stage 2, epoch 2, step 6, with batches of 20 samples; the last "
        "checkpoint is kept: free memory"
    )
    assert error.count("\n") == 1
    assert reached(RunDirectory(config.run_directory)).step == 5
    assert_same_end(train(config, resume=True), never)


def test_out_of_memory_before_and_after_training(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    config = make_config(stage1={"epochs": 1}, stage2={"epochs": 0})
    with monkeypatch.context() as patch:
        patch.setattr(run.data, "load", fail)
        with pytest.raises(RunError, match=r"out of memory while npy:.* was read; free memory"):
            TrainingRun(config)
    with monkeypatch.context() as patch:
        patch.setattr("vaekern.training.report.compute_scores", fail)
        with pytest.raises(RunError, match=r"out of memory in the report; free memory"):
            TrainingRun(config)()
    assert "NLL" in TrainingRun(config, resume=True)()


def test_other_errors_are_not_called_out_of_memory(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(x: torch.Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    plant(2, monkeypatch, fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        TrainingRun(make_config())()
