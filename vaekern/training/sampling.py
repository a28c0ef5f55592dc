"""Samples of a trained run, as a picture and an array."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.training.checkpoints import second_stage_is_trained
from vaekern.training.run_directory import RunDirectory, load_model

# More do not make a better picture; the array holds all of them.
PICTURE = 100


def save_samples(
    run: str | Path,
    *,
    n: int = 64,
    stage: int | None = None,
    seed: int = 0,
    out: str | None = None,
    weights: str = "last",
) -> list[Path]:
    """Write n samples of a run to OUT.npy, and the first of them to OUT.png.

    Args:
        run: the run directory.
        n: how many.
        stage: 1 draws the latents from the prior, 2 from the second stage; None takes 2 where it
            was trained.
        seed: of the latents.
        out: path without a suffix; inside the run directory by default.
        weights: "last", or "best" for the stage's weights after its best epoch in training.

    Returns:
        The files that were written.

    Raises:
        RunError: the directory is no run, a file is damaged, or the second stage is not trained.
        ValueError: n below 1, or weights of another name.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if weights not in ("last", "best"):
        raise ValueError(f"weights must be last or best, got {weights!r}")
    directory = RunDirectory(run)
    directory.read_description()
    trained = second_stage_is_trained(directory)
    if stage == 2 and not trained:
        raise RunError(
            f"the second stage of {directory.path} is not trained; sample with --stage 1, "
            "or finish it with vaekern train --resume"
        )
    stage = stage or (2 if trained else 1)
    model, data = load_model(run, best_of_stage=stage if weights == "best" else None)
    generator = torch.Generator()
    generator.manual_seed(seed)
    samples = model.sample(n, stage=stage, generator=generator)

    base = Path(out).expanduser() if out else directory.path / _name(stage, seed, weights)
    if base.suffix in (".png", ".npy"):
        base = base.with_suffix("")
    if not base.parent.is_dir():
        raise ValueError(
            f"out must name a file in an existing directory, but {base.parent} is none"
        )
    array = base.with_name(base.name + ".npy")
    picture = base.with_name(base.name + ".png")
    content = io.BytesIO()
    np.save(content, samples.numpy(), allow_pickle=False)
    write_atomically(array, content.getvalue())

    from vaekern.evaluation.figures import sample_grid

    source = "the prior" if stage == 1 else "the second stage"
    sample_grid(samples[:PICTURE], picture, f"{data['name']}: samples from {source}")
    return [picture, array]


def _name(stage: int, seed: int, weights: str) -> str:
    return f"samples-stage{stage}-seed{seed}{'' if weights == 'last' else '-best'}"
