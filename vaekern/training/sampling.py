"""Samples of a trained run, as a picture and an array."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vaekern.data import Dataset, Samples
from vaekern.models import GaussianMixtureSampler, InterpolationSampler, TwoStageVAE
from vaekern.models.samplers import SAMPLERS, LatentSampler, latent_sampler
from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.storage.tensors import load_tensors, save_tensors
from vaekern.training.checkpoints import second_stage_is_trained
from vaekern.training.run import read_data
from vaekern.training.run_directory import RunDirectory, load_model

# More do not make a better picture; the array holds all of them.
PICTURE = 100
STRIPS = 8

STAGES = {1: "prior", 2: "second-stage"}
MIXTURE = "vaekern mixture of codes"


def save_samples(
    run: str | Path,
    *,
    n: int = 64,
    source: str | None = None,
    stage: int | None = None,
    seed: int = 0,
    out: str | None = None,
    weights: str = "last",
) -> list[Path]:
    """Write n samples of a run to OUT.npy, and the first of them to OUT.png.

    A mixture is fitted to the codes of the run's training set once and kept in the run, as
    gmm-10.safetensors or gmm-100.safetensors; it is fitted again where the weights have changed.
    An interpolation of images also writes OUT-strips.png: what lies on the arcs between the codes
    of pairs of test images.

    Args:
        run: the run directory.
        n: how many.
        source: of the latents, a name in `vaekern.models.SAMPLERS`; None takes the second stage
            where it was trained, else the prior.
        stage: instead of a source, 1 for the prior and 2 for the second stage.
        seed: of the latents.
        out: path without a suffix; inside the run directory by default.
        weights: "last", or "best" for the stage's weights after its best epoch in training.

    Returns:
        The files that were written.

    Raises:
        RunError: the directory is no run, a file is damaged, the second stage is not trained, or
            the data that a source needs are gone or others.
        ValueError: n below 1, or a source, a stage or weights of another name.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if weights not in ("last", "best"):
        raise ValueError(f"weights must be last or best, got {weights!r}")
    if source is not None and stage is not None:
        raise ValueError(f"give a source ({source}) or a stage ({stage}), not both")
    if stage is not None and stage not in STAGES:
        raise ValueError(f"stage must be 1 or 2, got {stage}")
    if source is not None and source not in SAMPLERS:
        raise ValueError(f"source must be one of {', '.join(SAMPLERS)}, got {source!r}")
    directory = RunDirectory(run)
    about = directory.read_description()["data"]
    trained = second_stage_is_trained(directory)
    source = source or STAGES.get(stage or (2 if trained else 1))
    assert source is not None
    if source == "second-stage" and not trained:
        raise RunError(
            f"the second stage of {directory.path} is not trained; sample with --from prior, "
            "or finish it with vaekern train --resume"
        )
    drawn_stage = 2 if source == "second-stage" else 1
    model, _ = load_model(run, best_of_stage=drawn_stage if weights == "best" else None)
    data = read_data(directory) if SAMPLERS[source].codes is not None else None
    base = _base(directory, out, source, seed, weights)
    sampler = _sampler(directory, source, model, data, weights)
    samples = sampler.sample(n, generator=torch.Generator().manual_seed(seed))

    array = base.with_name(base.name + ".npy")
    picture = base.with_name(base.name + ".png")
    content = io.BytesIO()
    np.save(content, samples.numpy(), allow_pickle=False)
    write_atomically(array, content.getvalue())

    from vaekern.evaluation.figures import sample_grid

    title = f"{about['name']}: samples from {SAMPLERS[source].summary}"
    sample_grid(samples[:PICTURE], picture, title)
    written = [picture, array]
    if isinstance(sampler, InterpolationSampler) and data is not None and data.kind == "image":
        written.append(_strips(sampler, data.test, base, seed))
    return written


def _base(directory: RunDirectory, out: str | None, source: str, seed: int, weights: str) -> Path:
    """Where the files go, without their suffixes."""
    stages = {name: f"stage{number}" for number, name in STAGES.items()}
    best = "" if weights == "last" else "-best"
    default = directory.path / f"samples-{stages.get(source, source)}-seed{seed}{best}"
    base = Path(out).expanduser() if out else default
    if base.suffix in (".png", ".npy"):
        base = base.with_suffix("")
    if not base.parent.is_dir():
        raise ValueError(
            f"out must name a file in an existing directory, but {base.parent} is none"
        )
    return base


def _sampler(
    directory: RunDirectory,
    source: str,
    model: TwoStageVAE,
    data: Dataset | None,
    weights: str,
) -> LatentSampler:
    x = None if data is None else getattr(data, SAMPLERS[source].codes or "")
    if SAMPLERS[source].codes != "train":
        return latent_sampler(source, model, x)
    path = directory.path / f"{source}{'' if weights == 'last' else '-best'}.safetensors"
    header = {"weights": _fingerprint(model.stage1)}
    if path.is_file():
        try:
            tensors, found = load_tensors(path, MIXTURE)
            if found == header:
                return GaussianMixtureSampler.from_tensors(model.stage1, tensors)
        except (RunError, KeyError, ValueError):
            pass  # damaged: what it held can be fitted again
    sampler = latent_sampler(source, model, x)
    assert isinstance(sampler, GaussianMixtureSampler)
    save_tensors(path, sampler.tensors(), MIXTURE, header)
    return sampler


def _fingerprint(module: nn.Module) -> str:
    """A digest of all weights: what a mixture was fitted under."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _strips(sampler: InterpolationSampler, x: Samples, base: Path, seed: int) -> Path:
    from vaekern.evaluation.decoder_figures import interpolation_figure
    from vaekern.models import interpolation_strips

    generator = torch.Generator().manual_seed(seed)
    first, second = sampler.pairs(STRIPS, generator=generator)
    strips = interpolation_strips(sampler.vae, sampler.codes[first], sampler.codes[second])
    path = base.with_name(base.name + "-strips.png")
    interpolation_figure(x[first], strips, x[second], path)
    return path
