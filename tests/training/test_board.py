"""TensorBoard gets what metrics.jsonl holds; without the package nothing happens."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaekern.training import TrainConfig, TrainingRun
from vaekern.training import board as board_module
from vaekern.training.board import Board

MODULE = "torch.utils.tensorboard"


class Writer:
    """torch's SummaryWriter, as far as it is used."""

    made: list[Writer]

    def __init__(self, log_dir: str, purge_step: int):
        self.name, self.purge_step = Path(log_dir).name, purge_step
        self.parent = Path(log_dir).parent
        self.scalars: dict[int, dict[str, float]] = {}
        self.images: dict[str, np.ndarray] = {}
        self.closed = False
        Writer.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert not self.closed
        self.scalars.setdefault(step, {})[tag] = value

    def add_image(self, tag: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
        assert (step, dataformats) == (0, "HWC")
        self.images[tag] = pixels

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _imported_afresh() -> Iterator[None]:
    board_module._writer_class.cache_clear()
    yield
    board_module._writer_class.cache_clear()


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module: Any = types.ModuleType(MODULE)
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, MODULE, module)
    Writer.made = []
    return Writer.made


def test_scalars_are_the_lines_of_metrics_jsonl(
    make_config: Callable[..., TrainConfig],
    train: Callable[..., TrainingRun],
    writers: list[Writer],
) -> None:
    run = train(make_config())
    assert [writer.name for writer in writers] == ["stage1", "stage2"]
    assert all(writer.closed for writer in writers)
    assert {writer.parent for writer in writers} == {run.path / "tensorboard"}
    for line in run.directory.log.read_text().splitlines():
        record = json.loads(line)
        stage, step = record.pop("stage"), record.pop("step")
        numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
        assert "loss" in numbers
        assert writers[stage - 1].scalars[step] == numbers
    assert all(len(writer.scalars) == 3 for writer in writers)


def test_what_is_trained_again_is_hidden(
    make_config: Callable[..., TrainConfig],
    train: Callable[..., TrainingRun],
    writers: list[Writer],
) -> None:
    train(make_config())
    train(make_config(stage2={"epochs": 5}), resume=True)
    again = writers[-1]
    assert (again.name, again.purge_step) == ("stage2", 16)  # four steps an epoch, three epochs
    assert sorted(again.scalars) == [16, 20]


def test_pictures_are_shown_as_they_are(tmp_path: Path, writers: list[Writer]) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "samples_stage1.png")
    board = Board(tmp_path)
    board.add_pictures(tmp_path)
    board.close()
    assert np.array_equal(writers[0].images["samples_stage1"], pixels)
    assert writers[0].closed


def test_without_the_package_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)  # its import fails
    board = Board(tmp_path / "run")
    board.add([{"stage": 1, "step": 3, "loss": 1.0}])
    board.add_pictures(tmp_path)
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_packages_that_do_not_fit_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise TypeError("Descriptors cannot be\ncreated directly")

    monkeypatch.setitem(sys.modules, MODULE, Broken(MODULE))
    board = Board(tmp_path)
    sentence = r"cannot be used \(Descriptors cannot be created directly\); the run goes on"
    with pytest.warns(UserWarning, match=sentence):
        board.add([{"stage": 1, "step": 3, "loss": 1.0}])
    board.add([{"stage": 1, "step": 4, "loss": 1.0}])
