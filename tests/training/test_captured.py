"""Recorded and compiled steps: the logic, on a CPU, with a recorder that runs the body again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from vaekern.training import TrainConfig, TrainingRun, captured
from vaekern.training.adam import Adam
from vaekern.training.captured import WARM_UP, Captured, Compiled, Replay, choose
from vaekern.training.controls import Controls

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def rerun(body: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Replay]:
    """Like a graph, it runs nothing while it records, and has outputs at fixed addresses."""
    outputs: list[Tensor] = []

    def replay() -> None:
        found = body()
        if not outputs:
            outputs.extend(torch.empty_like(each) for each in found)
        for kept, new in zip(outputs, found, strict=True):
            kept.copy_(new)

    return outputs, replay


def test_a_recorded_step_trains_like_the_step_itself() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    found = []
    for recorded in (False, True):
        own = copy.deepcopy(model)
        optimizer = Adam(own.parameters(), lr=1e-2)

        def step(x: Tensor, own: nn.Module = own, optimizer: Adam = optimizer) -> list[Tensor]:
            optimizer.zero_grad()
            loss = own(x).square().mean()
            loss.backward()
            optimizer.step()
            return [loss.detach()]

        run = Captured(step, rerun) if recorded else step
        generator, losses = torch.Generator().manual_seed(1), []
        for index in range(12):
            if index == 8:
                optimizer.param_groups[0]["lr"] = 1e-3
            if recorded:
                optimizer.rates_on_device()
            losses.append(float(run(torch.randn(3, 4, generator=generator))[0]))
        found.append((losses, own.weight.detach()))
    assert found[0][0] == found[1][0]
    assert found[0][1].equal(found[1][1])
    assert isinstance(run, Captured)
    assert run.calls == 12


def test_outputs_stay_where_they_are_and_another_shape_runs_by_itself() -> None:
    calls = []

    def function(x: Tensor) -> list[Tensor]:
        calls.append(x)
        return [x + 1]

    captured = Captured(function, rerun)
    for _ in range(WARM_UP):
        captured(torch.zeros(2))
    first = captured(torch.ones(2))[0]
    second = captured(torch.full((2,), 5.0))[0]
    assert second is first
    assert second.tolist() == [6.0, 6.0]
    assert calls[-1] is calls[-2]  # the recorded input, not the caller's
    assert captured(torch.zeros(3))[0].tolist() == [1.0] * 3
    assert captured(torch.zeros(2))[0] is first


def test_what_cannot_be_recorded_runs_as_it_is_after_one_sentence() -> None:
    def refuse(body: object) -> tuple[Sequence[Tensor], Replay]:
        raise RuntimeError("operation not permitted when stream is capturing.\nmore lines")

    captured = Captured(lambda x: [x * 2], refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [float(captured(torch.tensor(float(i)))[0]) for i in range(WARM_UP + 3)]
    assert found == [2.0 * i for i in range(WARM_UP + 3)]
    (warning,) = caught
    assert str(warning.message) == (
        "steps run eagerly: they cannot be recorded as a CUDA graph "
        "(operation not permitted when stream is capturing)"
    )


def test_what_cannot_be_compiled_runs_as_it_is_after_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compile(function: object, **options: object) -> object:
        def call(*inputs: Tensor) -> Sequence[Tensor]:
            raise torch._dynamo.exc.TorchDynamoException("no compiler.")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    compiled = Compiled(lambda x: [x * 2])
    with pytest.warns(
        UserWarning, match=r"^steps run eagerly: they cannot be compiled \(no compiler\)$"
    ):
        assert float(compiled(torch.tensor(3.0))[0]) == 6.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(compiled(torch.tensor(4.0))[0]) == 8.0


def test_a_backward_pass_that_cannot_be_compiled_is_repeated_eagerly(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch compiles it when it first runs."""
    original, failed = Controls.step, []

    def step(self: Controls, loss: Tensor) -> None:
        if not failed:
            failed.append(loss)
            raise torch._dynamo.exc.TorchDynamoException("no compiler")
        original(self, loss)

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    eager = train(make_config("eager", estimate="learned"))
    with monkeypatch.context() as patch:
        patch.setattr(Controls, "step", step)
        with pytest.warns(UserWarning, match=r"cannot be compiled \(no compiler\)$"):
            compiled = train(make_config("compiled", step="compile", estimate="learned"))
    expected = eager.model.state_dict()
    assert all(v.equal(expected[k]) for k, v in compiled.model.state_dict().items())


