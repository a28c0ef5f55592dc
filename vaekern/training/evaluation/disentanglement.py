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
    seed = subject.generator.get_state()
    classes = subject.data.factor_is_class
    for name, method in (("knn", "knn"), ("published", "knn"), ("mig", "mig")):
        subject.generator.set_state(seed)  # one split of the samples for both forms
        found = diagnostics.disentanglement_score(
            part.mu.cpu(),
            part.factors,
            discrete=classes,
            method=method,  # type: ignore[arg-type]
            class_scale="accuracy" if name == "published" else "gain",
            generator=subject.generator,
        )
        values |= {
            name: float(found.score),
            f"{name}_per_factor": found.per_factor.tolist(),
            f"{name}_matrix": found.matrix.tolist(),
        }
    if classes is not None and any(classes):
        values["note"] = (
            f"with classes as the supplement has them, accuracy over that of the commonest: "
            f"{values['published']:.3f}"
        )
    return Found(n, values | {"factors": part.factors.shape[1]})


def latent_traversals(subject: Subject, n: int) -> Found:
    """The prior's mean with one dimension after the other moved, for the picture."""
    part = subject.part("train", n)
    return Found(n, {}, diagnostics.latent_traversals(subject.vae, part.mu, part.logvar))


def draw_traversals(subject: Subject, found: Found, path: Path) -> None:
    evaluation.latent_traversals_figure(found.detail, path)
