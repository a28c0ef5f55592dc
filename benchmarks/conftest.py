"""What the benchmarks share: the ``compare`` fixture, and what the JSON says about the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import measure
import pytest
import torch

import vaekern
import vaekern.backends
import vaekern.cpu

Compare = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cell-seconds",
        type=float,
        default=1.25,
        help="time for each row of the table, all variants together (default 1.25)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=measure.replayed_clock))


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Compare:
    """compare(variants, bytes_moved=, copy_bytes=, **facts): time the variants, report one row.

    variants: name -> one call, or the durations of calls that have been timed; "vaekern",
        "compile", "eager" and, where bytes count, "copy".
    fewest_visits: of each variant; fewer where a call takes seconds.
    facts: what the row is about: kind=, name=, shape=.
    """

    def run(
        variants: Mapping[str, Callable[[], object] | list[float]],
        *,
        bytes_moved: int | None = None,
        copy_bytes: int | None = None,
        fewest_visits: int = measure.FEWEST_VISITS,
        **facts: Any,
    ) -> None:
        benchmark.extra_info.update(facts, threads=torch.get_num_threads())
        if not benchmark.enabled:  # --benchmark-disable: the correctness gate only
            return
        seconds = request.config.getoption("--cell-seconds")
        calls = {name: each for name, each in variants.items() if callable(each)}
        durations = {name: each for name, each in variants.items() if isinstance(each, list)}
        if calls:
            durations |= measure.interleave(calls, seconds, fewest_visits)
        row: dict[str, Any] = measure.summary(durations)
        for name, variant, count in (
            ("", "vaekern", bytes_moved),
            ("copy_", "copy", copy_bytes),
        ):
            if count is not None:
                row[f"{name}bytes"] = count
                row[f"{name}gb_per_s"] = count / row["minimum_us"][variant] / 1e3
        benchmark.extra_info.update(row)
        measure.replay(durations["vaekern"])
        benchmark.pedantic(lambda: None, rounds=len(durations["vaekern"]))

    return run


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """The hardware and the versions that the numbers hold for, and not the machine's name."""
    del machine_info["node"], machine_info["release"]
    cpu = machine_info["cpu"]
    kept = ("brand_raw", "arch", "count", "l2_cache_size", "l3_cache_size")
    machine_info["cpu"] = {key: cpu[key] for key in kept if key in cpu}
    machine_info["cpu"]["count"] = os.cpu_count()
    machine_info["vaekern"] = {
        "version": vaekern.__version__,
        "backend": vaekern.backends.active("cpu"),
        "isa": vaekern.cpu.core.isa() if vaekern.cpu.core is not None else None,
        "backends": vaekern.backends.describe().splitlines(),
    }
    machine_info["torch"] = {"version": torch.__version__}


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)  # thousands of numbers that minimum and median sum up
