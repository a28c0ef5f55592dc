"""Imports of packages that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, purpose: str, *, package: str | None = None, extra: str = "train") -> Any:
    """Import ``module``, or say in one sentence which extra of vaekern brings it.

    ``package`` is the name on the package index where it differs from the module's.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # the package is there, something it needs is not: that message is the better one
        name = package or module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{purpose} needs {name}, which is not installed; pip install 'vaekern[{extra}]'",
            name=error.name,
        ) from None
