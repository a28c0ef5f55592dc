"""Training from disk ends with the bits of training from memory."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vaekern.data import Rows, load
from vaekern.training import RunError, TrainConfig, TrainingRun
from vaekern.training.prefetch import prefetched
from vaekern.training.scores import compute_scores
from vaekern.training.seeds import derived_seed

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]


@pytest.mark.parametrize("network", ["mlp", "infogan"])
def test_a_streamed_run_has_the_same_bits(network: str, make_config: Make, train: Train) -> None:
    options: dict[str, object] = {
        "network": network,
        "validation_fraction": 0.2,
        "early_stopping": 9,
    }
    if network == "infogan":
        options["width"] = None
    memory = train(make_config("memory", stream=False, **options))
    disk = train(make_config("disk", stream=True, **options))
    assert isinstance(disk.trainer.images.x, Rows)
    expected = memory.model.state_dict()
    for name, value in disk.model.state_dict().items():
        assert value.equal(expected[name]), name
    assert disk.directory.log.read_text() == memory.directory.log.read_text()
    # It may be continued the other way.
    further = {"stage2": {"epochs": 4}, **options}
    continued = train(make_config("disk", stream=False, **further), resume=True)
    whole = train(make_config("memory", stream=True, **further), resume=True)
    expected = whole.model.state_dict()
    assert all(v.equal(expected[name]) for name, v in continued.model.state_dict().items())


def test_a_streamed_run_is_reported(make_config: Make) -> None:
    run = TrainingRun(make_config(stream=True))
    run()
    metrics = json.loads(run.directory.metrics.read_text())
    memory = load(f"{run.config.data.data}", stream=False)
    generator = torch.Generator().manual_seed(derived_seed(run.config.run.seed, 2, 3))
    with torch.no_grad():
        model = run.model
        train = model.posterior(memory.train)
        expected = compute_scores(
            model, memory, train, two_stages=True, seed=run.config.run.seed, generator=generator
        )
    assert {name: metrics[name] for name in expected} == expected


def test_damage_that_shows_in_the_middle_ends_the_run_with_a_sentence(
    make_config: Make, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.npy"
    path.write_bytes(images.read_bytes())
    run = TrainingRun(make_config(data=f"npy:{path}", stream=True))
    with path.open("r+b") as file:
        file.truncate(500)
    with pytest.raises(
        RunError, match=r"own\.npy is truncated: .*; --resume goes on where samples were rep"
    ):
        run()


def test_prefetching_keeps_the_order_and_raises_in_its_place() -> None:
    def read(key: int) -> int:
        if key == 7:
            raise OSError("gone")
        return key

    found = prefetched(read, range(20), workers=3)
    assert list(itertools.islice(found, 7)) == list(range(7))
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_a_reader_that_is_left_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    for value in prefetched(lambda key: key, iter(range(10**9)), workers=2):
        if value == 5:
            break
    assert threading.active_count() == before
