"""Sprites: a square, an ellipse or a heart with a scale, an orientation and a place.

The factors and their grid are those of dSprites (Matthey et al. 2017): 3 shapes x 6 scales x 40
orientations x 32 x 32 places, on 64x64 pixels. The outlines are drawn here from their equations, so
the pixels are not those of dSprites.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaekern.data.dataset import Dataset
from vaekern.data.generated import Synthetic, check_count, fixed_generator, generated_dataset
from vaekern.data.resize import fit_square
from vaekern.data.rows import Rows, Samples
from vaekern.data.source import ReadOptions
from vaekern.data.words import Word, numbers

SIDE = 64
GRID = (3, 6, 40, 32, 32)
ALL = math.prod(GRID)  # 737,280
FACTORS = ("shape", "scale", "orientation", "x", "y")
SHAPES = ("square", "ellipse", "heart")
NAMED_COUNT = 20_000
# The pixel in whose middle the first place lies. The 32 places are one pixel apart, so that a
# sprite is drawn once and stamped anywhere; a stamp reaches 13 pixels from its middle, and none
# leaves the image.
FIRST_PLACE, REACH = 16, 13
RADIUS = 9.0  # pixels, half of a square's side at scale 1
SUPERSAMPLING = 4  # antialiased pixels are the mean of 4x4 points


def sprites(
    n: int | None = None,
    *,
    antialias: bool = False,
    generator: torch.Generator | None = None,
) -> Synthetic:
    r"""Images of one white sprite on black, drawn from the 737,280 points of the grid of factors.

    A pixel is white where its centre p lies inside the sprite, that is where
    :math:`f(R_{-\theta} (p - c) / (9 s)) \le 0` with c the place, s the scale, theta the
    orientation and

    - square: :math:`f = \max(|a|, |b|) - 1`,
    - ellipse: :math:`f = a^2 + (2b)^2 - 1.4^2`,
    - heart: :math:`f = (a'^2 + b'^2 - 1)^3 - a'^2 b'^3`, with :math:`(a', b') = (a, b) / 0.95`.

    Args:
        n: how many different points of the grid, in random order; None is the whole grid in its
            order, the last factor fastest (12 GB of float32).
        antialias: pixels are the share of 4x4 points inside the sprite, not 0 or 1.
        generator: makes the choice of points reproducible.

    Returns:
        ``x`` [n, 1, 64, 64] in [0, 1] and ``factors`` [n, 5], float32: shape (0 square, 1 ellipse,
        2 heart), scale (0.5 to 1), orientation (0 to 2 pi, both of which are on the grid, as in
        dSprites, and look the same), x and y (0 to 1, left to right and top to bottom).

    Raises:
        TypeError: n is no whole number.
        ValueError: n below 1, or above the size of the grid.

    Example:
        >>> data = sprites(6, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, data.x.unique().tolist()
        (torch.Size([6, 1, 64, 64]), [0.0, 1.0])

    Source: Matthey et al. 2017, "dSprites: Disentanglement testing Sprites dataset", for the
    factors; used by Rolinek et al. 2019.
    """
    points = torch.arange(ALL) if n is None else _choose(n, generator)
    return Synthetic(_stamped(points, _stamps(antialias)), _factors(points))


class _SpriteRows(Rows):
    """Sprites that are drawn when they are asked for."""

    def __init__(self, points: Tensor, stamps: Tensor, image_size: int | None):
        self._points, self._stamps, self._size = points, stamps, image_size
        side = image_size or SIDE
        super().__init__((len(points), 1, side, side))

    def read(self, rows: Tensor) -> Tensor:
        return fit_square(_stamped(self._points[rows], self._stamps), self._size)


def _choose(n: int, generator: torch.Generator | None) -> Tensor:
    """Different points of the grid, in random order."""
    check_count(n, f"the grid has {ALL} points")
    if n > ALL:
        raise ValueError(f"n must be at most {ALL}, the points of the grid, got {n}; lower it")
    device = "cpu" if generator is None else generator.device
    return torch.randperm(ALL, generator=generator, device=device)[:n].cpu()


def _factors(points: Tensor) -> Tensor:  # [n, 5]
    """Of points of the grid, numbered in its order, the last factor fastest."""
    places = torch.stack(torch.unravel_index(points, GRID), dim=1).double()
    last = torch.tensor([size - 1 for size in GRID], dtype=torch.float64)
    shape, scale, orientation, x, y = (places / last).unbind(1)
    return torch.stack([2 * shape, 0.5 + scale / 2, 2 * math.pi * orientation, x, y], 1).float()


def _stamps(antialias: bool) -> Tensor:  # [3 * 6 * 40, 27, 27]
    """Every shape in every scale and orientation, in the order of the grid."""
    dense = SUPERSAMPLING if antialias else 1
    side = 2 * REACH + 1
    ticks = (torch.arange(side * dense) + 0.5) / dense - side / 2
    # the points of the grid at the first place
    corners = torch.arange(ALL).view(GRID)[..., 0, 0].flatten()
    _, scale, orientation, _, _ = _factors(corners)[:, :, None, None].unbind(1)
    cos, sin = orientation.cos() / (RADIUS * scale), orientation.sin() / (RADIUS * scale)
    along, down = ticks[None, None, :], ticks[None, :, None]
    # the heart's equation points up, rows of pixels go down
    a, b = cos * along + sin * down, sin * along - cos * down
    each = len(corners) // len(SHAPES)
    white = torch.cat(
        [
            inside(a[i * each : (i + 1) * each], b[i * each : (i + 1) * each])
            for i, inside in enumerate((_in_square, _in_ellipse, _in_heart))
        ]
    )
    return white.float().unflatten(2, (side, dense)).unflatten(1, (side, dense)).mean((2, 4))


def _stamped(points: Tensor, stamps: Tensor) -> Tensor:  # [n, 1, 64, 64]
    images = torch.zeros(len(points), SIDE, SIDE)
    window = torch.arange(-REACH, REACH + 1)
    for rows in torch.arange(len(points)).split(4096):
        some = points[rows]
        which, place = some // (GRID[3] * GRID[4]), some % (GRID[3] * GRID[4])
        xs = FIRST_PLACE + (place // GRID[4])[:, None] + window
        ys = FIRST_PLACE + (place % GRID[4])[:, None] + window
        images[rows[:, None, None], ys[:, :, None], xs[:, None, :]] = stamps[which]
    return images.unsqueeze(1)


def read_sprites(argument: str, options: ReadOptions) -> Dataset:
    """The same 20,000 points of :func:`sprites` at every call; ``sprites:N`` has N.

    They are drawn batch by batch where they would take too much memory, or on ``stream=True``.
    """
    return _read("sprites", argument, options, antialias=False)


def read_soft_sprites(argument: str, options: ReadOptions) -> Dataset:
    """As :func:`read_sprites`, with antialiased outlines."""
    return _read("soft-sprites", argument, options, antialias=True)


def _read(name: str, argument: str, options: ReadOptions, *, antialias: bool) -> Dataset:
    (n,) = numbers(name, argument, Word("N", int, NAMED_COUNT))
    points = _choose(int(n), fixed_generator())
    x: Samples = _SpriteRows(points, _stamps(antialias), options.image_size)
    if not options.streams(x.shape):
        x = x[:]
    factors = _factors(points)
    return generated_dataset(
        name,
        "image",
        x,
        factors,
        options,
        labels=factors[:, 0].long(),
        factor_names=FACTORS,
        class_factors=("shape",),
    )


def _in_square(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a.abs(), b.abs()) <= 1


def _in_ellipse(a: Tensor, b: Tensor) -> Tensor:
    return a.square() + (2 * b).square() <= 1.4**2


def _in_heart(a: Tensor, b: Tensor) -> Tensor:
    a, b = a / 0.95, b / 0.95
    round_part = a.square() + b.square() - 1
    return round_part * round_part * round_part <= a * a * b * b * b
