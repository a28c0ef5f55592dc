"""A run killed at any moment, and started again with the same command, ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vaekern.cli import main
from vaekern.storage.tensors import load_tensors
from vaekern.training import RunError, TrainConfig, TrainingRun
from vaekern.training.checkpoints import CHECKPOINT, reached, second_stage_is_trained
from vaekern.training.run_directory import MODEL, RunDirectory

sys.path.insert(0, str(Path(__file__).parent))  # for the processes too: they import it by name
from killed import finish, kill_when, start

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")

PICTURES = 5


SCHEDULES = [
    *("--kl-warmup-epochs", "3", "--lr-schedule", "plateau", "--clip-norm", "5"),
    *("--early-stopping", "2", "--ema-decay", "0.9", "--validation-fraction", "0.2"),
]


@pytest.fixture(scope="module", params=["plain", pytest.param("schedules", marks=pytest.mark.slow)])
def words(images: Path, request: pytest.FixtureRequest) -> list[str]:
    """A learned variance, so that the loss has parameters and buffers in both stages."""
    return [
        *("train", "--resume", "--data", f"npy:{images}", "--device", "cpu", "--threads", "1"),
        *("--estimate", "learned", "--latent-dim", "2", "--width", "12", "--second-width", "12"),
        *("--stage1.epochs", "6", "--stage1.batch-size", "20", "--stage1.halve-every", "2"),
        *("--stage2.epochs", "6", "--stage2.batch-size", "20", "--stage2.halve-every", "2"),
        *("--checkpoint-seconds", "0.003"),
        *(SCHEDULES if request.param == "schedules" else []),
    ]


@pytest.fixture(scope="module")
def never(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped."""
    path = tmp_path_factory.mktemp("never") / "run"
    assert finish(start([*words, "--run", str(path)], path)) == 0
    return path


def assert_same(path: Path, never: Path) -> None:
    for name, kind in (
        *(("model", MODEL), ("checkpoint", CHECKPOINT)),
        *(("best-stage1", MODEL), ("best-stage2", MODEL)),
    ):
        tensors, header = load_tensors(path / f"{name}.safetensors", kind)
        expected, of_never = load_tensors(never / f"{name}.safetensors", kind)
        for field in ("run", "checkpoint_seconds"):  # where and how often, not what
            for each in (header, of_never):
                each.get("config", {}).pop(field, None)
        assert header == of_never
        assert tensors.keys() == expected.keys()
        for key, value in tensors.items():
            assert value.numpy().tobytes() == expected[key].numpy().tobytes(), key
    for name in ("metrics.jsonl", "metrics.json", "table.txt"):
        assert (path / name).read_bytes() == (never / name).read_bytes(), name
    names = {each.name for each in path.rglob("*")} - {"previous-checkpoint.safetensors"}
    assert names == {each.name for each in never.rglob("*")} - {"previous-checkpoint.safetensors"}


def lines(path: Path) -> int:
    log = RunDirectory(path).log
    return log.read_bytes().count(b"\n") if log.exists() else 0


def stage(path: Path) -> int:
    directory = RunDirectory(path)
    return reached(directory).stage if directory.model.exists() else 0


def test_killed_in_each_phase(words: list[str], never: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    stage1 = RunDirectory(never).log.read_text().count('"stage": 1,')
    phases: list[Callable[[], bool]] = [
        lambda: lines(path) >= 2,  # in stage 1
        lambda: stage(path) == 2 and lines(path) >= stage1 + 2,  # in stage 2
        lambda: any((path / "figures").glob("*.png")),  # in the report
    ]
    for phase in phases:
        assert kill_when(start([*words, "--run", str(path)], path), phase)
    assert second_stage_is_trained(RunDirectory(path))
    assert len(list((path / "figures").iterdir())) < PICTURES or not (path / "table.txt").exists()
    assert finish(start([*words, "--run", str(path)], path)) == 0
    assert_same(path, never)


def test_one_process_at_a_time(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    words = [*words, "--run", str(path)]
    process = start([*words, "--stage1.epochs", "1000000"], path)
    try:
        while lines(path) < 1:
            assert process.is_alive()
            time.sleep(0.001)
        directory = RunDirectory(path)
        os.kill(process.pid, signal.SIGSTOP)  # so that whatever changes is the second one's doing
        before = {each: each.read_bytes() for each in path.iterdir() if each.is_file()}
        for again in (words, words[:1] + words[2:]):  # with and without --resume
            assert main(again) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert f"{path} is in use by process {process.pid} on {socket.gethostname()}; wait" in first
        assert "already holds a run" in second
        with pytest.raises(RunError, match="is in use by process"):
            directory.start(TrainConfig(), {})
        assert {each: each.read_bytes() for each in path.iterdir() if each.is_file()} == before
    finally:
        process.kill()
    assert finish(process) == -signal.SIGKILL
    assert directory.lock.path.exists()  # of a process that is gone: nobody's
    run = TrainingRun(directory.read_config(), resume=True)
    assert str(os.getpid()) in directory.lock.path.read_text()
    with pytest.raises(RunError, match="is in use by process"):
        RunDirectory(path).lock.acquire()
    run.close()
    assert not directory.lock.path.exists()


def test_a_run_that_another_process_has_just_started_is_not_overwritten(
    make_config: Callable[..., TrainConfig],
) -> None:
    second, first = TrainingRun(make_config()), TrainingRun(make_config())
    first.start()
    first.close()
    with pytest.raises(RunError, match=r"another process has just trained in .*; continue that"):
        second.start()


@pytest.mark.slow
def test_killed_at_random_moments(words: list[str], never: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    kills, seen = 0, set()
    for attempt in range(200):
        path = tmp_path / f"run{attempt}"
        while True:
            # Several kills of one run: each process lives for a few more touches of the disk.
            crash_at = rng.randint(1, 60)
            code = finish(start([*words, "--run", str(path)], path, crash_at))
            if code == 0:
                break
            assert code == -signal.SIGKILL, Path(f"{path}.err").read_text()
            kills += 1
            seen.add((stage(path), lines(path)))
        assert_same(path, never)
        if kills >= 200:
            break
    assert kills >= 200


@pytest.mark.slow
def test_killed_before_every_touch_of_a_file(words: list[str], never: Path, tmp_path: Path) -> None:
    """Every crash point of a whole run: between two files, in the middle of one, in the report."""
    few = [*words, "--checkpoint-seconds", "1000"]
    crash_at = 0
    while True:
        crash_at += 1
        path = tmp_path / f"run{crash_at}"
        code = finish(start([*few, "--run", str(path)], path, crash_at))
        if code == 0:
            break
        assert code == -signal.SIGKILL, Path(f"{path}.err").read_text()
        code = finish(start([*few, "--run", str(path)], path))
        assert code == 0, (crash_at, Path(f"{path}.err").read_text())
        assert_same(path, never)
    assert crash_at > 60
