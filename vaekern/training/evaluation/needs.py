"""What some diagnostics ask of a run, and why they are skipped without it."""

from __future__ import annotations

import importlib.util

from vaekern.models.likelihoods import Likelihood
from vaekern.models.posterior import Full
from vaekern.training.evaluation.subject import Subject


def images(subject: Subject) -> str | None:
    """The data are images."""
    if subject.data.kind == "image":
        return None
    return "it shows images, and the data are vectors"


def factors(subject: Subject) -> str | None:
    """The true factors of variation are known."""
    if subject.data.test_factors is not None:
        return None
    return f"the factors of variation of {subject.data.name} are not known"


def stochastic(subject: Subject) -> str | None:
    """z has a variance given x."""
    return None if subject.vae.family.stochastic else "the encoder is deterministic"


def gaussian(subject: Subject) -> str | None:
    """q(z|x) is a Gaussian, or a point."""
    return None if subject.vae.family.closed_form else "q(z|x) is a flow's, and no Gaussian"


def diagonal(subject: Subject) -> str | None:
    """q(z|x) is a Gaussian with a diagonal covariance, or a point."""
    if isinstance(subject.vae.family, Full):
        return "q(z|x) has a full covariance"
    return gaussian(subject)


def likelihood(subject: Subject) -> str | None:
    """p(x|z) is a distribution of x."""
    loss = subject.vae.loss
    if isinstance(loss, Likelihood) and not loss.proper:
        return f"the decoder's {loss.name} is no likelihood"
    return None


def active_dimension(subject: Subject) -> str | None:
    """The posterior has not collapsed."""
    return None if bool(subject.active.any()) else "no latent dimension is active"


def features(subject: Subject) -> str | None:
    """There are images, and a network whose features they can be compared in."""
    data = subject.data
    if data.kind != "image":
        return "it compares images, and the data are vectors"
    if subject.has_extractor:
        return None
    if data.train_labels is None or data.test_labels is None or len(data.train_labels.unique()) < 2:
        return f"{data.name} has no classes to train a classifier on; give --inception FILE"
    return None


def torchmetrics(subject: Subject) -> str | None:
    """The package is installed."""
    if importlib.util.find_spec("torchmetrics") is not None:
        return None
    return "torchmetrics is not installed; pip install 'vaekern[eval]'"
