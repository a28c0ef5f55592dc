"""What a finished run is worth: the numbers, the table and the pictures."""

from __future__ import annotations

import json
from typing import Any

import torch

from vaekern import diagnostics
from vaekern.data import Dataset
from vaekern.evaluation import figures
from vaekern.models import TwoStageVAE
from vaekern.storage.files import write_atomically
from vaekern.training.config import TrainConfig
from vaekern.training.run_directory import RunDirectory
from vaekern.training.scores import compute_scores
from vaekern.training.trainer import derived_seed, polarized_regime

GRID = 64
PAIRS = 16
POINTS = 1000  # vectors are drawn as points or histograms, over as many of the data


@torch.no_grad()
def report(model: TwoStageVAE, data: Dataset, config: TrainConfig, directory: RunDirectory) -> str:
    """Write metrics.json, table.txt and figures/, and return the table.

    Raises:
        RunError: the disk is full.
    """
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator(device)
    generator.manual_seed(derived_seed(config.run.seed, 2, 3))
    two_stages = config.stage2.epochs > 0
    train = model.posterior(data.train)
    metrics = compute_scores(
        model, data, train, two_stages=two_stages, seed=config.run.seed, generator=generator
    )
    tracker = polarized_regime(directory)
    if tracker.step:
        metrics["polarized_training_percent"] = 100 * tracker.share
    write_atomically(directory.metrics, json.dumps(metrics, indent=2) + "\n")
    _draw(model, data, train.logvar, two_stages, directory, generator)
    table = make_table(metrics, config, data)
    write_atomically(directory.table, table + "\n")
    return table


def _draw(
    model: TwoStageVAE,
    data: Dataset,
    logvar: torch.Tensor,
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
    spectrum = diagnostics.encoder_variance_spectrum(logvar)
    figures.encoder_variance_figure(spectrum, folder / "encoder_variances.png")


def make_table(metrics: dict[str, Any], config: TrainConfig, data: Dataset) -> str:
    """The short table that ends a run."""
    two_stages = "mmd_stage2" in metrics
    objective = config.objective
    rows = [
        ("NLL bound, test", metrics["nll_nats_per_dim"], "nats/dim"),
        ("  of it KL", metrics["kl_nats_per_dim"], "nats/dim"),
        ("sigma", metrics["sigma"], ""),
        ("MSE, test", metrics["mse"], "per dim"),
        ("active units", f"{metrics['active_units']} of {metrics['latent_dim']}", ""),
    ]
    if "polarized_training_percent" in metrics:
        percent = metrics["polarized_training_percent"]
        share = f"below 3% in the last {percent:.1f}% of training" if percent else "polarized: < 3%"
        rows.append(("Delta_KL, training set", f"{metrics['delta_kl']:.1%}", share))
    rows.append(("MMD^2 of q(z) to N(0, I)", metrics["mmd_stage1"], "stage 1"))
    if two_stages:
        rows.append(("MMD^2 of q(u) to N(0, I)", metrics["mmd_stage2"], "stage 2"))
    if "fd_name" in metrics:
        name = metrics["fd_name"]
        rows.append((f"{name} of reconstructions", metrics["fd_reconstructions"], ""))
        rows.append((f"{name} of samples", metrics["fd_stage1"], "stage 1"))
        if two_stages:
            rows.append((f"{name} of samples", metrics["fd_stage2"], "stage 2"))
        rows.append((f"{name} of test images", metrics["fd_test_images"], "for scale"))
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"{data.name}: {objective.covariance}, {objective.estimate}, {config.network.network}, "
        f"{config.network.latent_dim} latent dimensions"
    ]
    for name, value, unit in rows:
        text = value if isinstance(value, str) else f"{value:.4f}"
        lines.append(f"  {name:<{width}}  {text:>9}  {unit}".rstrip())
    if "fd_name" in metrics:
        lines.append(
            f"  ({metrics['fd_name']}: Frechet distance to {metrics['fd_samples']} training images "
            "in the features of a small"
        )
        lines.append(
            f"  classifier, test accuracy {metrics['fd_classifier_accuracy']:.1%}; lower is better)"
        )
    return "\n".join(lines)
