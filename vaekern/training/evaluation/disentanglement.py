"""What each latent dimension stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vaekern import diagnostics, evaluation
from vaekern.training.evaluation.row import Found
from vaekern.training.evaluation.subject import Subject


def disentanglement_score(subject: Subject, n: int) -> Found:
    """The gap between the best and the second best latent of each factor, by both methods."""
    part = subject.part("test", n)
    assert part.factors is not None  # a need of its row
    values: dict[str, Any] = {}
    for method in ("knn", "mig"):
        found = diagnostics.disentanglement_score(
            part.mu.cpu(),
            part.factors,
            discrete=subject.data.factor_is_class,
            method=method,  # type: ignore[arg-type]
            generator=subject.generator,
        )
        values |= {
            method: float(found.score),
            f"{method}_per_factor": found.per_factor.tolist(),
            f"{method}_matrix": found.matrix.tolist(),
        }
    return Found(n, values | {"factors": part.factors.shape[1]})


def latent_traversals(subject: Subject, n: int) -> Found:
    """The prior's mean with one dimension after the other moved, for the picture."""
    part = subject.part("train", n)
    return Found(n, {}, diagnostics.latent_traversals(subject.vae, part.mu, part.logvar))


def draw_traversals(subject: Subject, found: Found, path: Path) -> None:
    evaluation.latent_traversals_figure(found.detail, path)
