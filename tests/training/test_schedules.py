"""Learning rates, KL schedules, clipping, averaging and early stopping against their formulas."""

from __future__ import annotations

import doctest
import json
import math
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vaekern.models import VAE, Posterior, TwoStageVAE
from vaekern.training import (
    StageConfig,
    TrainConfig,
    TrainingRun,
    early_stopping,
    kl,
    load_model,
    precision,
)
from vaekern.training.controls import Controls
from vaekern.training.early_stopping import EarlyStopping
from vaekern.training.flags import UsageError, parse
from vaekern.training.kl import KLTerm, capacity_kl, free_bits_kl
from vaekern.training.learning_rate import LearningRate
from vaekern.training.schedule_config import KLConfig, ScheduleConfig
from vaekern.training.sources import split

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]


def an_optimizer() -> torch.optim.Optimizer:
    network, variance = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    return torch.optim.Adam([{"params": [network], "lr": 1.0}, {"params": [variance], "lr": 1.0}])


def records_of(run: TrainingRun) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.directory.log.read_text().splitlines()]


def small_vae(make_config: Make, **settings: object) -> VAE:
    torch.manual_seed(0)
    return TwoStageVAE.from_config(make_config(**settings).model, (1, 4, 4), (0.0, 1.0)).stage1


# -- learning rate ---------------------------------------------------------------------------------


def test_cosine_is_torch_s_annealing_and_its_closed_form() -> None:
    stage = StageConfig(epochs=8, lr=2e-3, variance_lr=1e-2)
    optimizer, reference = an_optimizer(), an_optimizer()
    reference.param_groups[0]["lr"], reference.param_groups[1]["lr"] = 2e-3, 1e-2
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=8)
    rate = LearningRate(optimizer, stage, ScheduleConfig(lr_schedule="cosine"))
    seen = []
    for epoch in range(8):
        rate.start(epoch)
        for group, expected in zip(optimizer.param_groups, reference.param_groups, strict=True):
            assert group["lr"] == pytest.approx(expected["lr"], rel=1e-12)
        seen.append(optimizer.param_groups[0]["lr"])
        reference.step()
        torchs.step()
    assert seen[0] == 2e-3
    assert seen[4] == pytest.approx(1e-3)
    assert seen[2] == pytest.approx(1e-3 * (1 + math.sqrt(0.5)))


