"""How orthogonal a decoder is over a data set, one chunk of Jacobians at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaekern.diagnostics._checks import check_samples
from vaekern.diagnostics._decoders import Output
from vaekern.diagnostics._progress import progress_bar
from vaekern.diagnostics.jacobian import MEMORY_BUDGET, Mode, decoder_jacobian_chunks
from vaekern.diagnostics.orthogonality import (
    OrthogonalityDistance,
    check_active,
    measure,
    random_rotation_baseline,
)

BASELINE_SAMPLES = 1000  # the standard error of the mean is then below 0.01


class OrthogonalitySummary(NamedTuple):
    """One number for each distance of :class:`DecoderOrthogonality`."""

    full: float
    active: float
    off_diagonal: float


class DecoderOrthogonality(NamedTuple):
    """Result of :func:`decoder_orthogonality`; tensors are float64 and on the CPU."""

    distances: OrthogonalityDistance  # of every sample: full, active, off_diagonal [N], gaps
    mean: OrthogonalitySummary  # over the samples
    standard_error: OrthogonalitySummary  # of the mean
    singular_values: Tensor  # [N, d], descending
    column_norms: Tensor  # [d]: mean over the samples
    baseline: float  # mean distance of random rotations in d dimensions
    active_baseline: float  # the same in as many dimensions as are active, mean over the samples


@torch.no_grad()
def decoder_orthogonality(
    decoder: Any,
    z: Tensor,  # [N, d]
    *,
    active: Tensor | None = None,  # [d] or [N, d] bool
    output: Output = "mean",
    mode: Mode = "auto",
    chunk_size: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    baseline_samples: int = BASELINE_SAMPLES,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> DecoderOrthogonality:
    r"""Distance to orthogonality of a decoder at every latent, and what chance would give.

    .. math::

        \mathrm{DtO} = \frac{1}{N} \sum_n \| V_n - P(V_n) \|_F, \qquad
        J(z_n) = U_n \Sigma_n V_n^\top

    A VAE with a diagonal encoder drives the columns of the decoder's Jacobian to be orthogonal at
    the encoder's means, a plain autoencoder does not: read ``mean.full`` beside ``baseline``, and
    ``mean.active`` beside ``active_baseline``. See :func:`distance_to_orthogonality` for why there
    are several distances. No more than one chunk of Jacobians exists at a time.

    Args:
        decoder, z, output, mode, chunk_size, memory_budget: as in :func:`decoder_jacobian`;
            z = mu(x) of a test set, as published.
        active: the active dimensions, for all samples or for each; None means all.
        baseline_samples: random rotations drawn for each baseline.
        generator: of these draws; a CPU one. By default they are the same at every call.
        progress: a bar on stderr; by default where stderr is a terminal.

    Returns:
        See :class:`DecoderOrthogonality`. Distances have no unit; singular values and norms are in
        units of x_hat per unit of z. The standard errors are NaN for a single sample.

    Raises:
        TypeError, ValueError, NotImplementedError: as in :func:`decoder_jacobian`; ValueError too
            where a Jacobian is not finite, and for ``active`` of another shape.

    Example:
        >>> decoder = torch.nn.Linear(2, 3)
        >>> with torch.no_grad():
        ...     _ = decoder.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        >>> result = decoder_orthogonality(decoder, torch.randn(100, 2))
        >>> result.mean.full, result.column_norms.tolist(), round(result.baseline, 1)
        (0.0, [2.0, 1.0], 0.5)

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    equation 29 and table 2.
    """
    check_samples("z", z)
    check_active(active, len(z), z.shape[1], z.device)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    baselines = _Baselines(baseline_samples, generator)
    baseline = baselines.mean(z.shape[1])
    chunks = decoder_jacobian_chunks(
        decoder,
        z,
        output=output,
        mode=mode,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    )
    distances: list[OrthogonalityDistance] = []
    spectra: list[Tensor] = []
    lengths_sum = torch.zeros(z.shape[1], dtype=torch.float64)
    done = 0
    with progress_bar(len(z), "Jacobians", progress) as bar:
        for J in chunks:
            rows = slice(done, done + len(J))
            _check_finite(J, done)
            masks = active if active is None or active.dim() == 1 else active[rows]
            distance, singular, lengths = measure(J, masks)
            distances.append(OrthogonalityDistance(*(part.cpu() for part in distance)))
            spectra.append(singular.cpu())
            lengths_sum += lengths.sum(0).cpu()
            bar.update(len(J))
            done = rows.stop
            del J  # before the next one is made
    joined = OrthogonalityDistance(*map(torch.cat, zip(*distances, strict=True)))
    summarised = joined[:3]
    return DecoderOrthogonality(
        joined,
        OrthogonalitySummary(*(float(values.mean()) for values in summarised)),
        OrthogonalitySummary(*map(_standard_error, summarised)),
        torch.cat(spectra),
        lengths_sum / len(z),
        baseline,
        _active_baseline(active, baseline, baselines),
    )


class _Baselines:
    """The mean of the random baseline in k dimensions, drawn once for each k."""

    def __init__(self, samples: int, generator: torch.Generator):
        self.samples, self.generator = samples, generator

    def mean(self, k: int) -> float:
        if k < 2:
            return 0.0
        return float(random_rotation_baseline(k, self.samples, generator=self.generator).mean())


def _active_baseline(active: Tensor | None, baseline: float, baselines: _Baselines) -> float:
    if active is None:
        return baseline
    d = active.shape[-1]
    counts = active.reshape(-1, d).sum(1).cpu()
    values, repeats = counts.unique(return_counts=True)
    total = sum(
        int(repeat) * (baseline if k == d else baselines.mean(int(k)))
        for k, repeat in zip(values, repeats, strict=True)
    )
    return total / len(counts)


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _check_finite(J: Tensor, first: int) -> None:
    """Name the sample by its place in z, not in the chunk."""
    finite = torch.isfinite(J).flatten(1).all(1)
    if not finite.all():
        raise ValueError(
            f"the Jacobian of decoder must be finite, but at z[{first + int(finite.int().argmin())}"
            "] it holds NaN or infinity; look for a diverged model"
        )
