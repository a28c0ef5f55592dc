"""vaekern evaluate, from run directories to numbers, tables and pictures."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vaekern import data, diagnostics
from vaekern.cli import main
from vaekern.diagnostics import polarized_regime
from vaekern.models import Posterior
from vaekern.storage.tensors import load_tensors, save_tensors
from vaekern.training import (
    Evaluation,
    RunDirectory,
    RunError,
    TrainConfig,
    TrainingRun,
    evaluate,
    load_model,
    report,
)
from vaekern.training.evaluation import (
    DIAGNOSTICS,
    Diagnostic,
    Found,
    Line,
    evaluating,
    likelihood,
    orthogonality,
)
from vaekern.training.evaluation.subject import Subject
from vaekern.training.evaluation.table import few_words
from vaekern.training.run_directory import MODEL
from vaekern.training.sources import split

Make = Callable[..., TrainConfig]
Train = Callable[..., TrainingRun]

NAMES = [row.name for row in DIAGNOSTICS]
SMALL = {"width": 32, "second_width": 32, "threads": 1}
# Read in one go: what needs many of them has tests of its own.
SAMPLES = 100


def trained(path: Path, **settings: Any) -> Path:
    run = TrainingRun(TrainConfig.from_flat(SMALL | {"run": str(path)} | settings))
    run.start()
    run.trainer.train()
    return path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages on the digits, of 6 latent dimensions; 2 or 3 of them are in use."""
    return trained(
        tmp_path_factory.mktemp("evaluate") / "digits",
        latent_dim=6,
        stage1={"epochs": 20, "batch_size": 100},
        stage2={"epochs": 2, "batch_size": 200},
    )


@pytest.fixture(scope="session")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1 alone on the synthetic square."""
    return trained(
        tmp_path_factory.mktemp("evaluate") / "square",
        data="synth-lin",
        latent_dim=3,
        stage1={"epochs": 3, "batch_size": 300},
        stage2={"epochs": 0},
    )


@pytest.fixture(scope="session")
def printed(digits: Path) -> str:
    """What the command line prints for the digits, having written RUN/evaluation."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["evaluate", str(digits), "--samples", str(SAMPLES)]) == 0
    return output.getvalue()


@pytest.fixture(scope="session")
def of_digits(digits: Path, printed: str) -> dict[str, Any]:
    """The diagnostics in the digits' evaluation.json."""
    return read(digits / "evaluation")["diagnostics"]


