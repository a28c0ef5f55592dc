"""How strongly the decoder reacts to its code."""

from __future__ import annotations

from pathlib import Path

from vaekern import diagnostics, evaluation
from vaekern.models import interpolation_strips as decode_strips
from vaekern.training.evaluation.row import Found
from vaekern.training.evaluation.subject import Subject

NOISE_VARIANCES = {"wide": 1e-2, "narrow": 1e-3}  # both as in Takida et al.
PICTURES = 4
PAIRS = 8


def expected_local_smoothness(subject: Subject, n: int) -> Found:
    """ELS, with and without the division by d."""
    found = diagnostics.expected_local_smoothness(subject.vae, subject.part("test", n).mu)
    return Found(n, {name: float(value) for name, value in found._asdict().items()})


def expected_gap(subject: Subject, n: int) -> Found:
    """The gap of two noisy decodings, at both noise variances of the paper."""
    values: dict[str, float] = {}
    for place, variance in NOISE_VARIANCES.items():
        found = diagnostics.expected_gap(
            subject.vae, subject.part("test", n).mu, variance, generator=subject.generator
        )
        values |= {f"{place}_{name}": float(value) for name, value in found._asdict().items()}
        values[f"{place}_noise_variance"] = variance
    return Found(n, values)


def perturbed_codes(subject: Subject, n: int) -> Found:
    """A few test images, for the picture."""
    n = min(n, PICTURES)
    return Found(n, {}, subject.part("test", n))


def draw_perturbed_codes(subject: Subject, found: Found, path: Path) -> None:
    part, variances = found.detail, (0.001, 0.01, 0.1, 1.0)
    images = diagnostics.perturbed_codes(
        subject.vae, part.mu, variances, generator=subject.generator
    )
    decoded = subject.vae.decode_in_chunks(part.mu).cpu()
    evaluation.perturbed_codes_figure(part.x, decoded, images.cpu(), variances, path)


def interpolation_strips(subject: Subject, n: int) -> Found:
    """A few test images in two halves, paired, for the picture."""
    n = min(n, 2 * PAIRS) // 2 * 2
    if n < 2:
        raise ValueError(f"interpolation needs 2 samples at least, got {n}; look at more")
    return Found(n, {}, subject.part("test", n))


def draw_interpolation_strips(subject: Subject, found: Found, path: Path) -> None:
    part, half = found.detail, found.n // 2
    strips = decode_strips(subject.vae, part.mu[:half], part.mu[half:])
    evaluation.interpolation_figure(part.x[:half], strips, part.x[half:], path)