def test_plateau_halves_after_its_patience_and_a_loss_below_zero_rises_unrewarded() -> None:
    optimizer = an_optimizer()
    stage = StageConfig(lr=2e-3, variance_lr=1e-2)
    rate = LearningRate(optimizer, stage, ScheduleConfig(lr_schedule="plateau", lr_patience=1))
    seen = []
    # -99.995 is higher than -100 by less than torch's relative threshold of 1e-4.
    for epoch, loss in enumerate((5.0, -100.0, -99.995, -99.999, -99.0, -101.0, -100.0, -100.0)):
        rate.start(epoch)
        seen.append(optimizer.param_groups[0]["lr"])
        rate.end(loss)
    assert seen == [2e-3, 2e-3, 2e-3, 2e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    rate.start(8)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    assert optimizer.param_groups[1]["lr"] == 2.5e-3

    again = an_optimizer()
    restored = LearningRate(again, stage, ScheduleConfig(lr_schedule="plateau", lr_patience=1))
    restored.load_state_dict(json.loads(json.dumps(rate.state_dict())))
    for loss in (-102.0, -101.0, -101.0, -101.0, -101.0):
        rate.end(loss)
        restored.end(loss)
        assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert again.param_groups[0]["lr"] == 1.25e-4


def test_plateau_watches_the_loss_of_the_epoch(make_config: Make, train: Train) -> None:
    run = train(
        make_config(
            lr_schedule="plateau", lr_patience=0, stage1={"epochs": 25, "lr": 0.05}, stage2={}
        )
    )
    lowest, factor = math.inf, 1.0
    for record in (r for r in records_of(run) if r["stage"] == 1):
        assert record["lr"] == 0.05 * factor
        watched = record["reconstruction"] + record["kl"]
        lowest, factor = (watched, factor) if watched < lowest else (lowest, factor / 2)
    assert factor < 1


# -- the KL ----------------------------------------------------------------------------------------


def test_warm_up_in_epochs_and_in_steps() -> None:
    by_epochs = KLTerm(KLConfig(kl_warmup_epochs=4), beta=2.0, epochs=10, steps=5)
    by_steps = KLTerm(KLConfig(kl_warmup_steps=20), beta=2.0, epochs=10, steps=5)
    for step, expected in ((0, 0.0), (1, 0.1), (7, 0.7), (19, 1.9), (20, 2.0), (49, 2.0)):
        assert by_epochs.beta(step) == pytest.approx(expected)
        assert by_steps.beta(step) == by_epochs.beta(step)
    assert KLTerm(KLConfig(), beta=2.0, epochs=10, steps=5).beta(0) == 2.0


def test_warmed_up_steps_are_those_of_a_loss_with_that_beta(make_config: Make) -> None:
    x, gradients = torch.rand(6, 1, 4, 4), []
    for beta, term in (
        (2.0, KLTerm(KLConfig(kl_warmup_steps=8), beta=2.0, epochs=1, steps=10)),
        (0.75, KLTerm(KLConfig(), beta=0.75, epochs=1, steps=10)),
    ):
        vae = small_vae(make_config, beta=beta)
        noise = vae.draw_noise(6, torch.Generator().manual_seed(1))
        found = term.components(vae, x, vae.posterior(x), 3, noise)
        found.loss.backward()
        gradients.append([found.loss.detach(), *(p.grad for p in vae.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_warm_up_is_recorded_and_a_long_one_warns(make_config: Make, train: Train) -> None:
    run = train(make_config(beta=3.0, kl_warmup_epochs=2))  # four steps an epoch
    betas = [record["beta"] for record in records_of(run) if record["stage"] == 1]
    assert betas == pytest.approx([3.0 * 3 / 8, 3.0 * 7 / 8, 3.0])  # of each epoch's last step
    assert all("beta" not in record for record in records_of(run) if record["stage"] == 2)
    with pytest.warns(UserWarning, match=r"takes 16 steps and stage 1 has only 12 .* 0.75 inst"):
        TrainingRun(make_config("long", kl_warmup_epochs=4))
    with pytest.warns(UserWarning, match=r"capacity rises over 24 .* ends at 4 nats instead of 8"):
        TrainingRun(make_config("long", capacity=8.0, capacity_epochs=6))


def test_epochs_are_compared_by_the_loss_at_the_end_of_all_schedules() -> None:
    warming = KLTerm(KLConfig(kl_warmup_epochs=9), beta=2.0, epochs=9, steps=5)
    assert warming.watched(reconstruction=10.0, kl=3.0) == 16.0
    rising = KLTerm(KLConfig(capacity=5.0), beta=2.0, epochs=9, steps=5)
    assert rising.watched(reconstruction=10.0, kl=3.0) == 14.0


def kl_by_hand(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    normal = torch.distributions.Normal
    posterior = normal(mu, (0.5 * logvar).exp())
    return torch.distributions.kl_divergence(posterior, normal(0.0, 1.0)).mean(0)


def test_free_bits_floor_each_dimension_and_stop_its_gradient() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([0.05, 0.5, 2.0], dtype=torch.float64)  # the first holds next to nothing
    mu = (torch.randn(7, 3, dtype=torch.float64) * scale).requires_grad_()
    logvar = (0.1 * torch.randn(7, 3, dtype=torch.float64)).requires_grad_()
    expected = kl_by_hand(mu, logvar)
    assert expected[0] < 0.05 < expected[1]
    found = free_bits_kl(mu, logvar, 0.05)
    torch.testing.assert_close(found, 0.05 + expected[1:].sum())
    for mine, wanted, of in (
        (*torch.autograd.grad(found, (mu,)), mu / 7, "mu"),
        (
            *torch.autograd.grad(free_bits_kl(mu, logvar, 0.05), (logvar,)),
            (logvar.exp() - 1) / 14,
            "logvar",
        ),
    ):
        assert mine[:, 0].count_nonzero() == 0, of
        torch.testing.assert_close(mine[:, 1:], wanted.detach()[:, 1:], msg=of)
    torch.testing.assert_close(
        free_bits_kl(mu.bfloat16(), logvar.bfloat16(), 0.05).double(), found, rtol=1e-2, atol=0.0
    )


def test_capacity_pulls_the_kl_from_both_sides() -> None:
    mu = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    logvar = torch.tensor([[0.5, -0.5], [0.0, 0.1]])
    kl = float(kl_by_hand(mu.detach(), logvar).sum())
    for capacity, sign in ((kl - 1.5, 1.0), (kl + 1.5, -1.0)):
        found = capacity_kl(mu, logvar, capacity)
        assert found.item() == pytest.approx(1.5, rel=1e-5)
        (gradient,) = torch.autograd.grad(found, (mu,))
        torch.testing.assert_close(gradient, sign * mu.detach() / 2)
    term = KLTerm(KLConfig(capacity=10.0, capacity_epochs=2), beta=100.0, epochs=4, steps=5)
    assert [term.capacity(step) for step in (0, 1, 5, 10, 19)] == [0.0, 1.0, 5.0, 10.0, 10.0]
    assert KLTerm(KLConfig(capacity=10.0), beta=1.0, epochs=4, steps=5).capacity(10) == 5.0


@pytest.mark.parametrize("config", [KLConfig(free_bits=0.05), KLConfig(capacity=3.0)])
@pytest.mark.parametrize("objective", [("iso-i", "mle"), ("diag-d", "learned"), ("iso-i", "fixed")])
def test_shaped_kl_joins_the_loss_s_reconstruction(
    config: KLConfig, objective: tuple[str, str], make_config: Make
) -> None:
    covariance, estimate = objective
    vae = small_vae(make_config, covariance=covariance, estimate=estimate, beta=4.0)
    x = torch.rand(6, 1, 4, 4)
    term = KLTerm(config, beta=4.0, epochs=2, steps=5)
    mu, logvar = vae.encode(x)
    noise = vae.draw_noise(6, torch.Generator().manual_seed(1))
    found = term.components(vae, x, Posterior(mu, logvar), 5, noise)
    plain = vae.components(x, mu, logvar, generator=torch.Generator().manual_seed(1))
    charged = free_bits_kl(mu, logvar, 0.05) if config.free_bits else capacity_kl(mu, logvar, 1.5)
    torch.testing.assert_close(found.loss, plain.loss - 4.0 * plain.kl + 4.0 * charged)
    torch.testing.assert_close(found.kl, plain.kl)
    parameters = list(vae.parameters())
    ours = torch.autograd.grad(found.loss, parameters, retain_graph=True)
    mean_kl = kl_by_hand(mu, logvar).sum()
    theirs = torch.autograd.grad(plain.loss - 4.0 * mean_kl + 4.0 * charged, parameters)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_capacity_is_reached_and_recorded(make_config: Make, train: Train) -> None:
    run = train(
        make_config(
            capacity=2.0,
            capacity_epochs=20,
            beta=100.0,
            estimate="fixed",
            variance=0.05,
            stage1={"epochs": 40, "lr": 1e-2},
            stage2={"epochs": 0},
        )
    )
    records = records_of(run)
    assert records[9]["capacity"] == pytest.approx(2.0 * 39 / 80)
    assert records[-1]["capacity"] == 2.0
    # Within the noise of an epoch: |KL - C| costs 100 a nat, far more than a nat can save.
    assert records[-1]["kl"] == pytest.approx(2.0, abs=0.15)
    free = train(make_config("free", estimate="fixed", variance=0.05, stage2={"epochs": 0}))
    assert abs(records_of(free)[-1]["kl"] - 2.0) > 0.15


# -- steps -----------------------------------------------------------------------------------------


def test_clipping_bounds_the_gradient_s_norm_and_keeps_its_direction(make_config: Make) -> None:
    for clip, factor in ((0.5, 0.1), (50.0, 1.0)):
        vae = small_vae(make_config, covariance="diag-i", estimate="learned")
        config = make_config(clip_norm=clip)
        optimizer = torch.optim.SGD(vae.parameters(), lr=1.0)
        controls = Controls(vae, optimizer, config, 1, 4)
        controls.rate._set(
            1.0 / config.stage1.lr
        )  # plain SGD with lr 1: the update is the gradient
        before = [p.detach().clone() for p in vae.parameters()]
        raw = [torch.randn_like(p) for p in before]
        norm = torch.sqrt(sum(g.square().sum() for g in raw))
        controls.step(
            sum((p * 5.0 * g / norm).sum() for p, g in zip(vae.parameters(), raw, strict=True))
        )
        moved = [b - p.detach() for p, b in zip(vae.parameters(), before, strict=True)]
        length = torch.sqrt(sum(m.square().sum() for m in moved))
        assert float(length) == pytest.approx(5.0 * factor, rel=1e-4)
        for m, g in zip(moved, raw, strict=True):
            torch.testing.assert_close(m, 5.0 * factor * g / norm, rtol=1e-3, atol=1e-6)


def test_averaged_weights_are_the_closed_form(make_config: Make) -> None:
    vae = small_vae(make_config, network="infogan", width=None)
    parameter = next(vae.parameters())
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.0)
    controls = Controls(vae, optimizer, make_config(ema_decay=0.75), 1, 4)
    variance = vae.loss.running_variance
    assert variance is not None
    values = (1.0, 2.0, 4.0, -3.0)
    for value in values:
        with torch.no_grad():
            parameter.fill_(value)
            variance.fill_(value)
        controls.step(0.0 * parameter.sum())
    # w_1, then d w + (1 - d) w_k: d^3 w_1 + (1 - d)(d^2 w_2 + d w_3 + w_4)
    expected = 0.75**3 * 1.0 + 0.25 * (0.75**2 * 2.0 + 0.75 * 4.0 - 3.0)
    averaged = controls.evaluated
    assert averaged is not vae
    assert averaged.loss.running_variance is not None
    torch.testing.assert_close(next(averaged.parameters()), torch.full_like(parameter, expected))
    torch.testing.assert_close(averaged.loss.running_variance, torch.full_like(variance, expected))


def test_averaged_weights_are_what_a_run_leaves_and_its_training_is_that_of_a_run_without(
    make_config: Make, train: Train
) -> None:
    plain = train(make_config("plain", stage2={"epochs": 0}))
    run = train(make_config("averaged", ema_decay=0.5, stage2={"epochs": 0}))
    # Averaging only looks: losses are the same.
    assert run.directory.log.read_text() == plain.directory.log.read_text()
    raw, kept = plain.model.state_dict(), run.model.state_dict()
    for name, parameter in plain.model.stage1.named_parameters(prefix="stage1"):
        assert not kept[name].equal(parameter), name
    assert kept.keys() == raw.keys()
    model, _ = load_model(run.path)
    assert all(value.equal(kept[key]) for key, value in model.state_dict().items())


# -- early stopping --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "stops", "best"), [(1, 4, 3), (2, 8, 6), (3, 9, 6), (9, None, 6)]
)
def test_early_stopping_ends_a_planted_history(patience: int, stops: int | None, best: int) -> None:
    history = (9.0, 5.0, 4.0, 4.5, 3.9, 3.0, 3.0, 3.5, 3.1, 3.2)
    stopping = EarlyStopping(patience)
    ended = next((e for e, v in enumerate(history, 1) if stopping.update(e, v)), None)
    assert (ended, stopping.best_epoch) == (stops, best)


def test_a_run_stops_keeps_its_best_weights_and_is_not_continued(
    make_config: Make, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "early_stopping": 2,
        "validation_fraction": 0.25,
        "stage1": {"epochs": 200, "lr": 0.05},
        "stage2": {"epochs": 1},
    }
    run = train(make_config("stopped", **options))
    losses = [record["validation_loss"] for record in records_of(run) if record["stage"] == 1]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 2 < 200
    assert f"no lower loss since epoch {best}, whose weights are kept" in capsys.readouterr().err
    # As many epochs as the best one had give the same stage 1, and the held-out rows the same loss.
    options["stage1"] = {"epochs": best, "lr": 0.05}
    short = train(make_config("short", **options))
    expected = short.model.stage1.state_dict()
    for name, value in run.model.stage1.state_dict().items():
        assert value.equal(expected[name]), name

    again = train(
        make_config("stopped", **(options | {"stage1": {"epochs": 200, "lr": 0.05}})), resume=True
    )
    assert len(records_of(again)) == len(losses) + 1


def test_held_out_rows_are_neither_trained_on_nor_drawn_twice(
    make_config: Make, train: Train
) -> None:
    rows = torch.arange(81.0)
    held_out, rest = split(rows, 0.25, seed=3)
    assert (len(held_out), len(rest)) == (20, 61)
    assert torch.cat([held_out, rest]).sort().values.equal(rows)
    assert split(rows, 0.001, seed=3)[0].numel() == 1
    with pytest.raises(ValueError, match="validation_fraction must be 0 for a training set of 1"):
        split(rows[:1], 0.5, seed=0)
    run = train(make_config(early_stopping=9, validation_fraction=0.25))
    assert run.trainer.held_out is not None
    assert (len(run.trainer.images), len(run.trainer.held_out)) == (61, 20)
    assert [record["step"] for record in records_of(run)] == [3, 6, 9, 3, 6, 9]


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lr-schedule linear", "--lr-schedule must be one of step, plateau, cosine, got linear"),
        ("--lr-patience -1", "lr_patience must be at least 0, got -1"),
        ("--clip-norm 0", "clip_norm must be positive and finite, got 0.0; leave it out"),
        ("--early-stopping 0", "early_stopping must be at least 1, got 0; leave it out"),
        ("--validation-fraction 1", "validation_fraction must lie between 0 and 1"),
        ("--validation-fraction 0.1", "must come with something that watches it, got 0.1 alone"),
        ("--ema-decay 1", "ema_decay must lie between 0 and 1, both left out, got 1.0"),
        ("--kl-warmup-epochs 0", "kl_warmup_epochs must be at least 1, got 0; leave it out"),
        ("--kl-warmup-epochs 2 --kl-warmup-steps 9", "without kl_warmup_steps, got 2 and 9; leave"),
        ("--free-bits 0", "free_bits must be a positive number of nats, got 0.0; leave it out"),
        ("--capacity -1", "capacity must be a positive number of nats, got -1.0"),
        ("--capacity-epochs 9", "capacity_epochs must come with capacity, got 9 alone; give"),
        ("--capacity 9 --free-bits 1", "capacity must be the only change to the KL term, got free"),
    ],
)
def test_bad_settings_are_one_sentence(flags: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(flags.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_warning_is_one_line_of_the_command(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vaekern.cli import main

    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(make_config(kl_warmup_steps=24, stage2={"epochs": 0}).to_flat()))
    assert main(["train", "--config", str(config)]) == 0
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "warning" in x)
    assert line.startswith(
        "vaekern: warning: the KL warm-up takes 24 steps and stage 1 has only 12"
    )


@pytest.mark.parametrize(("module", "examples"), [(kl, 6), (early_stopping, 3), (precision, 4)])
def test_examples(module: types.ModuleType, examples: int) -> None:
    assert doctest.testmod(module) == (0, examples)