def test_an_error_of_the_step_itself_is_its_own() -> None:
    def broken(x: Tensor) -> list[Tensor]:
        raise ValueError("x is wrong")

    with pytest.raises(ValueError, match=r"^x is wrong$"):
        Captured(broken, rerun)(torch.ones(1))


def test_choosing_a_mode() -> None:
    assert choose("auto", GPU, None) == ("graph", None)
    assert choose("auto", GPU, "float16 is scaled") == ("eager", None)
    assert choose("auto", CPU, None) == ("eager", None)
    assert choose("eager", GPU, None) == ("eager", None)
    assert choose("compile", CPU, "float16 is scaled") == ("compile", None)
    assert choose("graph", GPU, "why not") == ("eager", "steps run eagerly: why not")
    assert choose("graph", CPU, None)[1] == "steps run eagerly: a CUDA graph needs a CUDA device"


# What a step must not have been recorded with: a rate, a weight of the KL, batch norm's numbers.
RUNS: dict[str, dict[str, object]] = {
    "mlp": {"stage1": {"halve_every": 1}},
    "learned": {"estimate": "learned", "covariance": "diag-i", "clip_norm": 0.5},
    "warm-up": {"kl_warmup_steps": 7},
    "capacity": {"capacity": 3.0, "capacity_epochs": 2},
    "batch norm": {"network": "infogan", "width": None},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_recorded_steps_has_the_bits_of_an_eager_one(
    name: str, make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = train(make_config("eager", step="eager", **copy.deepcopy(RUNS[name])))
    replays: list[Replay] = []

    def record(body: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Replay]:
        outputs, replay = rerun(body)

        def counted() -> None:
            replays.append(replay)
            replay()

        return outputs, counted

    with monkeypatch.context() as patch:
        patch.setattr("vaekern.training.step.choose", lambda *_: ("graph", None))
        patch.setattr(captured, "cuda_graph", record)
        recorded = train(make_config("recorded", **copy.deepcopy(RUNS[name])))
    steps = 12  # of each stage, all but the first of them replayed, and those of the schedule
    settled = {"warm-up": 7, "capacity": 8}.get(name, 0)
    assert recorded.trainer.state.optimizer._rates  # else a new rate would not reach the graph
    assert len(replays) == steps - settled - WARM_UP + steps - WARM_UP
    expected = eager.model.state_dict()
    for key, value in recorded.model.state_dict().items():
        assert value.equal(expected[key]), key
    assert recorded.directory.log.read_text() == eager.directory.log.read_text()


def test_a_run_that_cannot_be_recorded_says_so_and_goes_on(make_config: Make, train: Train) -> None:
    with pytest.warns(UserWarning, match=r"^steps run eagerly: a CUDA graph needs a CUDA device$"):
        train(make_config(step="graph", stage1={"epochs": 1}, stage2={"epochs": 0}))


@pytest.mark.slow
def test_a_run_of_compiled_steps_trains_alike(make_config: Make, train: Train) -> None:
    runs = [train(make_config(f"{m}", step=m, kl_warmup_steps=2)) for m in ("eager", "compile")]
    expected = runs[0].model.state_dict()
    for key, value in runs[1].model.state_dict().items():
        # float32 sums in another order, over 24 steps of Adam at 1e-3, which can turn a rounding of
        # a gradient near zero into a step: at most a few per cent of the way of 24 lr
        torch.testing.assert_close(value, expected[key], msg=key, rtol=1e-3, atol=1e-3)
