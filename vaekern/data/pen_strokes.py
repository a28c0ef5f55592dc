"""Generated digits: ten pen strokes, bent, tilted and drawn with pens of different width.

They stand in for a large set of handwritten digits where none may be downloaded. They are no
handwriting, and share no pixel with any data set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaekern.data.dataset import Dataset
from vaekern.data.generated import Synthetic, check_count, fixed_generator, generated_dataset
from vaekern.data.resize import fit_square
from vaekern.data.source import ReadOptions
from vaekern.data.words import Word, numbers

SIDE = 28
NAMED_COUNT = 20_000
FACTORS = ("digit", "tilt", "slant", "width", "height", "pen")
BOX = 18.0  # pixels, the height of a digit before it is scaled
STEP = 0.5  # pixels at most between two neighbouring dots of a path before it is bent
PIECES = 8  # straight pieces in which the length of a piece of a curve is measured
CHUNK = 256  # images drawn at a time

# The paths of the pen in a unit square, x to the right and y down. A path of two points is a line;
# longer ones are smooth curves through their points.
DIGITS: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = (
    (((0.5, 0.04), (0.28, 0.18), (0.2, 0.5), (0.28, 0.82), (0.5, 0.96), (0.72, 0.82), (0.8, 0.5),
      (0.72, 0.18), (0.5, 0.04)),),
    (((0.36, 0.24), (0.54, 0.04)), ((0.54, 0.04), (0.54, 0.96))),
    (((0.2, 0.28), (0.32, 0.09), (0.6, 0.06), (0.76, 0.24), (0.66, 0.5), (0.4, 0.75), (0.18, 0.95)),
     ((0.18, 0.95), (0.82, 0.95))),
    (((0.22, 0.14), (0.5, 0.04), (0.74, 0.2), (0.66, 0.4), (0.42, 0.47)),
     ((0.42, 0.47), (0.72, 0.56), (0.8, 0.74), (0.62, 0.93), (0.34, 0.95), (0.18, 0.82))),
    (((0.58, 0.05), (0.16, 0.64)), ((0.16, 0.64), (0.86, 0.64)), ((0.64, 0.36), (0.64, 0.96))),
    (((0.76, 0.06), (0.3, 0.06)), ((0.3, 0.06), (0.26, 0.44)),
     ((0.26, 0.44), (0.52, 0.37), (0.76, 0.5), (0.78, 0.74), (0.6, 0.93), (0.34, 0.95),
      (0.18, 0.84))),
    (((0.68, 0.05), (0.44, 0.2), (0.27, 0.45), (0.22, 0.7), (0.34, 0.91), (0.6, 0.94),
      (0.77, 0.76), (0.68, 0.56), (0.46, 0.52), (0.25, 0.66)),),
    (((0.18, 0.06), (0.82, 0.06)), ((0.82, 0.06), (0.58, 0.45), (0.44, 0.96))),
    (((0.5, 0.48), (0.29, 0.3), (0.33, 0.1), (0.5, 0.04), (0.67, 0.1), (0.71, 0.3), (0.5, 0.48),
      (0.23, 0.7), (0.29, 0.9), (0.5, 0.96), (0.71, 0.9), (0.77, 0.7), (0.5, 0.48)),),
    (((0.75, 0.32), (0.63, 0.09), (0.37, 0.09), (0.25, 0.3), (0.37, 0.5), (0.62, 0.49),
      (0.75, 0.3), (0.73, 0.6), (0.62, 0.96)),),
)  # fmt: skip
# Directions in which the plane is bent, in half waves across the digit.
WAVES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]) * math.pi


def strokes(n: int, *, generator: torch.Generator | None = None) -> Synthetic:
    r"""28x28 images of the digits 0 to 9 in equal shares, each drawn anew.

    The pen's path g of a digit, in a unit square with its centre at 0, becomes

    .. math:: 14 + 18 A (g + \sum_k a_k \sin(w_k^\top g + \phi_k)) + t

    with A a random tilt, slant, width and height, t a random shift, a_k and phi_k random too. The
    pen dots along it twice a pixel; a pixel at distance r from the nearest dot has the grey level
    clamp((pen + 1) / 2 - r, 0, 1): a pen of this width with an edge one pixel wide.

    Args:
        n: how many images.
        generator: makes them reproducible.

    Returns:
        ``x`` [n, 1, 28, 28] in [0, 1] and ``factors`` [n, 6], float32: digit, tilt (radians),
        slant, width, height (1 as drawn) and pen (pixels). How the plane is bent and where the
        digit lies is not among them.

    Raises:
        TypeError: n is no whole number.
        ValueError: n below 1.

    Example:
        >>> data = strokes(20, generator=torch.Generator().manual_seed(0))
        >>> data.x.shape, data.factors[:, 0].long().bincount().tolist()
        (torch.Size([20, 1, 28, 28]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    check_count(n, "10,000 and more make a data set")
    device = "cpu" if generator is None else generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(n, *shape, generator=generator, device=device).cpu()
        return low + (high - low) * drawn

    digit = torch.arange(n) % len(DIGITS)
    tilt, slant = uniform(-0.25, 0.25), uniform(-0.3, 0.3)
    width, height = uniform(0.75, 1.1), uniform(0.85, 1.1)
    pen, shift = uniform(1.4, 2.8), uniform(-1.5, 1.5, 2)
    size, phase = uniform(-0.035, 0.035, len(WAVES), 2), uniform(0, 2 * math.pi, len(WAVES))
    cos, sin = tilt.cos(), tilt.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    stretch = torch.stack([width, -slant, torch.zeros(n), height], 1).unflatten(1, (2, 2))
    affine = BOX * turn @ stretch  # [n, 2, 2]

    images = torch.empty(n, 1, SIDE, SIDE)
    for value in range(len(DIGITS)):
        path = _path(value)  # [P, 2]
        for some in (digit == value).nonzero().flatten().split(CHUNK):
            bent = path + torch.sin(path @ WAVES.T + phase[some, None]) @ size[some]
            placed = bent @ affine[some].mT + shift[some, None]
            reach = (pen[some, None] + 1) / 2
            images[some] = (reach - _distance(placed)).clamp(0, 1).unflatten(1, (1, SIDE, SIDE))
    return Synthetic(images, torch.stack([digit.float(), tilt, slant, width, height, pen], 1))


def read_strokes(argument: str, options: ReadOptions) -> Dataset:
    """The same 20,000 images of :func:`strokes` at every call; ``strokes:N`` has N."""
    (n,) = numbers("strokes", argument, Word("N", int, NAMED_COUNT))
    data = strokes(int(n), generator=fixed_generator())
    return generated_dataset(
        "strokes",
        "image",
        fit_square(data.x, options.image_size),
        data.factors,
        options,
        labels=data.factors[:, 0].long(),
        factor_names=FACTORS,
        class_factors=("digit",),
    )


def _path(digit: int) -> Tensor:  # [P, 2]
    """Dots along the path of the pen, in the unit square, centred at 0."""
    dots = []
    for points in DIGITS[digit]:
        corners = torch.tensor(points)
        line = _curve(corners, PIECES) if len(corners) > 2 else corners
        length = float((line[1:] - line[:-1]).norm(dim=1).sum()) * BOX
        steps = math.ceil(length / STEP / (len(corners) - 1))
        dots.append(_curve(corners, steps))
    return torch.cat(dots) - 0.5


def _curve(points: Tensor, steps: int) -> Tensor:
    """A Catmull-Rom curve: smooth, and through every point [P, 2]; a line through two."""
    closed = bool((points[0] == points[-1]).all())
    before = points[-2:-1] if closed else 2 * points[:1] - points[1:2]
    after = points[1:2] if closed else 2 * points[-1:] - points[-2:-1]
    a, b, c, d = torch.cat([before, points, after]).unfold(0, 4, 1).unbind(-1)
    t = (torch.arange(steps) / steps)[None, :, None]
    a, b, c, d = (each[:, None] for each in (a, b, c, d))
    curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return torch.cat([curve.flatten(0, 1), points[-1:]])


def _distance(dots: Tensor) -> Tensor:  # [n, P, 2], the middle of the image at 0 -> [n, 784]
    """From each pixel's centre to the nearest dot."""
    ticks = torch.arange(SIDE) + 0.5 - SIDE / 2
    pixels = torch.cartesian_prod(ticks, ticks).flip(1)  # [784, 2], x first
    # |p - q|^2 = |p|^2 - max(2 p q - |q|^2), whose maximum is a matrix product away
    twice = 2 * pixels.expand(len(dots), -1, -1)
    nearest = torch.baddbmm(-dots.square().sum(2)[:, None], twice, dots.mT)
    squares = pixels.square().sum(1) - nearest.amax(2)
    return squares.clamp_(min=0).sqrt_()
