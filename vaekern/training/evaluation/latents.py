"""What the encoder makes of the training set, and whether its latents follow the prior."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import torch

from vaekern import diagnostics, evaluation
from vaekern.diagnostics.latents import Definition
from vaekern.training.evaluation.row import Found
from vaekern.training.evaluation.subject import Subject

DRAWS = 5  # of z and of the prior, over which a discrepancy is averaged
NAMES = {"z": "q(z), stage 1", "u": "q(u), stage 2"}


def active_units(subject: Subject, n: int) -> Found:
    """The dimensions in use, by each definition."""
    part, family = subject.part("train", n), subject.vae.family
    definitions: tuple[Definition, ...] = ("std", "variance")
    logvar = None
    if family.stochastic and family.closed_form:
        definitions, logvar = ("posterior", *definitions), part.logvar
    units = {
        definition: diagnostics.active_units(part.mu, logvar, definition=definition)
        for definition in definitions
    }
    values: dict[str, Any] = {name: found.active for name, found in units.items()}
    values |= {f"{name}_mask": found.mask.tolist() for name, found in units.items()}
    return Found(n, values | {"latent_dim": subject.vae.latent_dim})


def polarized_regime(subject: Subject, n: int) -> Found:
    """Delta_KL."""
    part = subject.part("train", n)
    regime = diagnostics.polarized_regime(part.mu, part.logvar)
    return Found(
        n,
        {
            "delta_kl": float(regime.delta_kl),
            "kl": float(regime.kl),
            "active_kl": float(regime.active_kl),
            "active": regime.active,
            "mean_squared_mu": regime.mean_squared_mu.tolist(),
            "mean_variance": regime.mean_variance.tolist(),
        },
    )


def encoder_variance_spectrum(subject: Subject, n: int) -> Found:
    """Mean encoder variances of used and unused dimensions."""
    q = subject.part("train", n).q
    spectrum = diagnostics.encoder_variance_spectrum(q.diagonal, scale_tril=q.scale_tril)
    values: dict[str, Any] = {
        "active": spectrum.active,
        "passive": spectrum.passive,
        "variance": spectrum.variance.tolist(),
        "order": spectrum.order.tolist(),
    }
    used, unused = spectrum.variance[: spectrum.active], spectrum.variance[spectrum.active :]
    if len(used):
        values |= {"active_lowest": float(used[0]), "active_highest": float(used[-1])}
    if len(unused):
        values |= {"passive_lowest": float(unused[0]), "passive_highest": float(unused[-1])}
    return Found(n, values)


def encoder_variance_histogram(subject: Subject, n: int) -> Found:
    """The dimension of the manifold on which the data lie."""
    q = subject.part("train", n).q
    histogram = diagnostics.encoder_variance_histogram(q.diagonal, scale_tril=q.scale_tril)
    values = {
        "manifold_dimension": histogram.manifold_dimension,
        "counts": histogram.counts.tolist(),
        "edges": histogram.edges.tolist(),
        "above": histogram.above,
    }
    return Found(n, values, histogram)


def draw_variance_histogram(subject: Subject, found: Found, path: Path) -> None:
    evaluation.encoder_variance_histogram_figure(found.detail, path)


def mutual_information(subject: Subject, n: int) -> Found:
    """How much a code tells of its input."""
    part = subject.part("train", n)
    found = diagnostics.mutual_information(part.mu, part.logvar, generator=subject.generator)
    values = {name: float(value) for name, value in found._asdict().items()}
    return Found(n, values | {"log_n": math.log(n)})


def maximum_mean_discrepancy(subject: Subject, n: int) -> Found:
    """How far q(z) and q(u) are from the prior, each the mean of a few draws with its error.

    Beside them what the same mean is off by where the samples are the prior's own.
    """

    def mmd(samples: torch.Tensor) -> float:
        return float(diagnostics.maximum_mean_discrepancy(samples, generator=subject.generator))

    found: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        drawn = subject.aggregate_posterior(n)
        drawn["prior"] = subject.vae.sample_prior(n, generator=subject.generator)
        for name, samples in drawn.items():
            found.setdefault(name, []).append(mmd(samples))
    squares = sum(value**2 for value in found.pop("prior"))
    values = {"prior": math.sqrt(squares) / DRAWS}
    for name, each in found.items():
        values[name] = statistics.fmean(each)
        values[f"{name}_error"] = statistics.stdev(each) / math.sqrt(DRAWS)
    return Found(n, values)


def latent_spectrum(subject: Subject, n: int) -> Found:
    """Singular values of samples of q(z) and q(u) beside those of the prior."""
    values: dict[str, Any] = {}
    spectra = {}
    for name, samples in subject.aggregate_posterior(n).items():
        spectrum = diagnostics.latent_spectrum(
            samples, normalized=True, generator=subject.generator
        )
        spectra[NAMES[name]] = spectrum
        values |= {
            name: spectrum.singular_values.tolist(),
            f"{name}_lowest": float(spectrum.singular_values[-1]),
            f"{name}_highest": float(spectrum.singular_values[0]),
            "prior": spectrum.reference.tolist(),
            "prior_lowest": float(spectrum.reference[-1]),
            "prior_highest": float(spectrum.reference[0]),
        }
    return Found(n, values, spectra)


def draw_latent_spectrum(subject: Subject, found: Found, path: Path) -> None:
    evaluation.latent_spectrum_figure(found.detail, path, normalized=True)


def codes_tsne(subject: Subject, n: int) -> Found:
    """Samples of q(z) and of the prior, for the picture."""
    # samples and not means: along unused dimensions the means lie at 0, where no z does
    z = subject.aggregate_posterior(n)["z"]
    prior = subject.vae.sample_prior(n // 3, generator=subject.generator) if n >= 3 else None
    return Found(n, {}, (z, prior))


def draw_codes(subject: Subject, found: Found, path: Path) -> None:
    z, prior = found.detail
    labels = subject.part("train", found.n).labels
    evaluation.codes_tsne(z, path, labels=labels, prior=prior)
