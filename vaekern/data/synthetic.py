"""The two synthetic data sets of Rolinek et al.: a unit square embedded in more dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaekern._checks import positive
from vaekern.data.dataset import Dataset
from vaekern.data.generated import Synthetic, check_count, fixed_generator, generated_dataset
from vaekern.data.source import ReadOptions
from vaekern.data.words import Word, numbers

POINTS = 50_000
RATIO = 2.0
AXIS = (1.0, -1.0, 1.0)
ANGLE = math.pi / 4
HIDDEN, EMBEDDED = 10, 6
BIAS = 0.15


def synth_lin(
    n: int, scale_ratio: float = RATIO, *, generator: torch.Generator | None = None
) -> Synthetic:
    r"""Synth. Lin.: the unit square, one side stretched, turned in three dimensions.

    .. math:: x = R \, (r w_1, w_2, 0)^\top, \qquad w \sim U[0, 1]^2

    where r is ``scale_ratio`` and R turns by 45 degrees about the axis (1, -1, 1). The factors are
    the principal axes of the data where r is not 1, so a VAE should find them; at r = 1 every
    rotation of the square is as good and nothing singles them out.

    The paper says that the square is embedded linearly in three dimensions. The scaling, the turn
    and the number of points are as a reproduction quotes them from its supplement; that the first
    side is the stretched one and the turn right-handed are choices made here.

    Args:
        n: how many points; the paper has 50,000.
        scale_ratio: r, the lengths of the sides to one another.
        generator: makes the draws reproducible.

    Returns:
        ``x`` [n, 3] and ``factors`` [n, 2], float32.

    Raises:
        TypeError: n is no whole number, or scale_ratio no number.
        ValueError: n below 1, or scale_ratio not positive and finite.

    Example:
        >>> data = synth_lin(1000, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, int(torch.linalg.matrix_rank(data.x))
        (torch.Size([1000, 3]), 2)

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    section 5.1 and supplement B.
    """
    positive("scale_ratio", scale_ratio, "2 in the paper")
    factors = _unit_square(n, generator)
    flat = torch.cat([factors * factors.new_tensor([scale_ratio, 1.0]), factors.new_zeros(n, 1)], 1)
    return Synthetic((flat @ _turn().T).float(), factors.float())


def synth_nonlin(
    n: int, *, generator: torch.Generator | None = None, embedding_seed: int = 0
) -> Synthetic:
    r"""Synth. Non-Lin.: the unit square through a fixed random network into six dimensions.

    .. math:: x = W_2 \tanh(W_1 w + b_1) + b_2, \qquad w \sim U[0, 1]^2

    with ten hidden units. The paper says that the square is embedded non-linearly in six
    dimensions. The network's shape is as a reproduction quotes it from the supplement; that tanh
    follows the hidden layer only, weights N(0, 1 / inputs) and biases N(0, 0.15^2) are its
    assumptions, kept here.

    Args:
        n: how many points; the paper has 50,000.
        generator: makes the draws of the points reproducible.
        embedding_seed: of the network. The default is the same embedding at every call.

    Returns:
        ``x`` [n, 6] and ``factors`` [n, 2], float32.

    Raises:
        TypeError: n is no whole number.
        ValueError: n below 1.

    Example:
        >>> synth_nonlin(1000, generator=torch.Generator().manual_seed(0)).x.shape
        torch.Size([1000, 6])

    Source: Rolinek et al. 2019, "Variational autoencoders pursue PCA directions (by accident)",
    section 5.1 and supplement B.
    """
    factors = _unit_square(n, generator)
    embedding = torch.Generator().manual_seed(embedding_seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=embedding).to(factors.device)

    first, first_bias = normal(HIDDEN, 2) / math.sqrt(2), BIAS * normal(HIDDEN)
    second, second_bias = normal(EMBEDDED, HIDDEN) / math.sqrt(HIDDEN), BIAS * normal(EMBEDDED)
    hidden = torch.tanh(factors @ first.T + first_bias)
    return Synthetic((hidden @ second.T + second_bias).float(), factors.float())


def read_synth_lin(argument: str, options: ReadOptions) -> Dataset:
    """The same 50,000 points of :func:`synth_lin` at every call; :1.5 makes the ratio 1.5."""
    (ratio,) = numbers("synth-lin", argument, Word("RATIO", float, RATIO))
    name = "synth-lin" if ratio == RATIO else f"synth-lin-{ratio:g}"
    return _dataset(name, synth_lin(POINTS, ratio, generator=fixed_generator()), options)


def read_synth_nonlin(argument: str, options: ReadOptions) -> Dataset:
    """50,000 points of :func:`synth_nonlin`, the same at every call."""
    return _dataset("synth-nonlin", synth_nonlin(POINTS, generator=fixed_generator()), options)


def _dataset(name: str, data: Synthetic, options: ReadOptions) -> Dataset:
    options.without_image_size(name)
    return generated_dataset(name, "vector", *data, options, factor_names=("w_1", "w_2"))


def _unit_square(n: int, generator: torch.Generator | None) -> Tensor:
    check_count(n, f"the paper has {POINTS}")
    device = torch.device("cpu") if generator is None else generator.device
    return torch.rand(n, 2, dtype=torch.float64, device=device, generator=generator)


def _turn() -> Tensor:
    """Rodrigues' formula: I + sin K + (1 - cos) K^2 with K v = axis x v."""
    x, y, z = (value / math.hypot(*AXIS) for value in AXIS)
    K = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3).double() + math.sin(ANGLE) * K + (1 - math.cos(ANGLE)) * K @ K
