"""vaekern: fused, exact losses and two-stage models for Gaussian variational autoencoders."""

from __future__ import annotations

from typing import Any

from . import backends, functional
from ._version import __version__
from .nn import GaussianVAELoss, LossComponents

__all__ = ["GaussianVAELoss", "LossComponents", "__version__", "backends", "functional"]


def __getattr__(name: str) -> Any:
    # models, data and training come with the [train] extra and are imported only when asked for
    if name in ("models", "data", "diagnostics", "evaluation", "linalg", "training"):
        import importlib

        return importlib.import_module(f"vaekern.{name}")
    raise AttributeError(f"module 'vaekern' has no attribute {name!r}")
