"""The docstrings' examples of every diagnostic run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import vaekern.diagnostics

PUBLIC = [
    module.name
    for module in pkgutil.iter_modules(vaekern.diagnostics.__path__)
    if not module.name.startswith("_")
]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_examples_run(name: str):
    results = doctest.testmod(importlib.import_module(f"vaekern.diagnostics.{name}"))
    assert results.failed == 0
    assert results.attempted > 0
