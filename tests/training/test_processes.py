"""Several processes train what one process trains, and end together."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from vaekern.cli import main
from vaekern.storage.tensors import load_tensors
from vaekern.training import TrainingRun
from vaekern.training.checkpoints import CHECKPOINT, reached
from vaekern.training.processes import Processes
from vaekern.training.run_directory import MODEL, RunDirectory

sys.path.insert(0, str(Path(__file__).parent))  # for the processes too: they import it by name
from ranks import finish, lines, messages, start

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and hasattr(signal, "SIGKILL")),
    reason="no torch.distributed, or no SIGKILL here",
)

# 81 images: three steps an epoch, of 21 samples: 11 and 10 of them.
SMALL = [
    *("--device", "cpu", "--threads", "1", "--latent-dim", "2", "--checkpoint-seconds", "1000"),
    *("--width", "12", "--second-width", "12", "--stage1.epochs", "3", "--stage2.epochs", "3"),
    *("--stage1.batch-size", "21", "--stage2.batch-size", "21"),
]
MINUTE = 60  # all that is left has to end inside one

SCHEDULES = [
    *("--early-stopping", "2", "--validation-fraction", "0.3", "--ema-decay", "0.9"),
    *("--clip-norm", "5", "--free-bits", "0.3", "--lr-schedule", "plateau"),
]
KINDS = {
    "mle": [],
    "learned, per sample": ["--covariance", "iso-d", "--estimate", "learned"],
    "batch norm": ["--network", "infogan", "--width", "null"],
    "schedules": SCHEDULES,
    "capacity, several draws": ["--capacity", "3", "--posterior-samples", "2"],
    # systems whose loss is put together from parts
    **{
        name: ["--preset", name]
        for name in ("beta-vae-full", "vae-planar-flow", "vae-bernoulli", "vae-isotropic", "rae-gp")
    },
}


@pytest.fixture(scope="module")
def words(images: Path) -> list[str]:
    return ["train", "--resume", "--data", f"npy:{images}", *SMALL]


@pytest.fixture(scope="module")
def never(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that nothing befalls."""
    path = tmp_path_factory.mktemp("never") / "run"
    assert finish(start([*words, "--run", str(path)], path, report=True)) == [0, 0]
    return path


def alone(words: list[str], path: Path) -> Path:
    from vaekern.training.flags import parse

    config, resume = parse([*words[1:], "--run", str(path)])
    run = TrainingRun(config, resume=resume)
    try:
        run.start()
        run.trainer.train()
    finally:
        run.close()
    return path


