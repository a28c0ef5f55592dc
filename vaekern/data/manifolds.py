"""Manifolds of known dimension: a Gaussian in R^r, mapped smoothly and injectively."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaekern.data.dataset import Dataset, Kind
from vaekern.data.generated import Synthetic, check_count, fixed_generator, generated_dataset
from vaekern.data.source import ReadOptions
from vaekern.data.words import Word, numbers

POINTS, IMAGES = 50_000, 10_000
SIDE = 24
BEND = 1.5  # how fast the sines turn, in radians per standard deviation
# Of a spot, in cells of the grid: its deviation, and how far its centre moves to either side.
SPOT, REACH = 0.12, 0.16


def manifold(
    n: int,
    r: int = 5,
    d: int = 20,
    *,
    generator: torch.Generator | None = None,
    embedding_seed: int = 0,
) -> Synthetic:
    r"""Points of a curved r-dimensional manifold in R^d.

    .. math:: x = Q \begin{pmatrix} u \\ \sin(1.5\, W u + b) \end{pmatrix}, \qquad u \sim N(0, I_r)

    with p = min(r, d - r) sines, W [p, r] of rows of length 1, and Q [d, r + p] of orthonormal
    columns, all fixed by ``embedding_seed``. It is smooth, and injective because Q^T x begins with
    u; the singular values of its Jacobian lie between 1 and 1 + 1.5 |W|.

    Args:
        n: how many points.
        r: dimension of the manifold.
        d: dimension of the space, at least r; with d = r nothing is bent.
        generator: makes the draws of the points reproducible.
        embedding_seed: of the manifold. The default is the same one at every call.

    Returns:
        ``x`` [n, d] and ``factors`` u [n, r], float32.

    Raises:
        TypeError: a number that is not whole.
        ValueError: n or r below 1, or d below r.

    Example:
        >>> data = manifold(1000, 2, 10, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, int(torch.linalg.matrix_rank(data.x))
        (torch.Size([1000, 10]), 4)

    Source: Dai & Wipf 2019, "Diagnosing and enhancing VAE models", section 2.2, for the setting;
    the map is made here.
    """
    u = _gaussian(n, r, generator)
    if isinstance(d, bool) or not isinstance(d, int) or d < r:
        raise ValueError(f"d must be a whole number, at least r = {r}, got {d!r}; raise it")
    embedding = torch.Generator().manual_seed(embedding_seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=embedding)

    p = min(r, d - r)
    W = torch.nn.functional.normalize(normal(p, r), dim=1)
    b = 2 * math.pi * torch.rand(p, dtype=torch.float64, generator=embedding)
    Q = torch.linalg.qr(normal(d, r + p)).Q
    flat = torch.cat([u, torch.sin(BEND * u @ W.T + b)], 1)
    return Synthetic((flat @ Q.T).float(), u.float())


def manifold_images(
    n: int,
    r: int = 2,
    *,
    size: int = SIDE,
    generator: torch.Generator | None = None,
) -> Synthetic:
    r"""Images of bright spots whose places are r Gaussian coordinates.

    The image is a grid of ceil(r / 2) cells with one spot in each, whose place is two of the
    coordinates (one, where r is odd, in the last cell):

    .. math:: x(p) = \sum_k \exp\big(-|p - c_k(u)|^2 / 2 w^2\big), \qquad
        c_k(u) = m_k + 0.16\, l\, \mathrm{erf}\big( \sqrt 2\, (u_{2k}, u_{2k+1}) \big)

    with m_k the middle of the cell, l its side and w = 0.12 l. It is smooth, and injective because
    erf is and the spots stay in their cells. The places crowd at the ends of their range: their
    distribution within the manifold is far from Gaussian in every linear measure of the image, so
    that a model has to learn it.

    Args:
        n: how many images.
        r: dimension of the manifold.
        size: side of the images in pixels.
        generator: makes the draws reproducible.

    Returns:
        ``x`` [n, 1, size, size] in [0, 1] and ``factors`` u [n, r], float32.

    Raises:
        TypeError: a number that is not whole.
        ValueError: n or r below 1, or cells of less than 6 pixels.

    Example:
        >>> manifold_images(10, 5, generator=torch.Generator().manual_seed(0)).x.shape
        torch.Size([10, 1, 24, 24])

    Source: Dai & Wipf 2019, "Diagnosing and enhancing VAE models", section 2.2, for the setting;
    the map is made here.
    """
    u = _gaussian(n, r, generator)
    cells = (r + 1) // 2
    columns = math.ceil(math.sqrt(cells))
    side = size / columns
    if side < 6:
        raise ValueError(
            f"size must be at least {6 * columns} pixels, for {cells} spots, got {size}; raise it, "
            f"or lower r"
        )
    moved = REACH * side * torch.erf(math.sqrt(2) * u)
    ticks = torch.arange(size, dtype=torch.float64) + 0.5
    images = torch.zeros(n, 1, size, size)
    rows = math.ceil(cells / columns)
    for k in range(cells):
        # fewer rows than columns leave a margin above and below
        top = size / 2 + (k // columns + 0.5 - rows / 2) * side
        left = (k % columns + 0.5) * side
        down = moved[:, 2 * k + 1] if 2 * k + 1 < r else torch.zeros(n)
        across, along = left + moved[:, 2 * k], top + down
        profile_x = torch.exp(-((ticks - across[:, None]) ** 2) / (2 * (SPOT * side) ** 2))
        profile_y = torch.exp(-((ticks - along[:, None]) ** 2) / (2 * (SPOT * side) ** 2))
        images[:, 0] += profile_y[:, :, None].float() * profile_x[:, None, :].float()
    return Synthetic(images.clamp_(0, 1), u.float())


def read_manifold(argument: str, options: ReadOptions) -> Dataset:
    """50,000 points of :func:`manifold`, the same at every call."""
    r, d = numbers("manifold", argument, Word("R", int, 5), Word("D", int, 20))
    options.without_image_size("manifold")
    data = manifold(POINTS, int(r), int(d), generator=fixed_generator())
    return _dataset(f"manifold-{r}-{d}", "vector", data, options)


def read_manifold_images(argument: str, options: ReadOptions) -> Dataset:
    """10,000 images of :func:`manifold_images`, the same at every call, drawn in any size."""
    r, n = numbers("manifold-images", argument, Word("R", int, 2), Word("N", int, IMAGES))
    size = options.image_size or SIDE
    data = manifold_images(int(n), int(r), size=size, generator=fixed_generator())
    return _dataset(f"manifold-images-{r}", "image", data, options)


def _dataset(name: str, kind: Kind, data: Synthetic, options: ReadOptions) -> Dataset:
    names = tuple(f"u_{i + 1}" for i in range(data.factors.shape[1]))
    return generated_dataset(name, kind, *data, options, factor_names=names)


def _gaussian(n: int, r: int, generator: torch.Generator | None) -> Tensor:
    check_count(n, "10,000 and more make a data set")
    if isinstance(r, bool) or not isinstance(r, int):
        raise TypeError(f"r must be a whole number of dimensions, got {r!r}; pass an int")
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}; it is the manifold's dimension")
    device = "cpu" if generator is None else generator.device
    return torch.randn(n, r, dtype=torch.float64, generator=generator, device=device).cpu()
