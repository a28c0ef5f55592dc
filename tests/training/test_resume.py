"""A run that was stopped and continued equals one that never was."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vaekern.training import RunError, TrainConfig, TrainingRun, load_model
from vaekern.training.checkpoints import reached
from vaekern.training.metrics import Totals
from vaekern.training.run_directory import RunDirectory
from vaekern.training.sources import Images

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]) -> None:
    """Call `how` in the middle of the given step, counted over both stages."""
    original, count = Totals.add, iter(range(1, 10**9))

    def add(self: Totals, components: object) -> None:
        original(self, components)
        if next(count) == step:
            how()

    monkeypatch.setattr(Totals, "add", add)


def send_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# Four steps an epoch, three epochs a stage: 6 is inside stage 1's second epoch, 12 its last step,
# 13 the first of stage 2, 18 inside stage 2's second epoch.
@pytest.mark.parametrize(
    ("network", "step"),
    [("mlp", 6), ("mlp", 12), ("mlp", 13), ("mlp", 18), ("infogan", 6), ("infogan", 18)],
)
def test_continued_run_has_the_same_bits(
    network: str, step: int, make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {} if network == "mlp" else {"network": "infogan", "width": None}
    never = train(make_config("never", **options))

    with monkeypatch.context() as patch:
        interrupt_at(step, patch, send_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("stopped", **options))
    stopped = RunDirectory(make_config("stopped").run_directory)
    position = reached(stopped)
    assert (position.stage - 1) * 12 + position.step == step  # exactly there, not an epoch before

    torch.manual_seed(999)  # whatever else happened in between
    continued = train(make_config("stopped", **options), resume=True)
    expected = never.model.state_dict()
    for name, value in continued.model.state_dict().items():
        assert value.equal(expected[name]), name
    assert continued.directory.log.read_text() == never.directory.log.read_text()
    tracked = never.trainer.state.polarization.tracker
    assert continued.trainer.state.polarization.tracker.state_dict() == tracked.state_dict()
    assert tracked.step == 12


# Steps too long to converge: the best epoch, and what plateau does to the rate, lie in the past.
LONGER: dict[str, object] = {
    "stage1": {"lr": 0.3, "epochs": 8},
    "stage2": {"lr": 0.3, "epochs": 8},
}
SCHEDULES: dict[str, dict[str, object]] = {
    "cosine": {"lr_schedule": "cosine"},
    "plateau": {"lr_schedule": "plateau", "lr_patience": 0, **LONGER},
    "clip": {"clip_norm": 0.3},
    "warm-up": {"kl_warmup_steps": 9},
    "free bits": {"free_bits": 0.2},
    "capacity": {"capacity": 3.0},
    "average": {"ema_decay": 0.9, "network": "infogan", "width": None},
    "early stopping": {"early_stopping": 7, "validation_fraction": 0.2, **LONGER},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16", "covariance": "diag-i", "estimate": "learned"},
    "all": {
        "lr_schedule": "plateau",
        "lr_patience": 0,
        "clip_norm": 0.3,
        "free_bits": 0.1,
        "kl_warmup_epochs": 2,
        "early_stopping": 1,
        "validation_fraction": 0.2,
        "ema_decay": 0.9,
        **LONGER,
    },
}


AUTOENCODER = {"likelihood": "squared-error", "posterior": "deterministic"}
SYSTEMS: dict[str, dict[str, object]] = {
    "isotropic": {"posterior": "isotropic"},
    "full": {"posterior": "full", "free_bits": 0.2},
    "flow": {"posterior": "planar", "flow_steps": 2, "kl_warmup_steps": 9},
    "logistic mixture": {"likelihood": "logistic-mixture", "mixture_components": 2},
    "mmd": {"latent_term": "mmd", "spectral_norm": True, **AUTOENCODER},
    "penalty": {"latent_term": "squared-norm", "decoder_penalty": "jacobian", **AUTOENCODER},
}
SCHEDULES |= SYSTEMS
OF_STAGE_1 = ("warm-up", "free bits", "capacity", *SYSTEMS)


@pytest.mark.parametrize(
    ("name", "stage"),
    [(name, 1) for name in SCHEDULES] + [(name, 2) for name in SCHEDULES if name not in OF_STAGE_1],
)
def test_a_continued_run_with_schedules_has_the_same_bits(
    name: str, stage: int, make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SCHEDULES[name]
    never = train(make_config("never", **copy.deepcopy(options)))
    records = [json.loads(line) for line in never.directory.log.read_text().splitlines()]
    last = {record["stage"]: record["step"] for record in records}
    # The last step but two of a stage: earlier epochs have left their traces in what is stored.
    step = last[1] - 2 if stage == 1 else last[1] + last[2] - 2
    with monkeypatch.context() as patch:
        interrupt_at(step, patch, send_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("stopped", **copy.deepcopy(options)))
    continued = train(make_config("stopped", **copy.deepcopy(options)), resume=True)
    expected = never.model.state_dict()
    for key, value in continued.model.state_dict().items():
        assert value.equal(expected[key]), key
    assert continued.directory.log.read_text() == never.directory.log.read_text()
    stored, _ = load_model(never.path)
    assert all(v.equal(expected[key]) for key, v in stored.state_dict().items())
    finished = train(make_config("never", **copy.deepcopy(options)), resume=True)
    assert all(v.equal(expected[key]) for key, v in finished.model.state_dict().items())


def test_an_interrupt_without_a_signal_goes_back_to_the_last_checkpoint(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    never = train(make_config("never"))
    with monkeypatch.context() as patch:
        interrupt_at(15, patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("stopped"))
    assert reached(RunDirectory(make_config("stopped").run_directory)).stage == 2
    continued = train(make_config("stopped"), resume=True)
    expected = never.model.state_dict()
    assert all(v.equal(expected[k]) for k, v in continued.model.state_dict().items())
    assert continued.directory.log.read_text() == never.directory.log.read_text()


def test_resume_starts_in_an_empty_directory(make_config: Make, train: Train) -> None:
    run = train(make_config(), resume=True)
    assert reached(run.directory).epoch == 3
    model, data = load_model(run.path)
    assert data["sample_shape"] == [1, 4, 4]
    assert not model.training
    expected = run.model.state_dict()
    assert all(value.equal(expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
def test_a_finished_run_can_be_trained_further(
    options: dict[str, object], make_config: Make, train: Train
) -> None:
    train(make_config("long", stage2={"epochs": 5}, **options))
    # Fewer epochs than it has: nothing to do.
    longer = train(make_config("long", **options), resume=True)
    assert reached(longer.directory).epoch == 5
    train(make_config("short", **options))
    extended = train(make_config("short", stage2={"epochs": 5}, **options), resume=True)
    expected = longer.model.state_dict()
    assert all(v.equal(expected[k]) for k, v in extended.model.state_dict().items())


def test_resume_refuses_another_run_s_settings(make_config: Make, train: Train) -> None:
    train(make_config())
    with pytest.raises(RunError, match=r"other settings \(beta: 1.0 -> 2.0\); leave these out"):
        TrainingRun(make_config(beta=2.0), resume=True)
    with pytest.raises(RunError, match=r"stage1.batch_size: 20 -> 30"):
        TrainingRun(make_config(stage1={"batch_size": 30}), resume=True)
    with pytest.raises(RunError, match=r"stage 1 of .* is finished, and stage 2 builds on it"):
        TrainingRun(make_config(stage1={"lr": 0.5}), resume=True)


def test_resume_refuses_other_data(make_config: Make, train: Train, images: Path) -> None:
    config = make_config()
    run = train(config)
    content = json.loads(run.directory.description.read_text())
    content["data"]["train"] = 7
    run.directory.description.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"is not the data that .* was trained on"):
        TrainingRun(config, resume=True)


def test_ctrl_c_after_the_last_step_is_not_lost(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Totals.reset

    def reset(self: Totals) -> None:  # runs between two epochs
        original(self)
        send_ctrl_c()

    config = make_config(stage1={"epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Totals, "reset", reset)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    position = reached(RunDirectory(config.run_directory))
    assert (position.stage, position.epoch, position.batch) == (1, 1, 0)
    assert reached(train(config, resume=True).directory).stage == 2


def test_second_ctrl_c_stops_at_once(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        send_ctrl_c()
        send_ctrl_c()

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(2, patch, twice)
        with pytest.raises(KeyboardInterrupt):
            train(make_config())
    assert signal.getsignal(signal.SIGINT) is before
    assert reached(RunDirectory(make_config().run_directory)).step == 0


def test_torch_s_own_random_numbers_go_on(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with dropout draws from them."""
    original = Images.batch

    def noisy(self: Images, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = original(self, rows, generator)
        return x * torch.rand(x.shape)

    monkeypatch.setattr(Images, "batch", noisy)
    never = train(make_config("never"))
    with monkeypatch.context() as patch:
        interrupt_at(6, patch, send_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(make_config("stopped"))
    expected = never.model.state_dict()
    continued = train(make_config("stopped"), resume=True)
    assert all(v.equal(expected[k]) for k, v in continued.model.state_dict().items())
