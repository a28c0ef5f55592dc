"""Presets: rows of settings, and how flags, files and runs start from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from vaekern.cli import main
from vaekern.models import TwoStageVAE
from vaekern.training import TrainConfig
from vaekern.training.flags import UsageError, parse
from vaekern.training.presets import PRESETS, Preset, preset, preset_table


@pytest.mark.parametrize("name", PRESETS)
def test_the_flag_and_the_setting_say_the_same(name: str) -> None:
    config, _ = parse(["--preset", name])
    assert config == TrainConfig.from_flat({"preset": name})
    assert config == TrainConfig.from_flat(dict(PRESETS[name].settings) | {"preset": name})
    assert config.run.preset == name
    assert config.run_directory == f"runs/digits-{name}"
    assert TrainConfig.from_flat(yaml.safe_load(yaml.safe_dump(config.to_flat()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    row = PRESETS[name]
    assert name == name.lower()
    assert 10 < len(row.summary) <= 80
    assert "20" in row.source  # a year
    assert not row.notes or row.notes.endswith(".")


def test_flags_win_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        PRESETS,
        "both",
        Preset({"beta": 3.0, "stage1": {"lr": 0.25, "epochs": 7}}, "2000", "for us"),
    )
    for words in (
        "--preset both --beta 2 --stage1.lr 0.5",
        "--stage1.lr=0.5 --beta 2 --preset=both",
    ):
        config, _ = parse(words.split())
        assert config.objective.beta == 2.0
        assert (config.stage1.lr, config.stage1.epochs) == (0.5, 7)
        assert config.stage1.batch_size == TrainConfig().stage1.batch_size
    python = TrainConfig.from_flat({"preset": "both", "beta": 2.0, "stage1": {"lr": 0.5}})
    assert python == config


def test_files_win_over_the_preset_that_they_name(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("preset: vae-learned\nestimate: mle\nlatent_dim: 3\n")
    config, _ = parse(["--config", str(path)])
    assert (config.objective.estimate, config.network.latent_dim) == ("mle", 3)
    later, _ = parse(["--config", str(path), "--preset", "mle-diag-i", "--latent-dim", "5"])
    assert (later.objective.covariance, later.network.latent_dim) == ("diag-i", 5)
    path.write_text("preset: vae-learnt\n")
    with pytest.raises(UsageError, match="did you mean 'vae-learned'"):
        parse(["--config", str(path)])


def test_a_continued_run_has_its_preset(tmp_path: Path) -> None:
    config = TrainConfig.from_flat({"run": str(tmp_path), "preset": "beta-vae", "beta": 9.0})
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_flat()))
    assert parse(["--run", str(tmp_path), "--resume"])[0] == config
    again = ["--run", str(tmp_path), "--resume", "--preset", "beta-vae", "--beta", "9"]
    assert parse(again)[0] == config


def test_an_unknown_preset_is_named_with_the_nearest() -> None:
    for read in (lambda n: parse(["--preset", n]), lambda n: TrainConfig.from_flat({"preset": n})):
        with pytest.raises((UsageError, ValueError)) as caught:
            read("mle-iso")
        assert str(caught.value).startswith(
            "there is no preset 'mle-iso'; did you mean 'mle-iso-i'? `vaekern train --preset list`"
        )
    with pytest.raises(ValueError, match="there is no preset 'zzz'; `vaekern train"):
        preset("zzz")
    with pytest.raises(UsageError, match="expected one argument"):
        parse(["--preset"])


def test_the_list_prints_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "list"]) == 0
    text = capsys.readouterr().out
    for name, row in PRESETS.items():
        assert f"\n{name}: {row.summary}\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_settings_are_settings() -> None:
    known = set(TrainConfig().to_flat())
    for name, row in PRESETS.items():
        assert set(row.settings) <= known, name


def test_the_readme_lists_every_preset() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition("<!-- presets:begin -->\n")
    assert rest.partition("\n<!-- presets:end -->")[0] == preset_table()


@pytest.mark.parametrize(
    ("name", "squares", "kl", "codes"),
    [
        ("vae-fixed", 0.5, 1.0, 0.0),
        ("beta-vae", 1.0, 4.0, 0.0),
        ("beta-vae-full", 1.0, 4.0, 0.0),
        ("vae-deterministic", 5.0, 0.0, 0.5),  # 1 / (2 * 0.1), and what is left of the KL
        ("ae", 1.0, 0.0, 0.0),
        ("rae", 1.0, 0.0, 0.002),
    ],
)
def test_the_loss_of_a_preset_is_its_papers(
    name: str, squares: float, kl: float, codes: float
) -> None:
    """a |x - x_hat|^2 + b KL + c |z|^2 of each sample, but for a constant: so batches differ."""
    config = TrainConfig.from_flat({"preset": name, "latent_dim": 3, "width": 8})
    torch.manual_seed(0)
    vae = TwoStageVAE.from_config(config.model, (1, 4, 4), (0.0, 1.0)).stage1.double()
    noise = torch.randn(6, 3, dtype=torch.float64)
    losses = []
    for x in torch.rand(2, 6, 1, 4, 4, dtype=torch.float64):
        q = vae.posterior(x)
        z = q.sample(noise=noise)
        value = squares * (vae.decode(z) - x).square().sum() + codes * z.square().sum()
        if kl:
            scale = q.scale_tril
            normal = torch.distributions.MultivariateNormal(
                q.mu,
                scale_tril=torch.diag_embed((0.5 * q.logvar).exp()) if scale is None else scale,
            )
            prior = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
            value += kl * torch.distributions.kl_divergence(normal, prior.expand([6])).sum()
        losses.append((vae.components(x, q, noise=noise).loss, value / 6))
    (first, wanted), (second, other) = losses
    torch.testing.assert_close(first - second, wanted - other, rtol=1e-6, atol=1e-6)
    assert (first - second).detach().abs() > 1e-3