@pytest.fixture(scope="session")
def of_square(square: Path) -> Evaluation:
    return evaluate(square, samples=300, out=square.parent / "looked-at")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def part(run: Path, name: str, split: str, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, mu, logvar, rows) of the samples that an evaluation with seed 0 looks at."""
    model, _ = load_model(run)
    samples = getattr(data.load(name), split)
    rows = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:n]
    with torch.no_grad():
        mu, logvar = model.stage1.encode(samples[rows])
    return samples[rows], mu.double(), logvar.double(), rows


def jacobians(run: Path, mu: Tensor) -> np.ndarray:
    """By reverse mode, one sample at a time, in float64."""
    model, _ = load_model(run)
    vae = model.stage1.double()

    def decoded(z: Tensor) -> Tensor:
        return vae.decode(z[None]).flatten()

    return torch.stack([torch.autograd.functional.jacobian(decoded, z) for z in mu]).numpy()


def distance(J: np.ndarray) -> float:
    """Mean distance to orthogonality, by LAPACK and scipy."""
    found = []
    for V in np.linalg.svd(J)[2]:
        rows, columns = linear_sum_assignment(-np.abs(V))
        P = np.zeros_like(V)
        P[rows, columns] = np.sign(V[rows, columns])
        found.append(np.linalg.norm(V - P))
    return float(np.mean(found))


# -- the numbers -----------------------------------------------------------------------------


def test_everything_that_applies_to_images_is_done(of_digits: dict[str, Any]) -> None:
    status = {name: entry["status"] for name, entry in of_digits.items()}
    assert list(status) == NAMES
    assert {name for name, value in status.items() if value != "done"} == {"disentanglement_score"}
    assert of_digits["disentanglement_score"]["status"] == "skipped"
    assert not any(entry.get("failed_figures") for entry in of_digits.values())
    counts = {name: entry["n"] for name, entry in of_digits.items() if "n" in entry}
    assert counts.pop("perturbed_codes") == 4
    assert counts.pop("interpolation_strips") == 16
    assert set(counts.values()) == {SAMPLES}


def test_latents_are_those_of_the_training_set(digits: Path, of_digits: dict[str, Any]) -> None:
    _, mu, logvar, _ = part(digits, "digits", "train", SAMPLES)
    variance = logvar.exp()
    units = of_digits["active_units"]["values"]
    assert units["variance"] == int((mu.var(0, correction=0) > 0.01).sum())
    assert units["std"] == int((mu.std(0, correction=0) > 0.5).sum())
    assert units["posterior"] == int((variance.mean(0) < 0.5).sum())
    assert 0 < units["std"] < 6  # or the masked diagnostics would show nothing below
    kl = 0.5 * (mu**2 + variance - logvar - 1)
    mask = mu.std(0, correction=0) > 0.5
    without = 0.5 * (mu**2 - logvar - 1)[:, mask]
    regime = of_digits["polarized_regime"]["values"]
    total = float(kl.sum(1).mean())
    assert regime["kl"] == pytest.approx(total)
    assert regime["delta_kl"] == pytest.approx(1 - float(without.sum(1).mean()) / total)
    spectrum = of_digits["encoder_variance_spectrum"]["values"]
    np.testing.assert_allclose(spectrum["variance"], variance.mean(0).sort().values)
    assert spectrum["active_lowest"] == spectrum["variance"][0]
    assert spectrum["passive_highest"] == spectrum["variance"][-1]
    histogram = of_digits["encoder_variance_histogram"]["values"]
    assert histogram["manifold_dimension"] == pytest.approx(
        float((variance < 0.5).sum(1).double().mean())
    )
    information = of_digits["mutual_information"]["values"]
    assert information["upper"] == pytest.approx(total)
    assert information["lower"] <= information["log_n"] == math.log(SAMPLES)


def test_aggregate_posteriors_of_both_stages(digits: Path, of_digits: dict[str, Any]) -> None:
    spectrum = of_digits["latent_spectrum"]["values"]
    _, mu, logvar, _ = part(digits, "digits", "train", SAMPLES)
    model, _ = load_model(digits)
    draws = mu + (0.5 * logvar).exp() * torch.randn(200, *mu.shape, dtype=torch.float64)
    with torch.no_grad():
        mean, u_logvar = model.stage2.encode(draws.flatten(0, 1).float())
    # the squares of the singular values of Z / sqrt N add up to the mean of |z|^2
    for name, squares in (
        ("z", (mu**2 + logvar.exp()).sum(1).mean()),
        ("u", (mean**2 + u_logvar.exp()).sum(1).mean()),
        ("prior", torch.tensor(6.0)),
    ):
        values = spectrum[name]
        assert len(values) == 6
        assert spectrum[f"{name}_highest"] == max(values) == values[0]
        assert spectrum[f"{name}_lowest"] == min(values) == values[-1]
        # |z|^2 of a normal z has variance 2 d; three standard errors
        assert float(np.square(values).sum()) == pytest.approx(
            float(squares), abs=3 * math.sqrt(2 * 6 / SAMPLES)
        )

    mmd = of_digits["maximum_mean_discrepancy"]["values"]
    subject = Subject(model, data.load("digits"), two_stages=True, samples=SAMPLES)
    subject.begin("maximum_mean_discrepancy")
    draws: dict[str, list[float]] = {"z": [], "u": [], "prior": []}
    for _ in range(5):
        drawn = subject.aggregate_posterior(SAMPLES)
        drawn["prior"] = model.stage1.sample_prior(SAMPLES, generator=subject.generator)
        for name, samples in drawn.items():
            value = diagnostics.maximum_mean_discrepancy(samples, generator=subject.generator)
            draws[name].append(float(value))
    for name in ("z", "u"):
        assert mmd[name] == pytest.approx(np.mean(draws[name]), rel=1e-12)
        assert mmd[f"{name}_error"] == pytest.approx(np.std(draws[name], ddof=1) / math.sqrt(5))
    assert mmd["prior"] == pytest.approx(np.linalg.norm(draws["prior"]) / 5)


def test_likelihood_and_squared_errors(digits: Path, of_digits: dict[str, Any]) -> None:
    x, mu, logvar, _ = part(digits, "digits", "test", SAMPLES)
    values = of_digits["importance_weighted_nll"]["values"]
    assert values["nll"] < values["negative_elbo"]
    assert values["nll_per_dim"] == pytest.approx(values["nll"] / 64)
    model, _ = load_model(digits)
    vae = model.stage1
    assert vae.x_logvar is not None
    gamma = float(vae.x_logvar.exp())
    with torch.no_grad():
        missed = float((vae.decode(mu.float()) - x).double().square().flatten(1).sum(1).mean())
    losses = of_digits["reconstruction_losses"]["values"]
    assert losses["deterministic"] == pytest.approx(missed, rel=1e-5)
    assert losses["deterministic_per_dim"] == pytest.approx(missed / 64, rel=1e-5)
    J = jacobians(digits, mu)
    linearized = float((np.square(J).sum(1) * logvar.exp().numpy()).sum(1).mean())
    assert losses["linearized"] == pytest.approx(linearized, rel=1e-4)
    # total = deterministic + stochastic but for the bias of the decoded noise
    assert losses["total"] == pytest.approx(
        losses["deterministic"] + losses["stochastic"], rel=0.05
    )
    kl = float(0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1).mean())
    elbo = losses["total"] / (2 * gamma) + 32 * math.log(2 * math.pi * gamma) + kl
    # one draw of z here and ten there
    error = values["negative_elbo_standard_error"]
    assert values["negative_elbo"] == pytest.approx(elbo, abs=3 * error)


def test_chunks_of_jacobians_stay_with_their_samples(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_model(digits)
    subject = Subject(model, data.load("digits"), two_stages=True)
    together = likelihood.reconstruction_losses(subject, 20).values
    chunks = functools.partial(diagnostics.decoder_jacobian_chunks, chunk_size=7)
    monkeypatch.setattr(diagnostics, "decoder_jacobian_chunks", chunks)
    apart = likelihood.reconstruction_losses(subject, 20).values
    for name in ("deterministic", "linearized"):  # the other two are random
        assert apart[name] == pytest.approx(together[name], rel=1e-5)


def test_orthogonality_and_smoothness(digits: Path, of_digits: dict[str, Any]) -> None:
    _, mu, _, _ = part(digits, "digits", "test", SAMPLES)
    J = jacobians(digits, mu)
    training = part(digits, "digits", "train", SAMPLES)[1]
    active = (training.std(0, correction=0) > 0.5).numpy()
    values = of_digits["decoder_orthogonality"]["values"]
    # singular vectors of float32 Jacobians: 1e-7 over the smallest relative gap
    assert values["full"] == pytest.approx(distance(J), abs=2e-3)
    assert values["active"] == pytest.approx(distance(J[:, :, active]), abs=2e-3)
    assert values["active_dim"] == active.sum()
    units = J / np.linalg.norm(J, axis=1, keepdims=True)
    cosines = np.abs(units.transpose(0, 2, 1) @ units)[:, *np.triu_indices(6, 1)]
    assert values["off_diagonal"] == pytest.approx(float(cosines.mean()), rel=1e-3)
    assert values["random"] == pytest.approx(1.9124, abs=0.01)  # 4 standard errors
    assert values["random_off_diagonal"] == pytest.approx(  # E |cos| in 64 dimensions
        np.abs(np.random.default_rng(0).normal(size=(20_000, 64)))[:, 0].mean() / 8, rel=0.02
    )
    used = J[:, :, active]
    ratio = np.linalg.norm(used, axis=1).prod(1) / np.sqrt(
        np.linalg.det(used.transpose(0, 2, 1) @ used)
    )
    norms = of_digits["column_norm_product"]["values"]
    assert norms["ratio"] == pytest.approx(float(np.exp(np.log(ratio).mean())), rel=1e-3)
    smoothness = float(np.square(J).sum((1, 2)).mean())
    local = of_digits["expected_local_smoothness"]["values"]
    assert local["smoothness"] == pytest.approx(smoothness, rel=1e-4)
    assert local["per_dimension"] == pytest.approx(smoothness / 6, rel=1e-4)
    gap = of_digits["expected_gap"]["values"]
    assert gap["wide_noise_variance"] == 10 * gap["narrow_noise_variance"]
    assert gap["narrow_smoothness"] == pytest.approx(gap["narrow_gap"] / 2e-3)
    # the noise of a mean over 100 pairs in some 3 directions, each with variance 2
    assert gap["narrow_smoothness"] == pytest.approx(smoothness, rel=0.4)
    directions = of_digits["directional_variance"]["values"]
    assert directions["active"] > 5 * directions["passive"] > 0


def test_disentanglement_of_the_square(square: Path, of_square: Evaluation) -> None:
    _, mu, _, rows = part(square, "synth-lin", "test", 300)
    factors = data.load("synth-lin").test_factors
    assert factors is not None

    def entropy(counts: np.ndarray) -> float:
        share = counts[counts > 0] / counts.sum()
        return float(-(share * np.log(share)).sum())

    matrix = np.empty((2, 3))
    for i, w in enumerate(factors[rows].double().numpy().T):
        for j, z in enumerate(mu.numpy().T):
            joint = np.histogram2d(w, z, bins=20)[0]
            h = entropy(joint.sum(1))
            matrix[i, j] = (h + entropy(joint.sum(0)) - entropy(joint)) / h
    values = of_square.outcomes["disentanglement_score"].values
    np.testing.assert_allclose(values["mig_matrix"], matrix, atol=0.02)  # float32 bin edges
    assert values["factors"] == 2
    # what the best latent tells about the longer side, where a shuffled factor leaves 0
    assert np.max(values["knn_matrix"][0]) > 0.3
    assert 0 <= values["knn"] <= 1


def test_vectors_and_a_missing_second_stage(of_square: Evaluation) -> None:
    outcomes = of_square.outcomes
    skipped = {name: o.reason for name, o in outcomes.items() if o.status != "done"}
    reason = "it shows images, and the data are vectors"
    rows = ("frechet_distances", "kernel_distances", "precision_recall")
    assert skipped == {
        **dict.fromkeys(("perturbed_codes", "interpolation_strips"), reason),
        **dict.fromkeys(rows, "it compares images, and the data are vectors"),
    }
    assert "u" not in outcomes["maximum_mean_discrepancy"].values
    assert "q(u)" not in of_square.table
    assert "stage 1 (stage 2 is not trained)" in of_square.table.splitlines()[0]
    assert read(of_square.path)["second_stage"] is False


# -- the table and the files -------------------------------------------------------------------


def test_table_is_grouped_short_and_says_what_the_numbers_are(
    digits: Path, printed: str, of_digits: dict[str, Any]
) -> None:
    table = (digits / "evaluation" / "table.txt").read_text()
    assert printed.startswith(table)
    lines = table.splitlines()
    assert len(lines) <= 45 + 20  # the twenty on what is generated: eight sets of images, and notes
    assert max(map(len, lines)) <= 104
    groups = [line for line in lines[2:] if re.fullmatch(r"\w+", line)]
    named = "likelihood generation latents orthogonality smoothness disentanglement"
    assert groups == named.split()
    assert not re.search(r"[{}]", table)

    def line(label: str) -> str:
        return next(text for text in lines if text.strip().startswith(label))

    nll = of_digits["importance_weighted_nll"]["values"]["nll"]
    assert re.search(rf"k = 500 +{nll:.2f}  nats +100 test  ±", line("-log p(x)"))
    values = of_digits["decoder_orthogonality"]["values"]
    assert f"{values['full']:.3f}" in line("DtO, all 6 dims")
    assert f"random rotation: {values['random']:.3f}" in line("DtO, all 6 dims")
    active = line(f"DtO, {values['active_dim']} active dims")
    assert f"random rotation: {values['random_active']:.3f}" in active
    delta = of_digits["polarized_regime"]["values"]["delta_kl"]
    assert f"{delta:.1%}" in line("Delta_KL")
    assert "polarized: below 3%" in line("Delta_KL")
    assert "skipped: the factors of variation of digits are not known" in line("disentanglement_")


def test_every_picture_is_drawn_and_named(digits: Path, of_digits: dict[str, Any]) -> None:
    from PIL import Image

    named = {name for entry in of_digits.values() for name in entry.get("figures", [])}
    assert named == {name for row in DIAGNOSTICS for name in row.figures}
    files = {each.name for each in (digits / "evaluation").iterdir()}
    assert files == named | {"evaluation.json", "table.txt"}
    for name in named:
        with Image.open(digits / "evaluation" / name) as image:
            assert min(image.size) >= 200
            assert len(image.convert("L").getcolors(256) or []) > 4  # something was drawn


def test_figure_and_table_have_the_same_baselines(square: Path) -> None:
    model, _ = load_model(square)
    subject = Subject(model, data.load("synth-lin"), two_stages=False, samples=20)
    subject._active = torch.tensor([True, False, True])
    drawn: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            orthogonality.evaluation,
            "orthogonality_figure",
            lambda full, path, **panels: drawn.update(panels),
        )
        found = orthogonality.decoder_orthogonality(subject, 20)
        orthogonality.draw_orthogonality(subject, found, Path())
    assert float(drawn["random"].mean()) == found.values["random"]
    assert float(drawn["random_active"].mean()) == found.values["random_active"]


def test_only_and_skip_leave_the_other_numbers_as_they_are(
    digits: Path, of_digits: dict[str, Any], tmp_path: Path
) -> None:
    words = ["evaluate", str(digits), "--samples", str(SAMPLES), "--out", str(tmp_path / "a")]
    chosen = ["maximum_mean_discrepancy", "expected_gap", "latent_traversals"]
    assert main([*words, "--only", *chosen, "--skip", "latent_traversals"]) == 0
    found = read(tmp_path / "a")
    assert list(found["diagnostics"]) == chosen[:2]
    for name in chosen[:2]:
        assert found["diagnostics"][name]["values"] == of_digits[name]["values"]
    assert {each.name for each in (tmp_path / "a").iterdir()} == {"evaluation.json", "table.txt"}


def test_seed_and_samples(digits: Path, of_digits: dict[str, Any], tmp_path: Path) -> None:
    only = ["expected_gap", "polarized_regime"]
    other = evaluate(digits, only=only, samples=SAMPLES, seed=1, out=tmp_path).outcomes
    for name, key in (("expected_gap", "wide_gap"), ("polarized_regime", "kl")):
        assert other[name].values[key] != of_digits[name]["values"][key]
    everything = evaluate(digits, only=only, out=tmp_path)
    assert (everything.outcomes["expected_gap"].n, everything.outcomes["polarized_regime"].n) == (
        180,
        1617,
    )
    model, _ = load_model(digits)
    posterior = model.posterior(data.load("digits").train)
    kl = 0.5 * (posterior.mu**2 + posterior.logvar.exp() - posterior.logvar - 1).double()
    found = everything.outcomes["polarized_regime"].values["kl"]
    assert found == pytest.approx(float(kl.sum(1).mean()))
    assert "1617 train" in everything.table


def test_again_replaces_what_it_computes_and_nothing_else(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("mine")
    evaluate(digits, only=["latent_spectrum"], samples=20, out=tmp_path)
    before, picture = read(tmp_path), (tmp_path / "latent_spectrum.png").read_bytes()
    found = evaluate(digits, only=["active_units"], samples=20, out=tmp_path)
    assert "singular values" not in found.table
    # in the order of the catalogue, and as if both had been computed at once
    together = evaluate(
        digits, only=["latent_spectrum", "active_units"], samples=20, out=tmp_path / "both"
    )
    after = read(tmp_path)["diagnostics"]
    assert list(after) == list(read(tmp_path / "both")["diagnostics"])
    assert after["latent_spectrum"] == before["diagnostics"]["latent_spectrum"]
    assert (tmp_path / "table.txt").read_text() == together.table + "\n"
    assert (tmp_path / "latent_spectrum.png").read_bytes() == picture
    assert (tmp_path / "notes.png").read_text() == "mine"


def test_a_part_does_not_replace_an_evaluation_with_other_settings(
    digits: Path, tmp_path: Path
) -> None:
    evaluate(digits, only=["latent_spectrum"], samples=20, out=tmp_path)
    before = read(tmp_path)
    with pytest.raises(RunError, match=r"other settings \(seed: 0 -> 1\), of which 1 diag.*--out"):
        evaluate(digits, only=["active_units"], samples=20, seed=1, out=tmp_path)
    assert read(tmp_path) == before
    assert (tmp_path / "latent_spectrum.png").exists()
    # what looked at weights that are gone is not kept
    later = (digits / "model.safetensors").stat().st_mtime - 1
    os.utime(tmp_path / "evaluation.json", (later, later))
    evaluate(digits, only=["active_units"], samples=20, seed=1, out=tmp_path)
    assert list(read(tmp_path)["diagnostics"]) == ["active_units"]
    assert not (tmp_path / "latent_spectrum.png").exists()


# -- what goes wrong ---------------------------------------------------------------------------


def planted(name: str, error: BaseException, **fields: Any) -> Diagnostic:
    def fail(*arguments: object) -> Found:
        raise error

    return Diagnostic(name, "latents", "fails", fields.pop("compute", fail), "test", 5, **fields)


def test_a_diagnostic_that_fails_does_not_lose_the_others(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = next(row for row in DIAGNOSTICS if row.name == "active_units")

    def draw(*arguments: object) -> None:
        raise ValueError("picture must be drawn, got nothing; try again")

    rows = (
        planted("broken", RuntimeError("first words of a sentence; then the\n remedy")),
        planted(
            "half",
            ValueError(),
            compute=lambda subject, n: Found(n, {"number": math.inf}),
            lines=(Line("a number", "{number:.1f}"), Line("another", "{absent}")),
            figures={"half.png": draw},
        ),
        good,
    )
    monkeypatch.setattr(evaluating, "DIAGNOSTICS", rows)
    assert main(["evaluate", str(digits), "--samples", "20", "--out", str(tmp_path)]) == 0
    found = read(tmp_path)
    entries = found["diagnostics"]
    assert found["complete"] is True
    assert entries["broken"]["status"] == "failed"
    assert entries["broken"]["reason"] == "RuntimeError: first words of a sentence; then the remedy"
    assert entries["half"]["values"] == {"number": None}
    assert "picture must be drawn" in entries["half"]["failed_figures"]["half.png"]
    assert entries["active_units"]["status"] == "done"
    table = (tmp_path / "table.txt").read_text()
    assert "failed: RuntimeError: first words of a sentence\n" in table
    assert "not drawn: picture must be drawn, got nothing\n" in table
    assert re.search(r"a number +inf", table)
    assert "another" not in table
    assert "of 6" in table


def test_a_full_disk_ends_it(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RunError("no space left on the disk")
    monkeypatch.setattr(evaluating, "DIAGNOSTICS", (planted("full", error), *DIAGNOSTICS[:1]))
    with pytest.raises(RunError, match="no space left"):
        evaluate(digits, samples=20, out=tmp_path)


def test_nothing_that_works_is_exit_code_1(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluating, "DIAGNOSTICS", (planted("broken", ValueError("no")),))
    assert main(["evaluate", str(digits), "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "broken" in captured.out
    assert captured.err == "vaekern: no diagnostic could be computed; the table says why\n"


def test_too_few_samples_for_some(digits: Path, tmp_path: Path) -> None:
    found = evaluate(
        digits, only=["mutual_information", "decoder_orthogonality"], samples=1, out=tmp_path
    )
    assert found.outcomes["mutual_information"].status == "failed"
    assert "must hold at least 2 samples, got 1" in found.table
    entries = read(tmp_path)["diagnostics"]
    assert entries["decoder_orthogonality"]["values"]["full_standard_error"] is None  # NaN
    assert entries["decoder_orthogonality"]["values"]["full"] >= 0


def test_a_single_and_collapsed_dimension(make_config: Make, train: Train) -> None:
    run = train(make_config(latent_dim=1, stage1={"epochs": 1}, stage2={"epochs": 0}))
    with torch.no_grad():
        for parameter in run.model.stage1.encoder.parameters():
            parameter.zero_()
    run.trainer.save()
    only = ["decoder_orthogonality", "column_norm_product", "polarized_regime"]
    found = evaluate(run.path, only=only)
    assert found.outcomes["column_norm_product"].status == "skipped"
    assert re.search("column_norm_product +skipped: no latent dimension is active", found.table)
    assert "not drawn: one latent dimension has no gaps" in found.table
    assert found.outcomes["decoder_orthogonality"].figures == ["orthogonality.png"]
    # the encoder's standard deviation is softplus(0) = log 2
    kl = 0.5 * (math.log(2) ** 2 - 1) - math.log(math.log(2))
    assert found.outcomes["polarized_regime"].values["kl"] == pytest.approx(kl, rel=1e-4)


def test_ctrl_c_keeps_what_was_finished(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_name = {row.name: row for row in DIAGNOSTICS}
    first, last = by_name["active_units"], by_name["polarized_regime"]
    rows = (first, planted("stopped", KeyboardInterrupt()), last)
    monkeypatch.setattr(evaluating, "DIAGNOSTICS", rows)
    assert main(["evaluate", str(digits), "--samples", "20", "--out", str(tmp_path)]) == 130
    assert "interrupted; what was finished is kept" in capsys.readouterr().err
    found = read(tmp_path)
    assert found["complete"] is False
    assert list(found["diagnostics"]) == [first.name]
    assert "active units" in (tmp_path / "table.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("/nowhere", "is not a vaekern run .* give the directory that `vaekern train` wrote"),
        ("RUN --only activ_units", "no diagnostic 'activ_units'; did you mean 'active_units'?"),
        ("RUN --skip xyz", r"no diagnostic 'xyz'; `vaekern evaluate -h` lists"),
        ("RUN --only codes_tsne --skip codes_tsne", "leave no diagnostic"),
        ("RUN --samples 0", "samples must be at least 1, got 0"),
        ("RUN --seed -1", "seed must lie between"),
        ("RUN --out RUN", "holds a run, whose table would be lost; choose another --out"),
        ("RUN --bogus", "bogus.*see vaekern evaluate -h"),
        ("", "RUN"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    digits: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert main(["evaluate", *(str(digits) if w == "RUN" else w for w in words.split())]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vaekern: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_a_run_that_is_not_finished(make_config: Make) -> None:
    config = make_config(stage1={"epochs": 7})
    run = TrainingRun(config)
    run.start()
    with pytest.raises(RunError, match=r"holds no weights yet; finish it with .* --resume"):
        evaluate(run.path)
    run.trainer.save()
    with pytest.raises(RunError, match=r"not finished \(stage 1, epoch 0 of 7\); finish it with"):
        evaluate(run.path)
    assert not (run.path / "evaluation").exists()


def test_a_second_stage_that_stopped_early_or_not_at_all(make_config: Make, train: Train) -> None:
    only = ["maximum_mean_discrepancy"]
    stage2 = {"epochs": 400, "lr": 1e-9}  # whose loss goes up and down with the noise alone
    run = train(make_config(early_stopping=2, stage2=stage2))
    assert run.trainer.position.epoch < 400
    assert "u" in evaluate(run.path, only=only).outcomes[only[0]].values
    longer = TrainingRun(make_config(early_stopping=2, stage2=stage2), resume=True)
    assert longer.trainer.state.controls is not None
    assert longer.trainer.state.controls.stopping is not None
    longer.trainer.state.controls.stopping.stopped = False
    longer.trainer.save()
    assert "u" not in evaluate(run.path, only=only).outcomes[only[0]].values


def test_data_that_are_gone_or_others(make_config: Make, train: Train, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    np.save(path, x)
    run = train(make_config(data=f"npy:{path}", stage1={"epochs": 1}, stage2={"epochs": 0}))
    path.unlink()
    with pytest.raises(
        RunError, match=r"the data of .*run, npy:.*x.npy, cannot be read \(.*does not exist"
    ):
        evaluate(run.path)
    np.save(path, x[:20])
    with pytest.raises(RunError, match=r"is not the data that .* was trained on"):
        evaluate(run.path)


def test_a_directory_that_cannot_be_written(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write to .*; choose another directory with --out"):
        evaluate(digits, only=["active_units"], out=tmp_path / "file" / "below")


def test_help_lists_every_diagnostic(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "-h"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for row in DIAGNOSTICS:
        assert re.search(rf"^  {row.name} +{re.escape(row.summary)}$", output, re.MULTILINE)


def test_few_words_of_a_reason() -> None:
    assert few_words("short; remedy") == "short"
    assert few_words("x" * 100) == "x" * 57 + "..."


# -- which weights, which samples -----------------------------------------------------------------


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which a third was held out."""
    return trained(
        tmp_path_factory.mktemp("evaluate") / "validated",
        latent_dim=2,
        validation_fraction=0.3,
        lr_schedule="plateau",
        beta=0.05,  # so that nothing collapses
        stage1={"epochs": 4, "batch_size": 100, "lr": 0.01},
        stage2={"epochs": 1, "batch_size": 400},
    )


