"""Every experiment that is listed: its rows can be built, its columns can be computed."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from vaekern.experiments import EXPERIMENTS, describe_experiments
from vaekern.experiments.figures import FIGURES
from vaekern.experiments.measures import MEASURES
from vaekern.experiments.papers import quoted
from vaekern.experiments.plan import make_plan
from vaekern.experiments.procedures import PROCEDURES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_are_settings_and_columns_are_measures(name: str) -> None:
    experiment = EXPERIMENTS[name]
    plan = make_plan(
        name, EXPERIMENTS, data=None, seeds=1, out="x", rows=None, epochs=1, settings={},
        device="auto",
    )  # fmt: skip
    assert len({row.name for row in experiment.rows}) == len(experiment.rows)
    assert len({column.name for column in experiment.columns}) == len(experiment.columns)
    for row in experiment.rows:
        config = plan.config(row, 0)
        assert config.stage1.epochs == 1
        assert row.procedure in PROCEDURES
        assert experiment.row(row.run_name).run is None
        assert row.baseline is None or experiment.row(row.baseline)
    assert {column.measure for column in experiment.columns} <= set(MEASURES)
    assert set(experiment.figure_columns) <= {column.name for column in experiment.columns}
    assert set(experiment.figures) <= set(FIGURES)
    assert f"{name}: {experiment.title}" in describe_experiments()
    assert experiment.cost


TABLES = sorted({(e.papers[0], table) for e in EXPERIMENTS.values() for table in e.papers[1:]})


@pytest.mark.parametrize(("file", "table"), TABLES)
def test_the_papers_numbers_stand_in_rows_and_columns_that_exist(file: str, table: str) -> None:
    using = [e for e in EXPERIMENTS.values() if e.papers[:1] == (file,) and table in e.papers]
    rows = {row.name for experiment in using for row in experiment.rows}
    columns = {column.name for experiment in using for column in experiment.columns}
    text = resources.files("vaekern.experiments").joinpath("papers", f"{file}.json").read_text()
    for data in json.loads(text)["tables"][table]["data"]:
        found = quoted(file, [table], data)
        assert found is not None
        assert set(found.labels) <= set(found.rows)
        assert set(found.rows) <= rows | set(found.labels)
        assert {column for cells in found.rows.values() for column in cells} <= columns


def test_numbers_of_the_papers() -> None:
    table = quoted("dai_wipf", ["table1"], "cifar-10")
    assert table is not None
    assert table.value("two-stage", "samples") == (72.9, 0.9, 0)
    assert table.value("wgan-gp", "samples") == (55.8, 0.9, 0)
    assert table.value("two-stage", "kid") is None
    assert quoted("dai_wipf", ["table1"], "digits") is None
