"""Does each factor of variation have a latent dimension of its own?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vaekern._checks import option
from vaekern._optional import require
from vaekern.diagnostics._checks import check_samples

HELD_OUT = 0.2  # of the samples, to measure the nearest-neighbour predictions on


class DisentanglementScore(NamedTuple):
    """Result of :func:`disentanglement_score`."""

    score: Tensor  # [] float64: the mean of per_factor
    per_factor: Tensor  # [F] float64: best less second best of each row of matrix
    matrix: Tensor  # [F, d] float64: how much of factor i the latent dimension j tells


@torch.no_grad()
def disentanglement_score(
    codes: Tensor,  # [N, d]
    factors: Tensor,  # [N, F]
    *,
    discrete: bool | Sequence[bool] | Tensor | None = None,
    method: Literal["knn", "mig"] = "knn",
    neighbours: int = 5,
    class_scale: Literal["gain", "accuracy"] = "gain",
    bins: int = 20,
    generator: torch.Generator | None = None,
) -> DisentanglementScore:
    r"""Gap between the latent dimension that tells most about a factor and the second best.

    .. math:: \mathrm{score} = \frac{1}{F} \sum_{i=1}^F \big( A_{i j_i} - \max_{j \ne j_i} A_{ij}
        \big), \qquad j_i = \arg\max_j A_{ij}

    - ``"knn"`` (Rolinek et al.): a 5-nearest-neighbour prediction of factor w_i from the single
      latent z_j learns from 80 % of the samples, drawn at random, and is measured on the others.
      For a continuous factor :math:`A_{ij} = 1 - \mathrm{RMSE}_{ij} / \mathrm{sd}(w_i)`. For a
      discrete one, whose most frequent class has the share c, ``class_scale="gain"`` is the same
      idea, :math:`A_{ij} = (\mathrm{accuracy}_{ij} - c) / (1 - c)`: 0 for the best constant
      prediction, 1 for a perfect one. ``"accuracy"`` is :math:`\mathrm{accuracy}_{ij} / c`, as the
      paper's supplement is reported to have it; its gaps can exceed 1 and are clipped there, which
      many small classes soon reach. A is floored at 0, where a prediction is worse than a constant.
    - ``"mig"`` (Chen et al.), the mutual information gap: :math:`A_{ij} = I(w_i; z_j) / H(w_i)`,
      both from the counts of a joint table. Codes and continuous factors go into ``bins`` bins of
      equal width. Empirical information is positive for independent variables too, by some
      (bins - 1)(classes - 1) / 2N nats.

    Args:
        codes: [N, d] latents, for example encoder means.
        factors: [N, F] true factors, floating point, integer or bool.
        discrete: which factors are classes: one bool for all, or one for each. By default integers
            and bools are classes, floating-point factors are continuous.
        method: ``"knn"`` or ``"mig"``.
        neighbours: of ``"knn"``.
        class_scale: of discrete factors in ``"knn"``.
        bins: of ``"mig"``.
        generator: makes the split of ``"knn"`` reproducible.

    Returns:
        The score in [0, 1], the gap of each factor [F], and A [F, d]; float64, without a unit. A
        constant latent tells nothing: it counts as the best constant prediction, and as no
        information. With d = 1 the second best is such a latent.

    Raises:
        ValueError: shapes or sizes that do not fit, values that are not finite, a factor that is
            constant, too few samples, or an unknown option.
        TypeError: codes that are no floating-point tensor, or factors that are no real tensor.
        ModuleNotFoundError: ``"knn"`` without scikit-learn.

    Example:
        >>> factors = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
        >>> rotated = factors @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
        >>> aligned = disentanglement_score(factors, factors).score
        >>> bool(aligned > 0.95), bool(disentanglement_score(rotated, factors).score < 0.2)
        (True, True)

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    section 5.2 and supplement B.1; Chen et al. 2018, "Isolating sources of disentanglement in
    variational autoencoders", section 4, with the bins of Locatello et al. 2019, "Challenging
    common assumptions in the unsupervised learning of disentangled representations".
    """
    check_samples("codes", codes)
    classes = _check_factors(codes, factors, discrete)
    option("method", method, ("knn", "mig"))
    option("class_scale", class_scale, ("gain", "accuracy"))
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}; the paper takes 5")
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}; 20 is usual")
    codes = codes.double()
    columns = [
        _labels(column) if is_class else column.double()
        for column, is_class in zip(factors.unbind(1), classes, strict=True)
    ]
    if method == "mig":
        matrix, nothing = _information(codes, columns, bins), 0.0
    else:
        train, test = _split(len(codes), neighbours, generator)
        matrix = _predictability(codes, columns, train, test, neighbours, class_scale)
        nothing = 1.0 if class_scale == "accuracy" else 0.0
    matrix = matrix.to(codes.device)
    if matrix.shape[1] == 1:
        second = torch.tensor([nothing if c else 0.0 for c in classes], dtype=torch.float64)
        gap = matrix[:, 0] - second.to(matrix.device)
    else:
        best = matrix.topk(2, dim=1).values
        gap = best[:, 0] - best[:, 1]
    gap = gap.clamp(0, 1)
    return DisentanglementScore(gap.mean(), gap, matrix)


def _check_factors(
    codes: Tensor, factors: Tensor, discrete: bool | Sequence[bool] | Tensor | None
) -> list[bool]:
    """Whether each factor is a class, once all is in order."""
    if isinstance(factors, Tensor) and factors.is_complex():
        raise TypeError(f"factors must be real, got {factors.dtype}; pass .real and .imag")
    whole = isinstance(factors, Tensor) and not factors.is_floating_point()
    check_samples("factors", factors.double() if whole else factors)
    if len(factors) != len(codes):
        raise ValueError(
            f"factors must hold one row per code, got {len(factors)} and {len(codes)}; "
            "pass the factors of the encoded samples in their order"
        )
    if factors.device != codes.device:
        raise ValueError(
            f"factors must be on the device of codes, got {factors.device} and {codes.device}; "
            "move one with .to()"
        )
    constant = (factors == factors[0]).all(0)
    if bool(constant.any()):
        raise ValueError(
            f"factors must vary, got a constant in column {int(constant.nonzero()[0])}; "
            "leave that column out"
        )
    count = factors.shape[1]
    if discrete is None or isinstance(discrete, bool):
        return [whole if discrete is None else discrete] * count
    chosen = [bool(value) for value in discrete]
    if len(chosen) != count:
        raise ValueError(
            f"discrete must be one bool or one for each factor, got {len(chosen)} for {count} "
            "factors; leave it out to go by the type"
        )
    return chosen


def _labels(column: Tensor) -> Tensor:
    """Classes as int64 from 0, whatever their values are."""
    return torch.unique(column, return_inverse=True)[1]


def _split(count: int, neighbours: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    held_out = max(1, round(HELD_OUT * count))
    if count - held_out < neighbours:
        raise ValueError(
            f"codes must leave {neighbours} samples, one per neighbour, after {HELD_OUT:.0%} are "
            f"held out, got {count} in all; pass more samples"
        )
    device = "cpu" if generator is None else generator.device
    rows = torch.randperm(count, generator=generator, device=device).cpu()
    return rows[held_out:], rows[:held_out]


def _predictability(
    codes: Tensor,
    columns: list[Tensor],
    train: Tensor,
    test: Tensor,
    neighbours: int,
    class_scale: str,
) -> Tensor:  # [F, d]
    """A of nearest-neighbour predictions; one search per latent serves all factors."""
    purpose = 'disentanglement_score with method="knn"'
    search = require("sklearn.neighbors", purpose, package="scikit-learn")
    stats = require("scipy.stats", purpose)
    latents = codes.cpu().numpy()
    targets = [column.cpu().numpy() for column in columns]
    rows, held_out = train.numpy(), test.numpy()
    matrix = torch.empty(len(columns), codes.shape[1], dtype=torch.float64)
    for j in range(codes.shape[1]):
        z = latents[:, j : j + 1]
        near = None
        if z.min() < z.max():  # all neighbours of a constant are equally near
            finder = search.NearestNeighbors(n_neighbors=neighbours).fit(z[rows])
            near = rows[finder.kneighbors(z[held_out], return_distance=False)]  # [held out, k]
        for i, (column, w) in enumerate(zip(columns, targets, strict=True)):
            if column.is_floating_point():
                relative = 1.0
                if near is not None:
                    error = w[near].mean(1) - w[held_out]
                    relative = (error**2).mean() ** 0.5 / w.std()
                matrix[i, j] = max(0.0, 1 - relative)
                continue
            accuracy = share = float(column.bincount().max()) / len(column)
            if near is not None:
                accuracy = float((stats.mode(w[near], axis=1).mode == w[held_out]).mean())
            gain = max(0.0, (accuracy - share) / (1 - share))
            matrix[i, j] = gain if class_scale == "gain" else accuracy / share
    return matrix


def _information(codes: Tensor, columns: list[Tensor], bins: int) -> Tensor:  # [F, d]
    """I(w_i; z_j) / H(w_i) from counts."""
    tables = [_bins(column, bins) if column.is_floating_point() else column for column in columns]
    matrix = codes.new_empty(len(columns), codes.shape[1])
    for j in range(codes.shape[1]):
        z = _bins(codes[:, j], bins)
        for i, w in enumerate(tables):
            entropy = _entropy(w)
            matrix[i, j] = (entropy + _entropy(z) - _entropy(w * bins + z)) / entropy
    return matrix.clamp_(0, 1)  # rounding, where there is no information or no other


def _bins(values: Tensor, bins: int) -> Tensor:
    """Which of ``bins`` intervals of equal width between the smallest and the largest value."""
    low, high = values.aminmax()
    if low == high:
        return torch.zeros_like(values, dtype=torch.int64)
    # halves keep the range finite where its ends are the largest numbers there are
    place = (values / 2 - low / 2) / (high / 2 - low / 2) * bins
    return place.long().clamp_(max=bins - 1)


def _entropy(labels: Tensor) -> Tensor:
    share = labels.bincount().double() / len(labels)
    return torch.special.entr(share).sum()
