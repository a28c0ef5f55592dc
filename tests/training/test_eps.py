"""The falling eps: its formula, what a step and a run make of it, and what it is for."""

from __future__ import annotations

import doctest
import itertools
import json
from collections.abc import Callable

import pytest
import torch

import vaekern
from vaekern.models import TwoStageVAE
from vaekern.training import EpsConfig, TrainConfig, TrainingRun, eps
from vaekern.training.eps import Eps
from vaekern.training.flags import UsageError, parse
from vaekern.training.kl import KLTerm
from vaekern.training.schedule_config import KLConfig

Train = Callable[..., TrainingRun]
Make = Callable[..., TrainConfig]


def test_it_stays_for_a_third_and_then_falls_by_one_factor() -> None:
    falling = Eps(EpsConfig(eps_start=0.1, eps_epochs=6), eps=1e-7, epochs=20, steps=5)
    assert falling.settled == 30
    assert [falling.at(step) for step in (0, 5, 10)] == [0.1] * 3
    values = [falling.at(step) for step in range(10, 30)]
    factors = [b / a for a, b in itertools.pairwise(values)]
    assert factors == pytest.approx([1e-6 ** (1 / 20)] * 19, rel=1e-4)
    assert falling.at(30) is None
    assert Eps(EpsConfig(eps_start=0.1), eps=1e-6, epochs=10, steps=5).settled == 7 * 5
    still = Eps(EpsConfig(), eps=1e-6, epochs=10, steps=5)
    assert (still.settled, still.at(0), still.record(0)) == (0, None, {})


def test_a_step_is_that_of_a_loss_with_that_eps(make_config: Make) -> None:
    x, gradients = torch.rand(6, 1, 4, 4), []
    for own, given in ((1e-6, 0.02), (0.02, None)):
        torch.manual_seed(0)
        config = make_config(covariance="diag-d", eps=own)
        vae = TwoStageVAE.from_config(config.model, (1, 4, 4), (0.0, 1.0)).stage1
        term = KLTerm(KLConfig(), beta=1.0, epochs=1, steps=10)
        noise = vae.draw_noise(6, torch.Generator().manual_seed(1))
        found = term.components(vae, x, vae.posterior(x), 3, noise, given)
        found.loss.backward()
        gradients.append([found.loss.detach(), found.x_logvar, *(p.grad for p in vae.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        assert torch.equal(ours, expected)


def test_a_call_replaces_it_for_every_objective() -> None:
    x, mu, logvar = torch.rand(5, 7), torch.randn(5, 2), torch.randn(5, 2)
    x_hat = torch.rand(5, 7)
    for covariance in ("iso-d", "diag-i", "diag-d"):
        loss = vaekern.GaussianVAELoss(covariance)
        other = vaekern.GaussianVAELoss(covariance, eps=0.3)
        assert loss(x_hat, x, mu, logvar, eps=0.3) == other(x_hat, x, mu, logvar)
        assert loss(x_hat, x, mu, logvar, eps=0.3) != loss(x_hat, x, mu, logvar)
        assert loss.eps == 1e-6
    for wrong, text in ((0.0, "eps must be above 1e-30"), ("a", "eps must be a number")):
        with pytest.raises((ValueError, TypeError), match=text):
            loss(x_hat, x, mu, logvar, eps=wrong)


def test_a_run_records_it_and_a_long_one_warns(make_config: Make, train: Train) -> None:
    settings = {"covariance": "diag-d", "eps_start": 0.1, "eps_epochs": 3}
    whole = train(make_config("whole", **settings))  # four steps an epoch
    lines = [json.loads(line) for line in whole.directory.log.read_text().splitlines()]
    falling = Eps(EpsConfig(eps_start=0.1, eps_epochs=3), 1e-6, 3, 4)
    recorded = [r["eps"] for r in lines if r["stage"] == 1]
    assert recorded == [falling.at(step) for step in (3, 7, 11)]
    assert all("eps" not in r for r in lines if r["stage"] == 2)
    with pytest.warns(
        UserWarning, match="eps falls over 20 steps and stage 1 has only 12: it ends"
    ):
        TrainingRun(make_config("long", covariance="diag-d", eps_start=0.1, eps_epochs=5))


def test_it_keeps_diag_d_from_collapsing() -> None:
    """Two halves that are bright in four of ten samples, which a code can tell; the median is 0."""
    torch.manual_seed(0)
    left, right = ((torch.rand(256, 1) < 0.4).float().expand(-1, 8) for _ in range(2))
    x = torch.cat([0.9 * left, right], 1)
    errors = {}
    for start in (None, 0.3):
        torch.manual_seed(2)
        config = TrainConfig.from_flat(
            {"covariance": "diag-d", "latent_dim": 2, "width": 32, "activation": "sigmoid"}
        )
        vae = TwoStageVAE.from_config(config.model, (16,), None).stage1
        falling = Eps(EpsConfig(eps_start=start), 1e-6, 100, 4)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
        for step in range(400):
            batch = x[torch.randint(256, (64,))]
            optimizer.zero_grad()
            vae.components(batch, vae.posterior(batch), eps=falling.at(step)).loss.backward()
            optimizer.step()
        errors[start] = float(vae(x).mse)
    assert errors[None] > 5.0  # black: 5.9
    assert errors[0.3] < 0.1 * errors[None]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--covariance diag-d --eps-start 0", "eps_start must be positive and finite, got 0.0"),
        ("--covariance diag-d --eps-epochs 3", "eps_epochs must come with eps_start, got 3 alone"),
        ("--eps-start 0.1", "must come with an mle estimate of iso-d, diag-i or diag-d"),
        ("--preset vae-bernoulli --eps-start 0.1", "got 0.1 with bernoulli; leave it out"),
        ("--covariance diag-d --eps-start 1e-9", "must be above eps = 1e-06, to which it falls"),
    ],
)
def test_bad_settings_are_one_sentence(flags: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(flags.split())
    assert message in str(caught.value)


def test_examples() -> None:
    assert doctest.testmod(eps) == (0, 2)
