"""Mean and standard deviation over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean and sample standard deviation (divisor n - 1; None for one value) of n values."""

    mean: float
    std: float | None
    n: int

    def text(self, digits: str) -> str:
        """'mean ± std'."""
        mean = format(self.mean, digits)
        return mean if self.std is None else f"{mean} ± {format(self.std, digits)}"


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of the finite ones among some values; None where there is none.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, std=1.0, n=3)
        >>> spread([2.0]).text(".1f")
        '2.0'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    mean = math.fsum(finite) / len(finite)
    if len(finite) == 1:
        return Spread(mean, None, 1)
    squares = math.fsum((value - mean) ** 2 for value in finite)
    return Spread(mean, math.sqrt(squares / (len(finite) - 1)), len(finite))
