"""The parts of an experiment by themselves."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import pytest
import torch

import vaekern.experiments
from vaekern.data import Dataset, add_noise
from vaekern.experiments.experiment import Column, Row
from vaekern.experiments.known_data import KNOWN, recognise
from vaekern.experiments.papers import Quoted
from vaekern.experiments.results import Results
from vaekern.experiments.statistics import Spread, spread


def test_examples() -> None:
    for module in pkgutil.iter_modules(vaekern.experiments.__path__):
        name = f"vaekern.experiments.{module.name}"
        assert doctest.testmod(importlib.import_module(name)).failed == 0, name


def test_spread_against_numpy_and_what_is_not_finite() -> None:
    import numpy as np

    values = [1e9 + 0.25, 1e9 + 0.5, 1e9 + 3.0]
    found = spread(values)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(values), rel=1e-15)
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert spread([math.nan, 2.0, math.inf]) == Spread(2.0, None, 1)
    assert spread([math.nan]) is None
    assert spread([]) is None


def test_the_papers_numbers_stand_beside_and_quoted_rows_below() -> None:
    rows = (Row("a", "A"), Row("b", "B"))
    columns = (Column("x", "X", "report", "x", ".1f"), Column("y", "Y", "report", "y"))
    paper = Quoted(
        "Them",
        "",
        {"a": {"x": Spread(3.0, 0.5, 0)}, "gan": {"x": Spread(2.0, None, 0)}},
        {"gan": "GAN"},
    )
    results = Results(rows, columns, (0, 1), paper)
    results.values = {("a", 0): {"x": 1.0}, ("a", 1): {"x": 2.0}, ("b", 0): {"x": 4.0}}
    from vaekern.experiments.table import _table

    assert _table(results) == [
        "|  | X | paper |",
        "| --- | ---: | ---: |",
        "| A | 1.5 ± 0.7 | 3.0 ± 0.5 |",
        "| B | 4.0 |  |",
        "| GAN (the paper's number only) |  | 2.0 |",
    ]


def test_data_are_recognised_by_what_they_hold() -> None:
    mean, (shape, count, *_) = 0.1307, KNOWN["mnist"]
    train = torch.full((count, *shape), mean)
    test = torch.zeros(10, *shape)
    assert recognise(Dataset("some-folder", "image", train, test)) == "mnist"
    assert recognise(Dataset("mnist", "image", train * 1.05, test)) is None
    assert recognise(Dataset("mnist", "image", train[1:], test)) is None
    noisy = add_noise(Dataset("mnist", "image", train, test), "uniform", 0.1)
    assert recognise(noisy) is None
    # known by the reader that crops them, not by their number alone
    for name, count in (
        ("celeba", 162_770),
        ("celeba140", 162_770),
        ("celeba-hq", 27_000),
        ("dsprites", 663_552),
    ):
        images = torch.zeros(1, *KNOWN[name].shape).expand(count, -1, -1, -1)
        assert recognise(Dataset(name, "image", images, images[:1])) == name
        assert recognise(Dataset("celeba160", "image", images, images[:1])) is None
    factors = torch.rand(4, 2)
    vectors = Dataset(
        "synth-lin", "vector", torch.rand(4, 3), torch.rand(2, 3), train_factors=factors
    )
    assert recognise(vectors) == "synth-lin"
