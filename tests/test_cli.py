"""The command line as a user meets it: exit codes, one sentence, whole runs."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaekern.cli import main
from vaekern.training.metrics import Totals

TINY = [
    *("--threads", "1"),  # steps this small only wait for more, where the machine is busy
    *("--latent-dim", "4", "--width", "16", "--second-width", "16"),
    *("--stage1.epochs", "2", "--stage1.batch-size", "200"),
    *("--stage2.epochs", "2", "--stage2.batch-size", "200"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the digits, far too short to be good."""
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--run", str(path), *TINY]) == 0
    return path


def test_train_leaves_weights_numbers_and_pictures(run: Path) -> None:
    from PIL import Image

    names = {each.name for each in run.iterdir()}
    assert names == {
        *("config.yaml", "run.json", "model.safetensors", "checkpoint.safetensors"),
        "config.json",
        *("previous-checkpoint.safetensors", "best-stage1.safetensors", "best-stage2.safetensors"),
        *("metrics.jsonl", "metrics.json", "table.txt", "report.html", "figures"),
    }
    pictures = {each.name for each in (run / "figures").iterdir()}
    assert pictures == {
        *("reconstructions.png", "samples_stage1.png", "samples_stage2.png"),
        *("training.png", "encoder_variances.png", "latent_spectrum.png"),
    }
    for name in pictures:
        with Image.open(run / "figures" / name) as image:
            assert min(image.size) >= 200
            assert len(image.convert("L").getcolors(256) or []) > 4  # something was drawn
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in records] == [(1, 1), (1, 2), (2, 1), (2, 2)]

    metrics = json.loads((run / "metrics.json").read_text())
    total = metrics["reconstruction_nats_per_dim"] + metrics["kl_nats_per_dim"]
    assert metrics["nll_nats_per_dim"] == pytest.approx(total)
    assert metrics["fd_name"] == "FD-digits"
    assert 0 < metrics["mse"] < 1
    table = (run / "table.txt").read_text()
    for text in (
        "NLL",
        "sigma",
        "MSE",
        "active units",
        "Delta_KL",
        "MMD",
        "FD-digits of reconstructions",
    ):
        assert text in table
    assert table.count("FD-digits of samples") == 2
    assert f"{metrics['nll_nats_per_dim']:.4f}" in table
    page = (run / "report.html").read_text()
    assert f'<data value="{metrics["nll_nats_per_dim"]!r}">' in page
    assert page.count('src="data:image/png;base64,') == len(pictures)


def test_evaluate_adds_to_the_page(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    before = (copy / "report.html").read_text()
    assert "Evaluation" not in before
    words = ["evaluate", str(copy), "--only", "encoder_variance_histogram"]
    assert main([*words, "--out", str(tmp_path / "elsewhere")]) == 0
    assert (copy / "report.html").read_text() == before
    assert main(words) == 0
    page = (copy / "report.html").read_text()
    assert "<h2>Evaluation</h2>" in page
    assert page.count('src="data:image/png;base64,') == 7
    assert html.escape((copy / "evaluation" / "table.txt").read_text().strip()) in page


def test_train_again_is_refused_with_the_remedy(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main(["train", "--run", str(run), *TINY]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vaekern: ")
    assert "continue it with --resume" in error
    assert error.count("\n") == 1
    assert (run / "model.safetensors").read_bytes() == before


def test_resume_of_a_finished_run_repeats_its_table(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (run / "table.txt").read_text()
    assert main(["train", "--run", str(run), "--resume"]) == 0
    assert (run / "table.txt").read_text() == table
    assert table.strip() in capsys.readouterr().out


@pytest.mark.parametrize("stage", [1, 2])
def test_sample_writes_a_picture_and_an_array(
    run: Path, tmp_path: Path, stage: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(run), "--n", "7", "--stage", str(stage)]
    arrays = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main([*words, "--seed", str(seed), "--out", str(tmp_path / name)]) == 0
        arrays.append(np.load(tmp_path / f"{name}.npy", allow_pickle=False))
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert str(tmp_path / "c.npy") in capsys.readouterr().out
    assert arrays[0].shape == (7, 1, 8, 8)
    assert arrays[0].min() >= 0
    assert arrays[0].max() <= 1
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


def test_vectors_train_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5))).astype("f4"))
    words = ["train", "--data", f"npy:{tmp_path / 'x.npy'}", "--run", str(tmp_path / "run"), *TINY]
    assert main([*words, "--stage2.epochs", "0"]) == 0
    output = capsys.readouterr().out
    assert "NLL" in output
    assert "FD-" not in output
    assert "stage 2" not in output
    assert main(["sample", str(tmp_path / "run"), "--stage", "2"]) == 2
    assert "second stage" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "run"), "--n", "3"]) == 0
    assert np.load(tmp_path / "run" / "samples-stage1-seed0.npy").shape == (3, 5)


