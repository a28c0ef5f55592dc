"""The README's tables from a benchmark's JSON: every row, every number, won or lost."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    # by path: the benchmarks are not installed, and the source tree must not be importable here
    spec = importlib.util.spec_from_file_location("benchmark_report", BENCHMARKS / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(
    kind: str, name: str, shape: list[int], threads: int, minima: dict[str, float], size: int
) -> dict[str, Any]:
    speedup = {other: minima[other] / minima["vaekern"] for other in ("compile", "eager")}
    return {
        "extra_info": {
            "kind": kind,
            "name": name,
            "shape": shape,
            "threads": threads,
            "minimum_us": minima,
            "median_us": {key: 2 * value for key, value in minima.items()},
            "minimum_speedup": speedup,
            "median_speedup": speedup,
            "bytes": 3 * size,
            "copy_bytes": 2 * size,
        }
    }


def us(vaekern: float, compiled: float, eager: float, copied: float) -> dict[str, float]:
    return {"vaekern": vaekern, "compile": compiled, "eager": eager, "copy": copied}


@pytest.fixture
def result() -> dict[str, Any]:
    step = row("training step", "InfoGAN", [100, 1, 28, 28], 1, us(2e5, 2.1e5, 2.5e5, 1), 0)
    loop = row("training loop", "stage 2", [100, 16], 2, us(2e3, 2.5e3, 3e3, 1), 0)
    loop["extra_info"]["peak_mb"] = {"vaekern": 400.4, "compile": 1_250.0, "eager": 380.0}
    return {
        "machine_info": {
            "machine": "x86_64",
            "system": "Linux",
            "python_version": "3.11.7",
            "cpu": {"brand_raw": "Some CPU", "count": 2},
            "torch": {"version": "2.13.0"},
            "vaekern": {"version": "0.1.0", "backend": "cpu", "isa": "avx2"},
        },
        "datetime": "2026-01-02T03:04:05+00:00",
        "benchmarks": [
            row("objective", "fixed iso-i", [64, 784], 1, us(20, 80, 160, 10), 100_000),
            row("objective", "mle iso-i", [64, 12288], 1, us(1000, 900, 2000, 500), 4_000_000),
            row("objective", "mle iso-i", [64, 12288], 2, us(500, 1000, 2000, 400), 4_000_000),
            row("operator", "gaussian_kl", [64, 64], 1, us(50, 40, 75, 1), 20_000),
            step,
            loop,
        ],
    }


EXPECTED = """\
| objective | size | vaekern µs | vs compile | vs eager | GB/s | copy GB/s | 2 threads µs \
| vs 1 thread | vs compile | vs eager |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| fixed iso-i | 64 x 784 | 20.0 | 4.00x | 8.00x | 15.0 | 20.0 | - | - | - | - |
| mle iso-i | 64 x 12288 | 1,000 | **0.90x** | 2.00x | 12.0 | 16.0 | 500 | 2.00x | 2.00x | 4.00x |

- 1 thread: 1.90x as fast as `torch.compile`, geometric mean of 2 rows; least **0.90x** \
(mle iso-i, 64 x 12288); slower in 1
- 1 thread: 4.00x as fast as eager PyTorch, geometric mean of 2 rows; least 2.00x \
(mle iso-i, 64 x 12288); slower in none
- 2 threads: 2.00x as fast as `torch.compile`, geometric mean of 1 row; least 2.00x \
(mle iso-i, 64 x 12288); slower in none
- 2 threads: 4.00x as fast as eager PyTorch, geometric mean of 1 row; least 4.00x \
(mle iso-i, 64 x 12288); slower in none

| operator | size | vaekern µs | vs compile | vs eager | GB/s | copy GB/s |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| gaussian_kl | 64 x 64 | 50.0 | **0.80x** | 1.50x | 1.2 | 40.0 |

| training step | batch | threads | vaekern ms | compile ms | eager ms | vs compile | vs eager |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| InfoGAN | 100 x 1 x 28 x 28 | 1 | 200.00 | 210.00 | 250.00 | 1.05x | 1.25x |

| training loop | batch | threads | vaekern steps/s | compile steps/s | eager steps/s | vs compile \
| vs eager | vaekern peak MB | compile peak MB | eager peak MB |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| stage 2 | 100 x 16 | 2 | 500 | 400 | 333 | 1.25x | 1.50x | 400 | 1,250 | 380 |

