"""Settings: flags, YAML files and dataclasses say the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from vaekern.training import StageConfig, TrainConfig
from vaekern.training.config import differences
from vaekern.training.effects import EFFECTS
from vaekern.training.flags import UsageError, parse


def test_no_flags_are_the_defaults() -> None:
    assert parse([]) == (TrainConfig(), False)


def test_every_setting_has_a_flag_and_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flat = TrainConfig().to_flat()
    names = [k for k, v in flat.items() if not isinstance(v, dict)]
    names += [f"{k}.{name}" for k, v in flat.items() if isinstance(v, dict) for name in v]
    assert len(names) > 25
    for name in names:
        assert f"--{name.replace('_', '-')} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_flags_reach_their_settings() -> None:
    config, resume = parse(
        [
            *("--data", "npy:x.npy", "--image-size", "32", "--run", "here", "--resume"),
            *("--covariance", "diag-i", "--estimate", "learned", "--variance", "0.1"),
            *("--beta", "2", "--posterior-samples", "3", "--activation", "tanh", "--seed", "3"),
            *("--logvar-clamp", "[-30,20]", "--network", "infogan", "--latent-dim", "64"),
            *("--stage1.epochs", "7", "--stage2.variance-lr", "0.5"),
        ]
    )
    assert resume
    assert (config.data.data, config.data.image_size) == ("npy:x.npy", 32)
    assert (config.run.run, config.run.seed) == ("here", 3)
    objective = config.objective
    assert (objective.covariance, objective.estimate, objective.variance) == (
        "diag-i",
        "learned",
        0.1,
    )
    assert (objective.beta, objective.posterior_samples, objective.activation) == (2.0, 3, "tanh")
    assert objective.logvar_clamp == (-30.0, 20.0)
    assert (config.network.network, config.network.latent_dim) == ("infogan", 64)
    assert (config.stage1.epochs, config.stage2.variance_lr) == (7, 0.5)
    assert config.stage2.epochs == TrainConfig().stage2.epochs


def test_a_written_configuration_is_read_back(tmp_path: Path) -> None:
    config, _ = parse(["--logvar-clamp", "[-30, 20]", "--stage1.lr", "0.25", "--width", "8"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_flat()))
    assert parse(["--config", str(path)])[0] == config
    changed, _ = parse(["--config", str(path), "--stage1.lr", "0.5"])  # a later flag wins
    assert changed.stage1.lr == 0.5
    assert changed.network.width == 8
    assert TrainConfig.from_flat(config.to_flat()) == config


def test_resume_reads_the_run_s_own_settings(tmp_path: Path) -> None:
    config = TrainConfig.from_flat({"run": str(tmp_path), "beta": 3.0, "stage1": {"lr": 0.25}})
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_flat()))
    resumed, resume = parse(["--run", str(tmp_path), "--resume", "--stage1.lr", "0.5"])
    assert resume
    assert resumed.objective.beta == 3.0
    assert resumed.stage1.lr == 0.5


def test_run_directory_is_named_after_the_run() -> None:
    assert TrainConfig().run_directory == "runs/digits-iso-i-mle"
    assert TrainConfig.from_flat({"data": "idx:/x/mnist/"}).run_directory == "runs/mnist-iso-i-mle"
    assert TrainConfig.from_flat({"run": "there"}).run_directory == "there"


def test_differences_name_what_may_not_change() -> None:
    stored = TrainConfig()
    given = TrainConfig.from_flat(
        {"run": "x", "device": "cpu", "eps": 1e-3, "stage2": {"epochs": 1, "batch_size": 9}}
    )
    assert differences(stored, given) == ["eps: 1e-06 -> 0.001", "stage2.batch_size: 64 -> 9"]


def test_learning_rate_schedule() -> None:
    stage = StageConfig(halve_every=150)
    assert [stage.lr_factor(e) for e in (0, 149, 150, 300)] == [1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs 3", "epochs"),
        (
            "--covariance full",
            "--covariance must be one of iso-i, iso-d, diag-i, diag-d, got full",
        ),
        ("--latent-dim many", "--latent-dim must be a whole number, got many"),
        ("--stage1.batch-size 1.5", "--stage1.batch-size must be a whole number, got 1.5"),
        ("--image-size big", "--image-size must be a whole number, got big"),
        ("--beta x", "--beta must be a number, got x"),
        ("--logvar-clamp 3", "--logvar-clamp must be two numbers, as in '[-30, 20]', got 3"),
        ("--stage1.epochs 0", "stage1.epochs must be at least 1, got 0"),
        ("--stage2.lr -1", "stage2.lr must be positive and finite, got -1.0"),
        ("--stage1.batch-size 0", "stage1.batch_size must be at least 1, got 0"),
        ("--seed -1", "seed must lie between 0 and"),
        ("--threads 0", "threads must be at least 1, got 0"),
        ("--checkpoint-seconds 0", "checkpoint_seconds must be positive"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--latent-dim 0", "latent_dim must be at least 1, got 0"),
        ("--second-layers 0", "second_layers must be at least 1, got 0"),
        ("--flow-steps 3", "flow_steps has an effect only with posterior planar or radial"),
        ("--preset ae --beta=2", "beta has an effect only with a latent_term; leave it out"),
        ("--posterior-variance 0.5", "only with posterior fixed or isotropic"),
        ("--mixture-components 4", "only with likelihood logistic-mixture"),
        ("--levels 16", "only with likelihood logistic-mixture"),
        ("--penalty-weight 3", "only with a decoder_penalty"),
        ("--lr-patience 1", "only with lr_schedule plateau"),
        ("--eps 1e-4", "only with an mle estimate of iso-d, diag-i or diag-d"),
        (
            "--preset mle-diag-d --covariance iso-i",
            "leave it out, or give --eps-start null where a preset sets it",
        ),
    ],
)
def test_bad_flags_are_one_sentence(flags: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(flags.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_with_an_effect_and_settings_of_presets_are_taken() -> None:
    config, _ = parse(["--preset", "rae-gp", "--penalty-weight", "3", "--lr-schedule=plateau"])
    assert config.system.penalty_weight == 3
    # what a preset sets is not refused where a flag takes its effect away
    config, _ = parse(["--preset", "rae-gp", "--decoder-penalty", "none"])
    assert config.system.decoder_penalty == "none"
    parse(["--preset", "vae-planar-flow", "--flow-steps", "3"])
    parse(["--preset", "mle-diag-d", "--covariance", "iso-i", "--eps-start", "null"])


def test_every_effect_is_of_a_setting() -> None:
    assert set(EFFECTS) <= set(TrainConfig().to_flat())


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="there is no setting 'latents'"):
        TrainConfig.from_flat({"latents": 3})
    with pytest.raises(ValueError, match="stage1 has no setting 'rate'"):
        TrainConfig.from_flat({"stage1": {"rate": 3}})


def test_every_setting_is_explained() -> None:
    for part in dataclasses.fields(TrainConfig):
        group = getattr(TrainConfig(), part.name)
        assert type(group).__doc__
        for setting in dataclasses.fields(group):
            assert len(setting.metadata["help"]) > 10, setting.name
