"""The loop: schedules, data order, noise, learned variances, loss that is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from vaekern.diagnostics import encoder_variance_spectrum, polarized_regime
from vaekern.models import Posterior, TwoStageVAE
from vaekern.training import (
    RunError,
    StageConfig,
    TrainConfig,
    TrainingRun,
    checkpoints,
    load_model,
    trainer,
)
from vaekern.training.learning_rate import LearningRate
from vaekern.training.metrics import Log, Polarization, Totals, sigma
from vaekern.training.schedule_config import ScheduleConfig
from vaekern.training.seeds import derived_seed
from vaekern.training.sources import Latents
from vaekern.training.step import make_optimizer

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]
COVARIANCES = ("iso-i", "iso-d", "diag-i", "diag-d")


@pytest.mark.parametrize("estimate", ["mle", "learned", "fixed"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_every_objective_trains_both_stages(
    covariance: str, estimate: str, make_config: Make, train: Train
) -> None:
    config = make_config(
        covariance=covariance, estimate=estimate, stage1={"epochs": 8}, stage2={"epochs": 1}
    )
    run = train(config)
    records = [json.loads(line) for line in run.directory.log.read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in records] == [*((1, e) for e in range(1, 9)), (2, 1)]
    assert records[7]["loss"] < records[0]["loss"]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert run.model.sample(3).shape == (3, 1, 4, 4)


def test_sigma_falls_and_is_the_root_of_the_mean_squared_error(
    make_config: Make, train: Train
) -> None:
    run = train(make_config(stage1={"epochs": 30, "lr": 5e-3}, stage2={"epochs": 0}))
    records = [json.loads(line) for line in run.directory.log.read_text().splitlines()]
    assert records[-1]["sigma"] < 0.7 * records[0]["sigma"]
    # iso-i in closed form: sigma^2 is the batch's mean squared error per dimension.
    root = math.sqrt(records[-1]["mse"] / records[-1]["dims"])
    assert records[-1]["sigma"] == pytest.approx(root, rel=0.02)


def test_loop_equals_one_written_out(make_config: Make, train: Train) -> None:
    """Two epochs of stage 1, by hand: order, dropped batch, noise, Adam, halved learning rate."""
    config = make_config(stage1={"epochs": 2, "halve_every": 1, "lr": 1e-2}, stage2={"epochs": 0})
    run = train(config)

    torch.manual_seed(config.run.seed)
    x = run.data.train
    model = TwoStageVAE.from_config(config.model, (1, 4, 4), (0.0, 1.0)).stage1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noise = torch.Generator().manual_seed(derived_seed(0, 0))
    assert len(x) == 81  # four batches of 20, one sample is left out
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5**epoch
        order = torch.randperm(
            81, generator=torch.Generator().manual_seed(derived_seed(0, 1, epoch))
        )
        for rows in order[:80].split(20):
            optimizer.zero_grad()
            model(x[rows], generator=noise).loss.backward()
            optimizer.step()
    for (name, value), expected in zip(
        run.model.stage1.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(value, expected, msg=name, rtol=1e-4, atol=1e-6)


def test_learning_rates_halve_and_a_learned_variance_has_its_own(make_config: Make) -> None:
    stage = StageConfig(lr=1e-3, variance_lr=1e-2, halve_every=10)
    vae = TwoStageVAE.from_config(make_config(estimate="learned").model, (1, 4, 4)).stage1
    optimizer = make_optimizer(vae, stage)
    networks, variance = optimizer.param_groups
    assert [p is vae.loss.x_logvar for p in variance["params"]] == [True]
    assert len(networks["params"]) == len(list(vae.parameters())) - 1
    for epoch, factor in ((0, 1), (9, 1), (10, 0.5), (29, 0.25)):
        LearningRate(optimizer, stage, ScheduleConfig()).start(epoch)
        assert networks["lr"] == pytest.approx(1e-3 * factor)
        assert variance["lr"] == pytest.approx(1e-2 * factor)


def test_stage_two_learns_fresh_draws() -> None:
    posterior = Posterior(torch.arange(10.0).view(5, 2), torch.zeros(5, 2))
    rows, generator = torch.tensor([3, 1]), torch.Generator().manual_seed(0)
    first = Latents(posterior).batch(rows, generator)
    second = Latents(posterior).batch(rows, generator)
    assert not first.equal(second)
    noise = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(first, posterior.mu[rows] + noise)


def test_a_set_smaller_than_a_batch_is_one_batch(make_config: Make, train: Train) -> None:
    run = train(make_config(stage1={"batch_size": 500}, stage2={"batch_size": 500}))
    records = [json.loads(line) for line in run.directory.log.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 1, 2, 3]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    make_config: Make, train: Train
) -> None:
    config = make_config(activation="none", stage1={"epochs": 40, "lr": 1e30})
    with pytest.raises(
        RunError, match=r"loss of stage 1 became infinite or NaN .* checkpoint is kept"
    ):
        train(config)
    model, _ = load_model(config.run_directory)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    # The remedies in the message work.
    cured = make_config(activation="none", clip_norm=1.0, stage1={"epochs": 3, "lr": 1e-3})
    assert math.isfinite(train(cured, resume=True).model.stage1.loss.running_variance.item())


def test_weights_that_are_not_finite_are_never_saved(make_config: Make, train: Train) -> None:
    run = train(make_config())
    before = run.directory.checkpoint.read_bytes()
    with torch.no_grad():
        run.model.stage2.decoder.z_hat.bias[0] = math.nan  # the last step's, of a finite loss
    with pytest.raises(RunError, match=r"loss of stage 2 became infinite or NaN after epoch 3"):
        run.trainer.save()
    assert run.directory.checkpoint.read_bytes() == before


def test_totals_and_log_give_means() -> None:
    totals, log = Totals(torch.device("cpu")), Log()
    for loss in (1.0, 2.0, 6.0):
        one = torch.tensor(loss)
        # x_logvar may be anything from one number to one per element.
        totals.add(
            SimpleNamespace(
                loss=one, reconstruction=one, kl=one, mse=one, x_logvar=torch.tensor([0.0, loss])
            )
        )
    log.add({"epoch": 1}, torch.cat([totals.means(), torch.tensor([0.25, 3.0, 2.0])]))
    (record,) = log.take()
    assert (record["delta_kl"], record["active_units"], record["active_units_std"]) == (0.25, 3, 2)
    assert record["epoch"] == 1
    assert record["loss"] == pytest.approx(3.0)
    assert record["x_logvar"] == pytest.approx(1.5)
    assert record["sigma"] == pytest.approx(math.exp(0.75))
    assert log.take() == []
    assert sigma(math.nan) is None  # a decoder that has no variance says NaN
    assert math.isnan(sigma(math.inf))


def test_polarization_of_the_last_batch_is_recorded_and_tracked(
    make_config: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, int | None]] = []
    original = Polarization.observe

    def observe(
        self: Polarization, mu: torch.Tensor, logvar: torch.Tensor, step: int | None = None
    ) -> None:
        seen.append((mu.detach(), logvar.detach(), step))
        original(self, mu, logvar, step)

    monkeypatch.setattr(Polarization, "observe", observe)
    monkeypatch.setattr(trainer, "OBSERVED_EVERY", 3)  # of four steps an epoch
    run = train(make_config(stage1={"lr": 2e-2, "epochs": 30}, stage2={"epochs": 1}))
    steps = [step for _, _, step in seen if step is not None]
    assert steps == [step for step in range(1, 121) if step % 3 == 0 or step % 4 == 0]
    records = [json.loads(line) for line in run.directory.log.read_text().splitlines()]
    by_step = {step: polarized_regime(mu, logvar) for mu, logvar, step in seen if step is not None}
    for record in records[:-1]:
        regime = by_step[record["step"]]
        assert record["delta_kl"] == float(regime.delta_kl)
        assert record["active_units_std"] == regime.active
    mu, logvar, step = seen[-1]
    assert step is None  # stage 2 is recorded, but not tracked
    assert records[-1]["delta_kl"] == float(polarized_regime(mu, logvar).delta_kl)
    assert records[-1]["active_units"] == encoder_variance_spectrum(logvar).active

    last_above = max([0, *(step for step, r in by_step.items() if not r.delta_kl < 0.03)])
    stored = checkpoints.polarized_regime(run.directory)
    assert stored.share == (120 - last_above) / 120
    assert stored.state_dict() == run.trainer.state.polarization.tracker.state_dict()
    assert last_above > 0  # at the start no dimension is active yet


def test_derived_seeds_differ() -> None:
    words = [(0,), (0, 0), (0, 1), (1, 0), (0, 1, 2), (0, 2, 1)]
    assert len({derived_seed(*each) for each in words}) == len(words)
