"""What stderr shows of a run: one line on a terminal, a few lines in a log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from vaekern.training import TrainConfig, TrainingRun
from vaekern.training import progress as progress_module
from vaekern.training import trainer as trainer_module
from vaekern.training.progress import Progress, Standing

STANDING = Standing(-0.57712, 0.080423, 12)


class Clock:
    """Time that stands still until it is told to go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


def shown(columns: int, standing: Standing, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal of that width shows of a stage that is half done, an hour before its end."""
    pty, termios, fcntl = map(pytest.importorskip, ("pty", "termios", "fcntl"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    monkeypatch.setenv("COLUMNS", str(columns))  # for what asks about stdout
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Progress(1, 10, 100_000_000, done=0) as line:
            line._bar.start_t -= 5432  # so many seconds ago
            line._bar.n = 500_000_000
            line.show(standing)
            line._bar.refresh()
    text = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(master, 10_000):  # what has arrived so far
            text += part
    os.close(master)
    lines = re.split(r"[\r\n]+", text.decode())
    assert all(len(each) <= columns for each in lines)
    return next(each for each in lines if "loss" in each).rstrip()


def test_the_line_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    line = shown(80, STANDING, monkeypatch)
    assert line == ("stage 1 50% loss -0.577 nats/dim sigma 0.0804 12 active 92.0k/s 1:30:32 left")
    # A digit more of everything still fits.
    longest = shown(80, Standing(-10.577, 0.0804, 128), monkeypatch)
    assert longest.endswith("128 active 92.0k/s 1:30:32 left")


def test_a_wide_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    line = shown(120, STANDING, monkeypatch)
    assert line.startswith("stage 1  50%|██")
    assert line.endswith(
        "| loss -0.577 nats/dim, sigma 0.0804, 12 active, 92.0k samples/s, 1:30:32 left"
    )


def test_a_log_gets_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Progress(2, 10, 500, done=1000) as line:
        for _ in range(119):
            clock.now += 1.0
            line.update(25)
            line.show(STANDING._replace(active_units=None))
    first, second = capsys.readouterr().err.splitlines()
    standing = "loss -0.577 nats/dim, sigma 0.0804"
    # 60 s of 25 samples after the 1000 of an earlier process: half of 5000
    assert first == f"stage 2, epoch 5 of 10: {standing}, 25.0 samples/s, 01:40 left"
    assert second.startswith("stage 2, epoch 7 of 10: ")


def test_a_short_stage_leaves_a_log_empty(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, 1, 10, done=0) as progress:
        progress.update(10)
        progress.show(STANDING)
    assert capsys.readouterr().err == ""


def test_an_interrupted_stage_says_nothing_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with suppress(KeyboardInterrupt), Progress(1, 1, 10, done=0) as progress:
        clock.now += 61.0
        progress.show(STANDING)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.count("\n") == 1


def test_the_numbers_are_those_of_the_run(
    make_config: Callable[..., TrainConfig],
    train: Callable[..., TrainingRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last: dict[str, Standing] = {}

    class Watched(Progress):
        def show(self, standing: Standing) -> None:
            last[self._name] = standing

    monkeypatch.setattr(trainer_module, "Progress", Watched)
    run = train(make_config())
    records = [json.loads(line) for line in run.directory.log.read_text().splitlines()]
    ends = [records[2], records[5]]  # three epochs each
    assert [r["stage"] for r in ends] == [1, 2]
    assert last == {
        f"stage {r['stage']}": Standing(r["loss"] / r["dims"], r["sigma"], r["active_units"])
        for r in ends
    }