Measured on Some CPU, 2 cores, Linux; Python 3.11.7, torch 2.13.0, vaekern 0.1.0 (cpu backend, \
avx2 kernels); 2026-01-02. Forward and backward in float32, minima of interleaved single calls; \
the method is in benchmarks/README.md.
"""


def test_prints_every_row_with_losing_ones_in_bold(
    report: ModuleType, result: dict[str, Any]
) -> None:
    assert report.report(result) == EXPECTED


def test_median_uses_the_medians(report: ModuleType, result: dict[str, Any]) -> None:
    text = report.report(result, "median")
    assert "| fixed iso-i | 64 x 784 | 40.0 | 4.00x | 8.00x | 7.5 | 10.0 |" in text
    assert "medians of interleaved" in text


def test_a_row_timed_with_two_threads_only_is_not_dropped(
    report: ModuleType, result: dict[str, Any]
) -> None:
    del result["benchmarks"][1]
    line = "| mle iso-i | 64 x 12288 | - | - | - | - | - | 500 | - | 2.00x | 4.00x |"
    assert line in report.report(result).splitlines()


def test_one_thread_only_has_no_empty_columns(report: ModuleType, result: dict[str, Any]) -> None:
    del result["benchmarks"][2]
    head = "| objective | size | vaekern µs | vs compile | vs eager | GB/s | copy GB/s |"
    assert report.report(result).splitlines()[0] == head


def test_command_prints_the_tables(
    report: ModuleType,
    result: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    assert report.main([str(path)]) == 0
    assert capsys.readouterr().out == EXPECTED


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read"),
        ("not JSON", "is not a result of these benchmarks"),
        ('{"benchmarks": []}', "it holds no timed row; pytest benchmarks --benchmark-json=FILE"),
        ('{"benchmarks": [{"extra_info": {}}]}', "it holds no timed row"),
    ],
    ids=["missing", "broken", "empty", "not-timed"],
)
def test_command_says_what_is_wrong_with_the_file(
    report: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    sentence: str,
) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        report.main([str(path)])
    assert sentence in capsys.readouterr().err


def test_brief_is_one_line_per_objective(report: ModuleType) -> None:
    rows = [
        row("objective", "fixed", [4, 8], 1, us(10, 25, 40, 5), 100),
        row("objective", "fixed", [4, 8], 2, us(8, 25, 40, 5), 100),
        row("objective", "fixed", [4, 16], 1, us(10, 9, 80, 5), 100),
        row("objective", "learned", [4, 16], 1, us(10, 30, 50, 5), 100),
    ]
    table = report._brief(
        [r["extra_info"] for r in rows if r["extra_info"]["threads"] == 1], "minimum"
    )
    assert table.splitlines() == [
        "| faster than compile · eager | 4 x 8 | 4 x 16 |",
        "| --- | ---: | ---: |",
        "| fixed | 2.50x · 4.00x | **0.90x** · 8.00x |",
        "| learned | - | 3.00x · 5.00x |",
    ]


def test_linear_algebra_shows_errors_beside_times(
    report: ModuleType, result: dict[str, Any]
) -> None:
    def entry(kind: str, name: str, shape: list[int], times: dict[str, float]) -> dict[str, Any]:
        ratios = {k: v / times["vaekern"] for k, v in times.items() if k != "vaekern"}
        info = {"kind": kind, "name": name, "shape": shape, "threads": 1, "minimum_us": times}
        return {"extra_info": info | {"minimum_speedup": ratios}}

    svd = entry(
        "right_svd", "random", [512, 784, 16],
        {"vaekern": 4000, "svd": 32000, "gram_eigh": 2000, "gram_eigh_double": 8000},
    )  # fmt: skip
    svd["extra_info"]["errors"] = {
        name: {"relative": 1.25 * 10**-k, "absolute": 2 * 10**-k}
        for k, name in enumerate(("vaekern", "svd", "gram_eigh", "gram_eigh_double"), 4)
    }
    loop = entry("assignment", "assignment", [9, 5, 5], {"vaekern": 100, "scipy": 250})
    text = report.report(result | {"benchmarks": [svd, loop]})
    assert (
        "| random | 512 x 784 x 16 | 4.00 | 8.00x | **0.50x** | 2.00x "
        "| 1e-04, 2e-04 | 1e-05, 2e-05 | 1e-06, 2e-06 | 1e-07, 2e-07 |" in text
    )
    assert "| assignment | 9 x 5 x 5 | 0.10 | 0.25 | loop over SciPy | 2.50x |" in text
    assert "Float32 on one thread, minima" in text
