"""report.html: a run on one page, readable without a network, a script or vaekern."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from vaekern.evaluation import html
from vaekern.evaluation.html import Picture
from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.training.config import STAGES, TrainConfig
from vaekern.training.run_directory import RunDirectory
from vaekern.training.table import score_note, score_rows

EVALUATION = "evaluation"  # the folder that `vaekern evaluate` writes


def write_page(run: str | Path) -> Path:
    """Write report.html into a run directory, from the files that lie in it; returns its path.

    The page holds the table, curves, reconstructions, samples of both stages, the spectra of
    latents and of encoder variances, and the settings and versions; where `vaekern evaluate` has
    left its folder, its table and pictures as well. It is one file: pictures are embedded.

    Args:
        run: the directory of a finished run.

    Raises:
        RunError: the run has no metrics.json yet, one of its files is damaged, or the page cannot
            be written.

    Example:
        >>> write_page("runs/digits-iso-i-mle")  # doctest: +SKIP
        PosixPath('runs/digits-iso-i-mle/report.html')
    """
    directory = RunDirectory(run)
    about, config = directory.read_description(), directory.read_config()
    try:
        metrics = json.loads(directory.metrics.read_text(encoding="utf-8"))
        content = _page(directory, about, config, metrics)
    except FileNotFoundError as error:
        raise RunError(
            f"{directory.path} holds no {Path(error.filename).name} yet; finish the run with "
            "vaekern train --resume"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"the numbers or pictures of {directory.path} are damaged ({reason}); write them again "
            "with vaekern train --resume"
        ) from error
    write_atomically(directory.page, content)
    return directory.page


def _page(
    directory: RunDirectory, about: dict[str, Any], config: TrainConfig, metrics: dict[str, Any]
) -> str:
    data = about["data"]
    shape = " x ".join(map(str, data["sample_shape"]))
    introduction = [
        f"{config.network.network}, {config.network.latent_dim} latent dimensions; "
        f"{data['train']} training and {data['test']} test samples of {shape}",
    ]
    vectors = data["kind"] != "image"
    shown = {
        picture.path.name: picture for picture in _figures(directory.figures, metrics, vectors)
    }
    records = list(metrics.items())
    return html.page(
        f"{data['name']}: {config.model.describe()}",
        introduction,
        [
            html.section("Numbers", html.number_table(score_rows(metrics), score_note(metrics))),
            html.section(
                "What it reconstructs and draws",
                html.pictures(
                    [
                        shown["reconstructions.png"],
                        shown["samples_stage1.png"],
                        shown["samples_stage2.png"],
                    ]
                ),
            ),
            html.section("How it was trained", html.pictures([shown["training.png"]])),
            html.section(
                "What the latents look like",
                html.pictures([shown["latent_spectrum.png"], shown["encoder_variances.png"]]),
            ),
            html.section("Evaluation", *_evaluation(directory)),
            html.section(
                "Settings",
                html.folded("Settings of the run", html.text_table(list(_flat(config)))),
                html.folded("Versions", html.text_table(_versions(about))),
                html.folded("All numbers", html.text_table(records)),
                f"<p>Load the model with <code>vaekern.models.TwoStageVAE.from_pretrained"
                f"(&quot;{escape(str(directory.path))}&quot;)</code>.</p>",
            ),
        ],
    )


def _figures(folder: Path, metrics: Mapping[str, Any], vectors: bool) -> Iterator[Picture]:
    yield Picture(
        folder / "reconstructions.png",
        "Samples of the test set beside their reconstructions; the mean squared error over the "
        f"whole set is {metrics['mse']:.4g} per dimension.",
        "Samples of the test set and their reconstructions, each through one draw of z.",
        wide=True,
    )
    distances = {1: "", 2: ""}
    if "fd_name" in metrics:
        for stage in distances:
            value = metrics.get(f"fd_stage{stage}", math.nan)
            distances[stage] = f"; their {metrics['fd_name']} is {value:.4g}"
    yield Picture(
        folder / "samples_stage1.png",
        f"Samples decoded from draws of the prior N(0, I){distances[1]}.",
        "Stage 1: z drawn from the prior.",
        wide=vectors,
    )
    yield Picture(
        folder / "samples_stage2.png",
        f"Samples decoded from latents that the second stage drew{distances[2]}.",
        "Stage 2: z drawn by the second stage.",
        wide=vectors,
    )
    units = metrics.get("active_units", metrics["active_units_std"])
    in_nats = " in nats" if "reconstruction_nats_per_dim" in metrics else ""
    sigma = (
        f"the decoder's sigma, which ends at {metrics['sigma']:.4g} on the test set, and "
        if "sigma" in metrics
        else "and "
    )
    yield Picture(
        folder / "training.png",
        f"Curves over the epochs of each stage: loss and its terms{in_nats} per dimension, squared "
        f"error, {sigma}active units, {units} of {metrics['latent_dim']} at the end.",
        "Loss, decoder's standard deviation and active units over the training.",
        wide=True,
        fine=True,
    )
    yield Picture(
        folder / "latent_spectrum.png",
        "Singular values of latents of the training set, beside those of as many draws from the "
        f"prior; MMD squared to the prior is {metrics['mmd_stage1']:.4g} for q(z)."
        + (f" For q(u) it is {metrics['mmd_stage2']:.4g}." if "mmd_stage2" in metrics else ""),
        "Latents that follow the prior lie on its curve.",
    )
    yield Picture(
        folder / "encoder_variances.png",
        "Mean encoder variance of each latent dimension, sorted, on a logarithmic scale: "
        f"{units} of {metrics['latent_dim']} dimensions are active.",
        "A dimension whose variance stays at the prior's, 1, carries nothing.",
    )


def _evaluation(directory: RunDirectory) -> list[str]:
    """The table and pictures of `vaekern evaluate`, where it has looked at these weights."""
    folder = directory.path / EVALUATION
    numbers, table = folder / "evaluation.json", folder / "table.txt"
    if not (numbers.is_file() and table.is_file()):
        return []
    if directory.model.is_file() and numbers.stat().st_mtime < directory.model.stat().st_mtime:
        return []  # the run went on after it
    shown = [
        Picture(folder / name, f"{html.sentence(name)}; the numbers are in the table above.")
        for outcome in json.loads(numbers.read_text(encoding="utf-8"))["diagnostics"].values()
        for name in outcome.get("figures", ())
        if not (directory.figures / name).is_file()  # shown above
    ]
    return [html.preformatted(table.read_text(encoding="utf-8").rstrip()), html.pictures(shown)]


def _flat(config: TrainConfig) -> Iterator[tuple[str, object]]:
    for name, value in config.to_flat().items():
        if name in STAGES:
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        else:
            yield name, "not set" if value is None else value


def _versions(about: Mapping[str, Any]) -> list[tuple[str, object]]:
    names = ("vaekern", "torch", "python", "system", "device")
    return [(name, about[name]) for name in names if name in about]
