"""Whether the decoder's latent axes are orthogonal, and which of them it listens to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from vaekern import diagnostics, evaluation
from vaekern.training.evaluation.row import Found
from vaekern.training.evaluation.subject import Subject

ROTATIONS = 4000  # the standard error of their mean is then below 0.005
NEAR_ZERO = 0.5  # an eigenvalue below it belongs to a direction in use


def decoder_orthogonality(subject: Subject, n: int) -> Found:
    """Distance to orthogonality, and what chance would give."""
    part, active = subject.part("test", n), subject.active
    result = diagnostics.decoder_orthogonality(
        subject.vae,
        part.mu,
        active=active,
        baseline_samples=ROTATIONS,
        generator=_fixed(),
        progress=False,
    )
    values: dict[str, Any] = {
        "latent_dim": len(active),
        "active_dim": int(active.sum()),
        "random": result.baseline,
        "random_active": result.active_baseline,
        "random_off_diagonal": _mean_cosine(part.x[0].numel()),
        "column_norms": result.column_norms.tolist(),
        "singular_values": result.singular_values.mean(0).tolist(),
        "median_gaps": result.distances.gaps.median(0).values.tolist(),
    }
    for name in result.mean._fields:
        values[name] = getattr(result.mean, name)
        values[f"{name}_standard_error"] = getattr(result.standard_error, name)
    return Found(n, values, result.distances)


def _mean_cosine(dims: int) -> float:
    """E |cos| of two random directions."""
    return math.exp(math.lgamma(dims / 2) - math.lgamma((dims + 1) / 2)) / math.sqrt(math.pi)


def draw_orthogonality(subject: Subject, found: Found, path: Path) -> None:
    d, k = found.values["latent_dim"], found.values["active_dim"]
    some = 1 < k < d  # other panels would be the first one again, or a heap at 0
    generator = _fixed()  # the draws of the baselines, again
    everywhere = _rotations(d, generator) if d > 1 else None
    evaluation.orthogonality_figure(
        found.detail.full,
        path,
        active=found.detail.active if some else None,
        random=everywhere,
        random_active=_rotations(k, generator) if some else None,
    )


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _rotations(d: int, generator: torch.Generator) -> torch.Tensor:
    return diagnostics.random_rotation_baseline(d, ROTATIONS, generator=generator)


def draw_gaps(subject: Subject, found: Found, path: Path) -> None:
    if found.values["latent_dim"] == 1:
        raise ValueError("one latent dimension has no gaps")
    evaluation.singular_value_gaps_figure(found.detail.gaps, path)


def column_norm_product(subject: Subject, n: int) -> Found:
    """The product of the active columns' norms over their volume, also after random rotations."""
    part, active = subject.part("test", n), subject.active
    k = int(active.sum())  # at least 1: a need of its row
    logs, rotated = [], []
    for J in diagnostics.decoder_jacobian_chunks(subject.vae, part.mu):
        J = J[:, :, active].double()
        noise = torch.randn(
            len(J), k, k, dtype=J.dtype, device=J.device, generator=subject.generator
        )
        logs.append(diagnostics.column_norm_product(J).ratio.log())
        rotated.append(diagnostics.column_norm_product(J @ torch.linalg.qr(noise).Q).ratio.log())
    return Found(
        n,
        {
            "active_dim": k,
            "ratio": math.exp(float(torch.cat(logs).mean())),
            "rotated": math.exp(float(torch.cat(rotated).mean())),
        },
    )


def directional_variance(subject: Subject, n: int) -> Found:
    """How much the decoded sample varies along used and unused directions."""
    part = subject.part("test", n)
    result = diagnostics.directional_variance(
        subject.vae, part.mu, part.q.diagonal, scale_tril=part.q.scale_tril
    )
    used = result.eigenvalue < NEAR_ZERO
    values: dict[str, Any] = {"variance": result.variance.mean(0).tolist()}
    if bool(used.any()):
        values["active"] = float(result.variance[used].mean())
    if not bool(used.all()):
        values["passive"] = float(result.variance[~used].mean())
    return Found(n, values, result)


def draw_directions(subject: Subject, found: Found, path: Path) -> None:
    result = found.detail
    if subject.data.kind == "image":
        q = subject.part("test", found.n).q.take(slice(1))
        result = diagnostics.directional_variance(
            subject.vae, q.mu, q.diagonal, scale_tril=q.scale_tril, return_images=True
        )
    evaluation.directional_variance_figure(result, path)
