"""What all experiments here leave out."""

from __future__ import annotations

import pytest

from vaekern.training import report


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of each run, which take ten times as long as so short a training.

    tests/training and tests/test_cli.py look at them.
    """
    monkeypatch.setattr(report, "_draw", lambda *arguments: None)
