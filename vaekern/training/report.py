"""What a finished run is worth: the numbers, the table and the pictures."""

from __future__ import annotations

import json

import torch

from vaekern import diagnostics
from vaekern.data import Dataset
from vaekern.data.rows import at_most
from vaekern.evaluation import figures
from vaekern.evaluation.latent_figures import latent_spectrum_figure
from vaekern.models import Posterior, TwoStageVAE
from vaekern.storage.files import write_atomically
from vaekern.training.board import Board
from vaekern.training.checkpoints import polarized_regime
from vaekern.training.config import TrainConfig
from vaekern.training.page import write_page
from vaekern.training.run_directory import RunDirectory
from vaekern.training.scores import compute_scores
from vaekern.training.seeds import derived_seed
from vaekern.training.sources import trained_on
from vaekern.training.table import make_table

GRID = 64
PAIRS = 16
ENCODED = 50_000  # training samples behind the numbers, where the set stays on disk
POINTS = 1000  # vectors are drawn as points or histograms, over as many of the data


@torch.no_grad()
def report(model: TwoStageVAE, data: Dataset, config: TrainConfig, directory: RunDirectory) -> str:
    """Write metrics.json, table.txt, figures/ and report.html, and return the table.

    What it says of the encoder on the training set leaves out the samples that were held out for
    validation. The Frechet distances compare with all of the set, whatever was held out: it stands
    there for the data, and one reference serves every run.

    Raises:
        RunError: the disk is full.
    """
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator(device)
    generator.manual_seed(derived_seed(config.run.seed, 2, 3))
    two_stages = config.stage2.epochs > 0
    train = model.posterior(at_most(trained_on(data, config).train, ENCODED))
    metrics = compute_scores(
        model, data, train, two_stages=two_stages, seed=config.run.seed, generator=generator
    )
    tracker = polarized_regime(directory)
    if tracker.step and "delta_kl" in metrics:
        metrics["polarized_training_percent"] = 100 * tracker.share
    write_atomically(directory.metrics, json.dumps(metrics, indent=2) + "\n")
    _draw(model, data, train, two_stages, directory, generator)
    table = make_table(metrics, config, data)
    write_atomically(directory.table, table + "\n")
    write_page(directory.path)
    board = Board(directory.path)
    board.add_pictures(directory.figures)
    board.close()
    return table


def _draw(
    model: TwoStageVAE,
    data: Dataset,
    train: Posterior,
    two_stages: bool,
    directory: RunDirectory,
    generator: torch.Generator,
) -> None:
    folder = directory.figures
    originals = data.test[: PAIRS if data.kind == "image" else POINTS].to(generator.device)
    reconstructions = model.reconstruct(originals, generator=generator)
    figures.reconstruction_grid(
        originals.cpu(), reconstructions.cpu(), folder / "reconstructions.png"
    )
    titles = {1: "Samples from the prior", 2: "Samples from the second stage"}
    behind = None if data.kind == "image" else data.train[:POINTS]
    for stage in (1, 2) if two_stages else (1,):
        samples = model.sample(GRID if behind is None else POINTS, stage=stage, generator=generator)
        path = folder / f"samples_stage{stage}.png"
        figures.sample_grid(samples.cpu(), path, titles[stage], data=behind)
    records = [json.loads(line) for line in directory.log.read_text().splitlines()]
    figures.training_curves(records, folder / "training.png")
    family = model.stage1.family
    if family.stochastic and family.closed_form:
        spectrum = diagnostics.encoder_variance_spectrum(
            train.diagonal, scale_tril=train.scale_tril
        )
        figures.encoder_variance_figure(spectrum, folder / "encoder_variances.png")
    z = train.sample(generator=generator)
    latents = {"q(z), stage 1": z}
    if two_stages:
        u = model.stage2.posterior(z).sample(generator=generator)
        latents["q(u), stage 2"] = u
    latent_spectrum_figure(
        {
            name: diagnostics.latent_spectrum(each, normalized=True, generator=generator)
            for name, each in latents.items()
        },
        folder / "latent_spectrum.png",
        normalized=True,
    )
