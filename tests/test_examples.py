"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import vaekern.diagnostics
import vaekern.evaluation
import vaekern.models.networks

# Every public module of the first holds examples; of the others, those that say ">>>".
COMPLETE = (vaekern.diagnostics,)
OTHERS = (vaekern.models, vaekern.models.networks, vaekern.evaluation)


def has_examples(name: str) -> bool:
    return ">>>" in inspect.getsource(importlib.import_module(name))


def public_modules() -> Iterator[str]:
    for package in (*COMPLETE, *OTHERS):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            private = module.name.rpartition(".")[2].startswith("_")
            if private or module.ispkg:
                continue
            if package in COMPLETE or has_examples(module.name):
                yield module.name


@pytest.mark.parametrize("name", sorted(public_modules()))
def test_docstring_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert results.attempted > 0
