"""A progress bar where somebody watches."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from vaekern._optional import require


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def update(self, n: int) -> None:
        pass


def progress_bar(
    total: int,
    description: str,
    show: bool | None,
    unit: str = " samples",
    *,
    abbreviate: bool = False,
) -> Any:
    """A context manager with ``update(n)``.

    ``show`` True asks for the bar, False for silence; None shows it where stderr is a terminal and
    tqdm is installed. ``abbreviate`` writes large counts as 1.50M.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        return _Silent()
    try:
        tqdm = require("tqdm", "a progress bar").tqdm
    except ModuleNotFoundError:
        if show is None:
            return _Silent()
        raise
    return tqdm(total=total, desc=description, unit=unit, unit_scale=abbreviate, dynamic_ncols=True)
