"""What is computed of a finished run. A new measure is a new row of `MEASURES`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vaekern.experiments.clock import FILE, read_epochs
from vaekern.experiments.finished import Finished
from vaekern.models.vae import CHUNK
from vaekern.training.evaluation import DIAGNOSTICS, Diagnostic
from vaekern.training.evaluation.subject import ENCODED, Subject

Measure = Callable[[Finished], Mapping[str, Any]]


class NotApplicable(ValueError):
    """A measure that means nothing for this run; the text says why."""


def report(run: Finished) -> Mapping[str, Any]:
    """metrics.json, where `vaekern train` ends, and the squared error summed over a sample."""
    if not run.directory.metrics.is_file():
        return {}  # it was left untrained
    metrics = run.metrics
    if "mse" not in metrics:
        return metrics
    return metrics | {"squared_error": metrics["mse"] * metrics["dimensions"]}


def training_time(run: Finished) -> Mapping[str, float]:
    """The median of stage 1's epochs in seconds, metrics and checkpoints included.

    The first of each piece that a run was trained in counts only where there is no other.
    """
    epochs = [each for each in read_epochs(run.directory.path / FILE) if each["stage"] == 1]
    later = [each["seconds"] for each in epochs if not each["first"]]
    seconds = later or [each["seconds"] for each in epochs]
    if not seconds:
        raise NotApplicable("its epochs were not timed")
    return {"seconds_per_epoch": statistics.median(seconds)}


def training_set(run: Finished) -> Mapping[str, float]:
    """Squared error of one draw of z, and the encoder's variance, over the training set."""
    subject = run.subject
    subject.begin("training_set")
    part = subject.part("train", subject.count("train", ENCODED))
    residual = (part.x - _reconstruct(subject, part.x)).double()
    return {
        "squared_error": float(residual.square().sum()) / len(part.x),
        "posterior_variance": float(part.logvar.double().exp().mean()),
    }


def noise_variances(run: Finished) -> Mapping[str, float]:
    """The mle estimate of the decoder's variance, its mean over each part of the noisy data.

    By split and partition, ``train_SU`` for one: what the objective makes of the squared residuals
    of one draw of z, over the whole split.

    Source: Takida et al. 2022, section 5.3.
    """
    data, objective = run.data, run.config.objective
    if data.noise is None:
        raise NotApplicable("the data hold no noise of a known place: noisy:PATTERN:VARIANCE:SPEC")
    if objective.estimate != "mle":
        raise NotApplicable(f"the {objective.estimate} variance is no estimate from residuals")
    subject = run.subject
    subject.begin("noise_variances")
    shared = [0] if objective.covariance.endswith("-i") else []  # over the images
    shared += [1, 2, 3] if objective.covariance.startswith("iso") else []  # over the pixels
    values: dict[str, float] = {}
    for split in ("train", "test"):
        x = getattr(data, split)
        variance = (x - _reconstruct(subject, x)).double().square()
        if shared:
            variance = variance.mean(shared, keepdim=True)
        means = data.noise.means(variance, split)
        values |= {f"{split}_{name}": mean for name, mean in means.items()}
    return values


def _reconstruct(subject: Subject, x: Tensor) -> Tensor:
    batches = (batch.to(subject.device) for batch in x.split(CHUNK))
    with torch.no_grad():
        parts = [subject.vae.reconstruct(b, generator=subject.generator).cpu() for b in batches]
    return torch.cat(parts)


def _of(diagnostic: Diagnostic) -> Measure:
    def measure(run: Finished) -> Mapping[str, Any]:
        subject = run.subject
        subject.begin(diagnostic.name)
        for need in diagnostic.needs:
            if (unmet := need(subject)) is not None:
                raise NotApplicable(unmet)
        n = subject.count(diagnostic.split, diagnostic.samples)
        return diagnostic.compute(subject, n).values

    return measure


#: By name. Every diagnostic of `vaekern evaluate` is one, under its own name.
MEASURES: dict[str, Measure] = {
    "report": report,
    "training_time": training_time,
    "training_set": training_set,
    "noise_variances": noise_variances,
    **{row.name: _of(row) for row in DIAGNOSTICS},
}


#: Those that compare images in features of a network: which one, and of what, is the user's choice.
IN_FEATURES = frozenset(row.name for row in DIAGNOSTICS if row.group == "generation")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values of a measure."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
