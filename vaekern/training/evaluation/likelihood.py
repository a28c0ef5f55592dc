"""How likely the test set is, and what its reconstructions miss."""

from __future__ import annotations

import math

import torch

from vaekern import diagnostics
from vaekern.models.likelihoods import LogisticMixture
from vaekern.training.evaluation.row import Found
from vaekern.training.evaluation.subject import Subject

IMPORTANCE_SAMPLES = 500  # as in Takida et al., table 7
DRAWS = 10  # of z for every x


def importance_weighted_nll(subject: Subject, n: int) -> Found:
    """-log p(x) of the test set, and the ELBO beside it."""
    part = subject.part("test", n)

    def bound(samples: int) -> torch.Tensor:
        return diagnostics.importance_weighted_nll(
            subject.vae, part.x, samples=samples, generator=subject.generator, progress=False
        )

    nll, elbo = bound(IMPORTANCE_SAMPLES), bound(1)
    dims = part.x[0].numel()
    loss, note = subject.vae.loss, {}
    if isinstance(loss, LogisticMixture):
        offset = dims * math.log(loss.levels - 1)
        note["note"] = (
            f"of {loss.levels} grey levels, no density: beside a Gaussian decoder's it counts as "
            f"{float(nll.mean()) - offset:.2f}"
        )
    return Found(
        n,
        note
        | {
            "k": IMPORTANCE_SAMPLES,
            "nll": float(nll.mean()),
            "nll_standard_error": _standard_error(nll),
            "nll_per_dim": float(nll.mean()) / dims,
            "negative_elbo": float(elbo.mean()),
            "negative_elbo_standard_error": _standard_error(elbo),
            "negative_elbo_per_dim": float(elbo.mean()) / dims,
        },
    )


def reconstruction_losses(subject: Subject, n: int) -> Found:
    """The squared error, split; a chunk of Jacobians at a time."""
    part = subject.part("test", n)
    sums = torch.zeros(4, dtype=torch.float64)
    done = 0
    for J in diagnostics.decoder_jacobian_chunks(subject.vae, part.mu):
        x = part.x[done : done + len(J)]
        losses = diagnostics.reconstruction_losses(
            subject.vae, x, draws=DRAWS, jacobian=J, generator=subject.generator
        )
        sums += len(x) * torch.stack([loss for loss in losses if loss is not None])
        done += len(x)
    names = diagnostics.ReconstructionLosses._fields
    values = dict(zip(names, (sums / n).tolist(), strict=True))
    dims = part.x[0].numel()
    return Found(n, values | {f"{name}_per_dim": value / dims for name, value in values.items()})


def _standard_error(values: torch.Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
