"""What a procedure is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Show = Callable[[str], None]


class Trained(NamedTuple):
    """What a procedure did."""

    seconds: float  # of the epochs
    epochs: int  # trained by this process, of both stages
    remarks: tuple[str, ...]  # sentences for the user
