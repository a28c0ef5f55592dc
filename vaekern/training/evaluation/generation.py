"""What the model makes, beside real images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from vaekern import evaluation
from vaekern.evaluation import GenerationFeatures
from vaekern.evaluation.generation import OTHERS, RECONSTRUCTIONS
from vaekern.evaluation.kernel_distance import SUBSET_SIZE, SUBSETS
from vaekern.models import SAMPLERS
from vaekern.training.evaluation.row import Found, Line
from vaekern.training.evaluation.subject import Subject


def frechet_distances(subject: Subject, n: int) -> Found:
    """FID with Inception, otherwise FD-NAME: of reconstructions and of every sampler."""
    return _scored(subject, evaluation.frechet_scores, subject.extractor.frechet)


def kernel_distances(subject: Subject, n: int) -> Found:
    """KID with Inception, otherwise KD-NAME."""
    found = _scored(subject, evaluation.kernel_scores, subject.extractor.kernel)
    for name in found.values["samples"]:
        deviation, subsets = found.values.get(f"{name}_std"), f"{SUBSETS} subsets of {SUBSET_SIZE}"
        found.values[f"{name}_subsets"] = (
            "all images at once" if deviation is None else f"{subsets}: std {deviation:.5f}"
        )
    return found


def precision_recall(subject: Subject, n: int) -> Found:
    """How much of what is made looks real, and how much of what is real can be made."""
    return _scored(subject, evaluation.precision_recall_scores, "precision and recall")


def _scored(
    subject: Subject, score: Callable[[GenerationFeatures], dict[str, float]], metric: str
) -> Found:
    found, notes = subject.generation
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        numbers = score(found)
    values: dict[str, Any] = numbers | found.label() | {"metric": metric, "left_out": found.skipped}
    notes = [*notes, *(str(each.message) for each in caught)]
    if notes:
        values["note"] = "; ".join(notes)
    return Found(len(found.real), values, split=found.reference)


def frechet_lines() -> tuple[Line, ...]:
    """A line for each set of images."""
    remarks = {
        RECONSTRUCTIONS: "one draw of z each",
        **dict.fromkeys(SAMPLERS, ""),
        "interpolation": "mid-points of test codes",
        OTHERS: f"{{samples[{OTHERS}]}} real ones; fewer read higher",
    }
    first, *others = remarks
    return (
        Line(f"{{metric}}, {first}", f"{{{first}:.3f}}", "", remarks[first]),
        *(
            Line(f"  {name.replace('_', ' ')}", f"{{{name}:.3f}}", "", remarks[name])
            for name in others
        ),
    )


def sample_lines(label: str, value: str, remark: str) -> tuple[Line, ...]:
    """A line for the prior and the second stage, from templates; evaluation.json has all sets."""
    return tuple(
        Line(f"{label}, {name}", value.format(name=name), "", remark.format(name=name))
        for name in ("prior", "second-stage")
    )