def same_weights(path: Path, other: Path) -> None:
    """Equal but for the rounding of sums that were added in another order.

    A gradient is then another by a few float32 roundings of its largest term, and Adam's step, at
    most lr = 1e-3 whatever the gradient's size, by the same factor and what the steps before have
    made of it. 18 steps of 100 roundings of the largest weight are allowed.
    """
    tolerance = 18 * 100 * 2**-24
    for name, kind in (("model", MODEL), ("best-stage1", MODEL), ("best-stage2", MODEL)):
        found, _ = load_tensors(path / f"{name}.safetensors", kind)
        wanted, _ = load_tensors(other / f"{name}.safetensors", kind)
        found, wanted = without_free_biases(found), without_free_biases(wanted)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            scale = max(float(value.double().abs().max()), 1e-2)
            torch.testing.assert_close(
                found[key], value, rtol=0, atol=scale * tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )
    for line, of_other in zip(lines(path), lines(other), strict=True):
        found, wanted = json.loads(line), json.loads(of_other)
        for name in [name for name, value in wanted.items() if not isinstance(value, float | int)]:
            assert found.pop(name) == wanted.pop(name)  # a unit, or None for what there is not
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def without_free_biases(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Batch norm takes away the bias in front of it. Its gradient is rounding, which Adam makes a
    whole step of; the running mean follows, and their difference is what counts."""
    state = dict(state)
    for name in [name for name in state if name.endswith(".running_mean")]:
        layer, number = name.removesuffix(".running_mean").rsplit(".", 1)
        bias = state.pop(f"{layer}.{int(number) - 1}.bias")
        state[name] = state[name] - bias
    return state


def same_bytes(path: Path, never: Path) -> None:
    for name, kind in (("model", MODEL), ("checkpoint", CHECKPOINT), ("best-stage1", MODEL)):
        tensors, _ = load_tensors(path / f"{name}.safetensors", kind)
        expected, _ = load_tensors(never / f"{name}.safetensors", kind)
        assert tensors.keys() == expected.keys()
        for key, value in tensors.items():
            assert value.numpy().tobytes() == expected[key].numpy().tobytes(), key
    assert list(lines(path)) == list(lines(never))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k not in ("mle", "batch norm"))) for k in KINDS],
)
def test_two_processes_train_what_one_trains(kind: str, words: list[str], tmp_path: Path) -> None:
    words = [*words, *KINDS[kind]]
    path = tmp_path / "two"
    codes = finish(start([*words, "--run", str(path)], path))
    assert codes == [0, 0], messages(path, 0) + messages(path, 1)
    same_weights(path, alone(words, tmp_path / "one"))


def test_the_first_process_alone_writes_and_speaks(never: Path) -> None:
    # ranks.py ends a process of another rank that touches a file of the run
    said = messages(never, 0)
    assert "on cpu, 2 processes, in" in said
    assert said.count("NLL bound, test") == 1
    assert messages(never, 1) == ""
    assert (never / "table.txt").exists()
    assert len(list(lines(never))) == 6
    assert not (never / "train.lock").exists()


@pytest.mark.parametrize("step", [4, pytest.param(14, marks=pytest.mark.slow)])
def test_a_signal_to_one_ends_all_with_a_checkpoint(
    step: int, words: list[str], never: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    words = [*words, "--run", str(path)]
    code = 128 + signal.SIGTERM
    assert finish(start(words, path, rank1=f"terminate {step}")) == [code, code]
    assert messages(path, 1) == ""
    assert messages(path, 0).count("interrupted; ") == 1
    position = reached(RunDirectory(path))
    assert step <= (position.stage - 1) * 9 + position.step < 18  # soon afterwards
    assert finish(start(words, path)) == [0, 0]
    same_bytes(path, never)


def test_a_lost_process_ends_the_others_and_the_run_continues(
    words: list[str], never: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    words = [*words, "--run", str(path)]
    often = [*words, "--checkpoint-seconds", "0.003"]
    assert finish(start(often, path, rank1="kill 14"), MINUTE) == [1, -signal.SIGKILL]
    said = messages(path, 0).splitlines()
    assert len(said) == 2, said
    assert said[1].startswith("vaekern: process 1 of 2 is gone: it was killed, or")
    assert said[1].endswith("continue with --resume, with as many processes as you like")
    assert reached(RunDirectory(path)).stage == 2
    same_weights(alone(words, path), never)  # with one process


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_any_of_three_processes_may_be_lost(
    fault: str, rank: int, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    processes = start([*words, "--run", str(path)], path, 3, **{f"rank{rank}": f"{fault} 6"})
    others = [process for i, process in enumerate(processes) if i != rank]
    codes = finish(others, MINUTE)
    finish([processes[rank]], 0)  # a frozen one would keep this process from its end
    assert codes == [1, 1]
    said = "".join(messages(path, i) for i in range(3) if i != rank)
    assert said.count("vaekern: ") == 1, said
    assert f"process {rank} of 3 is gone" in said


def test_what_goes_wrong_in_one_is_said_once(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = [*words, "--run", str(path)]
    assert finish(start(words, path, rank1="memory 6")) == [1, 1]
    assert "vaekern: " not in messages(path, 0)
    assert messages(path, 1).startswith(
        "vaekern: process 1 of 2: out of memory in stage 1, epoch 2, step"
    )
    assert len(messages(path, 1).splitlines()) == 1
    # The same directory goes on; the next fault is one that all come upon together.
    assert finish(start(words, path, rank1="nan 6")) == [1, 1]
    assert messages(path, 1) == ""
    (said,) = [line for line in messages(path, 0).splitlines() if line.startswith("vaekern: ")]
    assert "the loss of stage 1 became infinite or NaN in epoch 2, step 6; the last good" in said
    assert finish(start(words, path, rank0="disk 6")) == [1, 1]
    assert messages(path, 1) == ""
    (said,) = [line for line in messages(path, 0).splitlines() if line.startswith("vaekern: ")]
    assert "no space left on the disk" in said
    # A run that the first process may not enter.
    assert finish(start(["train", *words[2:]], path)) == [2, 2]
    assert messages(path, 1) == ""
    assert "already holds a run" in messages(path, 0)


def test_more_processes_than_samples_of_a_batch(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = [*words, "--run", str(path), "--stage2.batch-size", "1"]
    assert finish(start(words, path)) == [2, 2]
    assert messages(path, 1) == ""
    assert messages(path, 0).startswith(
        "vaekern: stage2.batch_size is the whole batch, which the processes share: it must be at "
        "least their number 2, got 1; raise it"
    )
    assert not path.exists()


def test_an_environment_that_is_incomplete(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    assert main([*words, "--run", str(tmp_path / "run")]) == 2
    assert "WORLD_SIZE is 2, but MASTER_ADDR is not set; start the" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_a_batch(count: int, size: int) -> None:
    shares = [list(range(count))[Processes(rank, size).share(count)] for rank in range(size)]
    assert list(itertools.chain(*shares)) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
