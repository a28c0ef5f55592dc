"""What some diagnostics ask of a run, and why they are skipped without it."""

from __future__ import annotations

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


def active_dimension(subject: Subject) -> str | None:
    """The posterior has not collapsed."""
    return None if bool(subject.active.any()) else "no latent dimension is active"
