"""Every preset as `vaekern train` runs it, and what is said of those that are no Gaussian VAE."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaekern import data
from vaekern.cli import main
from vaekern.training import TrainConfig, TrainingRun, evaluate
from vaekern.training.flags import UsageError, parse
from vaekern.training.presets import PRESETS
from vaekern.training.report import report
from vaekern.training.sampling import save_samples

Make = Callable[..., TrainConfig]
Train = Callable[..., TrainingRun]


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_and_samples_digits(
    name: str, digits: data.Dataset, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaekern.training.run.load_data", lambda config: digits)
    short = {"epochs": 2, "batch_size": 100}
    run = train(
        TrainConfig.from_flat(
            {"preset": name, "run": str(tmp_path / "run"), "width": 64, "second_width": 32}
            | {"stage1": short, "stage2": short}
        )
    )
    records = [json.loads(line) for line in run.directory.log.read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in records] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert records[1]["mse"] < records[0]["mse"]  # it learns
    for stage in (1, 2):
        images = run.model.eval().sample(7, stage=stage)
        assert images.shape == (7, 1, 8, 8)
        assert images.isfinite().all()
        assert images.min() >= 0
        assert images.max() <= 1
        assert images.std(0).max() > 1e-4  # not the same seven times


#: What a report and an evaluation can say of a system, and what they must leave out.
REPORTED: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "full": ({"posterior": "full"}, {"nll_nats_per_dim", "sigma", "active_units"}, {"delta_kl"}),
    "flow": ({"posterior": "radial"}, {"nll_nats_per_dim", "sigma"}, {"active_units", "delta_kl"}),
    "bernoulli": ({"likelihood": "bernoulli"}, {"nll_nats_per_dim", "delta_kl"}, {"sigma"}),
    "mixture": ({"likelihood": "logistic-mixture"}, {"nll_nats_per_dim"}, {"sigma"}),
    "autoencoder": (
        {"likelihood": "squared-error", "posterior": "deterministic", "latent_term": "none"},
        {"mse", "active_units_std"},
        {"nll_nats_per_dim", "reconstruction_nats_per_dim", "kl_nats", "sigma", "delta_kl"},
    ),
    "squared-norm": (
        {"posterior": "deterministic", "latent_term": "squared-norm"},
        {"reconstruction_nats_per_dim", "sigma"},
        {"nll_nats_per_dim", "kl_nats", "delta_kl"},
    ),
}


def _not_finite(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("name", REPORTED)
def test_a_report_says_what_a_system_has(
    name: str, make_config: Make, train: Train, tmp_path: Path
) -> None:
    system, present, absent = REPORTED[name]
    config = make_config(**system)
    run = train(config)
    table = report(run.model, run.data, config, run.directory)
    metrics = json.loads(run.directory.metrics.read_text(), parse_constant=_not_finite)
    assert present <= metrics.keys()
    assert not absent & metrics.keys()
    assert all(math.isfinite(v) for v in metrics.values() if isinstance(v, (int, float)))
    assert ("NLL bound" in table) == ("nll_nats_per_dim" in present and name != "bernoulli")
    assert ("cross-entropy + KL" in table) == (name == "bernoulli")
    assert ("sigma " in table) == ("sigma" in present)
    assert config.model.describe() in table
    for line in run.directory.log.read_text().splitlines():
        record = json.loads(line, parse_constant=_not_finite)
        if record["stage"] == 1:
            assert (record["sigma"] is None) == ("sigma" in absent)
    drawn = {path.name for path in run.directory.figures.iterdir()}
    posterior = system.get("posterior", "diagonal")
    assert ("encoder_variances.png" in drawn) == (posterior in ("diagonal", "full"))
    page = run.directory.page.read_text()
    assert page.count('src="data:image/png;base64,') == len(drawn)

    found = evaluate(run.path, skip=["codes_tsne"], samples=20, progress=False)
    statuses = {key: outcome.status for key, outcome in found.outcomes.items()}
    assert "failed" not in statuses.values(), {
        key: outcome.reason for key, outcome in found.outcomes.items() if outcome.reason
    }
    assert not any(outcome.failed_figures for outcome in found.outcomes.values())
    has_likelihood = name in ("full", "flow", "mixture")
    assert (statuses["importance_weighted_nll"] == "done") == has_likelihood
    diagonal = name in ("bernoulli", "mixture")
    assert (statuses["mutual_information"] == "done") == diagonal
    for always in ("maximum_mean_discrepancy", "decoder_orthogonality", "expected_gap"):
        assert statuses[always] == "done"

    written = save_samples(run.path, n=3, out=str(tmp_path / "drawn"))
    assert all(path.stat().st_size > 100 for path in written)


def test_second_stage_learns_the_draws_of_any_posterior(make_config: Make, train: Train) -> None:
    run = train(make_config(posterior="full", stage2={"epochs": 1}))
    x = run.data.train[:4]
    q = run.model.posterior(x)
    assert q.scale_tril is not None
    draws = torch.stack([q.sample() for _ in range(4000)])
    for each, scale_tril in zip(draws.unbind(1), q.scale_tril, strict=True):
        covariance = scale_tril @ scale_tril.T
        # The error of an estimated covariance is about its size times sqrt(2 / n).
        error = 5 * math.sqrt(2 / 4000) * float(covariance.diagonal().max())
        assert float((torch.cov(each.T) - covariance).abs().max()) < error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--latent-term mmd --free-bits 0.1", "free_bits must come with a KL, got latent_term mmd"),
        ("--posterior radial --capacity 3", "capacity needs the KL of each dimension"),
        ("--latent-term none --kl-warmup-epochs 3", "kl_warmup_epochs must come with a KL"),
        ("--posterior deterministic", "latent_term must not be kl with the deterministic"),
        ("--latent-term mmd --stage1.batch-size 1", "stage1.batch_size must be at least 2"),
        ("--likelihood bernoulli --estimate fixed", "estimate belongs to the Gaussian likelihood"),
        ("--posterior banana", "--posterior must be one of diagonal, full, isotropic, fixed, "),
    ],
)
def test_systems_that_cannot_be_are_one_sentence(flags: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(flags.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["vae-bernoulli", "vae-logistic-mixture"])
def test_a_preset_and_data_that_cannot_go_together(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--preset", preset, "--data", "synth-lin", "--run", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "vaekern: likelihood " in error
    assert "choose a Gaussian preset such as mle-iso-i" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_autoencoders_learn_vectors_too(tmp_path: Path, train: Train) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, 5 * np.random.default_rng(0).normal(size=(90, 3)))
    short = {"epochs": 5, "batch_size": 20, "lr": 0.01}
    for preset in ("rae-gp", "wae-mmd", "vae-planar-flow"):
        run = train(
            TrainConfig.from_flat(
                {"preset": preset, "data": f"npy:{path}", "latent_dim": 2, "width": 16}
                | {"run": str(tmp_path / preset), "second_width": 8}
                | {"stage1": short, "stage2": short}
            )
        )
        samples = run.model.sample(50, stage=2)
        assert samples.shape == (50, 3)
        assert samples.abs().max() > 1  # no sigmoid holds them back