def test_ctrl_c_says_so_and_can_be_continued(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original, steps = Totals.add, iter(range(10**9))

    def add(self: Totals, components: object) -> None:
        original(self, components)
        if next(steps) == 11:
            os.kill(os.getpid(), signal.SIGINT)

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Totals, "add", add)
        assert main(["train", "--run", str(path), *TINY]) == 130
    error = capsys.readouterr().err
    assert "interrupted" in error
    assert "--resume" in error
    assert main(["train", "--run", str(path), "--resume"]) == 0
    assert "from stage 1, epoch 1" in capsys.readouterr().out
    assert (path / "model.safetensors").read_bytes()[-4096:] == (
        run / "model.safetensors"
    ).read_bytes()[-4096:]
    assert (path / "table.txt").read_text() == (run / "table.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --data nowhere", "did you mean|must be one of"),
        ("train --data npy:/nowhere.npy", "/nowhere.npy"),
        ("train --network vgg", "network must be one of mlp, infogan, wae, "),
        ("train --network infogan --image-size 30", "divisible by 4"),
        ("train --network infogan --width 3", "network 'infogan' has no option 'width'"),
        ("train --variance 2", "variance"),
        ("train --variance -1 --estimate fixed", "variance must be positive"),
        ("train --covariance diag-i --eps 0", "eps must be"),
        ("train --covariance full", "covariance"),
        ("train --bogus", "bogus"),
        ("sample /nowhere", "is not a vaekern run"),
        ("sample /nowhere --stage 3", "stage"),
        ("bogus", "bogus"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vaekern: ")
    assert captured.err.count("\n") == 1
    assert any(part in captured.err for part in message.split("|")), captured.err
    assert not list(tmp_path.iterdir())  # nothing was written


def test_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", "--device", "cuda", "--run", str(tmp_path / "run")]) == 2
    assert "use --device cpu" in capsys.readouterr().err


def test_a_failed_run_has_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--run", str(tmp_path / "run"), *TINY, "--stage1.lr", "1e30"]
    assert main([*words, "--activation", "none"]) == 1
    error = capsys.readouterr().err
    assert "became infinite or NaN" in error
    assert "Traceback" not in error


def test_info_needs_torch_and_numpy_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("jsonargparse", "safetensors", "sklearn", "tqdm", "matplotlib", "yaml", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    for text in ("vaekern", "torch", "numpy", "reference"):
        assert text in output


def test_train_names_the_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert "pip install" in error
    assert "vaekern[train]" in error
    assert error.count("\n") == 1


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    output = capsys.readouterr().out
    for command in ("train", "sample", "info"):
        assert command in output


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_second_stage_improves_the_digits(seed: int, tmp_path: Path) -> None:
    """The default run: stage 2 brings latents and samples closer, and sigma falls."""
    path = tmp_path / "run"
    assert main(["train", "--run", str(path), "--seed", str(seed)]) == 0
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["mmd_stage2"] < 0.5 * metrics["mmd_stage1"]
    assert metrics["fd_stage2"] < 0.5 * metrics["fd_stage1"]
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    sigmas = [record["sigma"] for record in records if record["stage"] == 1]
    assert sigmas[-1] < 0.5 * sigmas[0]


@pytest.mark.parametrize("command", ["sample", "evaluate", "reproduce"])
def test_sigterm_ends_a_command_with_a_sentence(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vaekern.experiments
    import vaekern.training.evaluation
    import vaekern.training.sampling

    def terminated(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(vaekern.experiments, "reproduce", terminated)
    monkeypatch.setattr(vaekern.training.evaluation, "evaluate", terminated)
    monkeypatch.setattr(vaekern.training.sampling, "save_samples", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert main([command, "digits"]) == 143
    assert "vaekern: interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