def test_held_out_samples_are_no_training_samples(
    validated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = data.load("digits").train
    _, rest = split(torch.arange(len(whole)), 0.3, seed=0)
    found = evaluate(validated, only=["polarized_regime"])
    outcome = found.outcomes["polarized_regime"]
    assert outcome.n == len(rest) == 1132
    assert "180 test and 1132 train samples" in found.table
    model, _ = load_model(validated)
    posterior = model.posterior(whole[rest])
    regime = polarized_regime(posterior.mu, posterior.logvar)
    assert outcome.values["delta_kl"] == pytest.approx(float(regime.delta_kl), rel=1e-5)
    scored = []

    def compute_scores(_: Any, whole: data.Dataset, train: Posterior, **settings: Any) -> None:
        scored.append((len(whole.train), train))
        raise RunError("enough")

    monkeypatch.setattr(report, "compute_scores", compute_scores)
    directory = RunDirectory(validated)
    with pytest.raises(RunError, match="enough"):
        report.report(model, data.load("digits"), directory.read_config(), directory)
    assert scored[0][0] == len(whole)  # the reference of the Frechet distances
    torch.testing.assert_close(scored[0][1].mu, posterior.mu)


def test_best_weights_are_those_after_the_best_epoch(validated: Path) -> None:
    directory = RunDirectory(validated)
    state, header = load_tensors(directory.best(1), MODEL)
    state["stage1.encoder.head.bias"] += 0.3  # so that they are no others' weights
    save_tensors(directory.best(1), state, MODEL, header)
    found = evaluate(validated, only=["polarized_regime"], weights="best")
    assert found.path == validated / "evaluation-best"
    numbers = read(found.path)
    assert (numbers["weights"], numbers["second_stage"]) == ("best", False)
    model, _ = load_model(validated, best_of_stage=1)
    last, _ = load_model(validated)
    _, rest = split(data.load("digits").train, 0.3, seed=0)
    deltas: list[float] = []
    for each in (model, last):
        posterior = each.posterior(rest)
        deltas.append(float(polarized_regime(posterior.mu, posterior.logvar).delta_kl))
    assert found.outcomes["polarized_regime"].values["delta_kl"] == pytest.approx(deltas[0])
    assert deltas[1] != pytest.approx(deltas[0])
    assert f"stage 1 after its best epoch, {header['epoch']}" in found.table
    with pytest.raises(ValueError, match="weights must be last or best, got 'first'"):
        evaluate(validated, weights="first")
