"""Networks are looked at in evaluation mode, and handed back as they came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluation_mode(*networks: Any) -> Iterator[None]:
    """Every module in evaluation mode inside the block; what is no module is passed over.

    Each submodule gets its own mode back: a frozen part of a network that trains stays frozen.
    """
    training = {
        part: part.training
        for network in networks
        if isinstance(network, nn.Module)
        for part in network.modules()
    }
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part, mode in training.items():
            part.training = mode
