"""pytest-benchmark's JSON as the README's tables: every row that was timed, won or lost.

    python -m benchmarks.report RESULT.json

Needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # the extra_info of one benchmark


def report(result: dict[str, Any], statistic: str = "minimum", brief: bool = False) -> str:
    """Markdown for one result file.

    statistic: "minimum", the time with the least of other programs in it, or "median".
    brief: the objectives on one thread only, a line each and a column per size.

    Raises:
        ValueError: the file holds no row of these benchmarks.
    """
    rows = [benchmark["extra_info"] for benchmark in result.get("benchmarks", [])]
    rows = [row for row in rows if f"{statistic}_us" in row]
    if not rows:
        raise ValueError("it holds no timed row; pytest benchmarks --benchmark-json=FILE makes one")
    parts = []
    objectives = [r for r in rows if r["kind"] == "objective"]
    if brief:
        one = [r for r in objectives if r["threads"] == 1]
        parts = [_brief(one, statistic), _means(one, statistic), _hardware(result, statistic)]
        return "\n\n".join(parts) + "\n"
    if objectives:
        parts += [_objectives(objectives, statistic), _means(objectives, statistic)]
    operators = [r for r in rows if r["kind"] == "operator"]
    if operators:
        parts.append(_operators(operators, statistic))
    steps = [r for r in rows if r["kind"] == "training step"]
    if steps:
        parts.append(_steps(steps, statistic))
    loops = [r for r in rows if r["kind"] == "training loop"]
    if loops:
        parts.append(_training_loops(loops, statistic))
    parts += _linear_algebra(rows, statistic)
    return "\n\n".join([*parts, _hardware(result, statistic)]) + "\n"


def _brief(rows: Sequence[Row], statistic: str) -> str:
    shapes = list(dict.fromkeys(_shape(row) for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        speedup = row[f"{statistic}_speedup"]
        cell = f"{_times(speedup['compile'])} · {_times(speedup['eager'])}"
        lines.setdefault(row["name"], {})[_shape(row)] = cell
    cells = [[name, *(of.get(shape, "-") for shape in shapes)] for name, of in lines.items()]
    return _table(["faster than compile · eager", *shapes], cells)


def _objectives(rows: Sequence[Row], statistic: str) -> str:
    cells: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        cells.setdefault((row["name"], _shape(row)), {})[row["threads"]] = row
    both = any(2 in of for of in cells.values())
    lines = []
    for (name, shape), of in cells.items():
        one = _numbers(of[1], statistic) if 1 in of else ["-"] * len(_NUMBERS)
        two = ["-"] * len(_TWO_THREADS)
        if 2 in of:
            us, compiled, eager, *_ = _numbers(of[2], statistic)
            gain = "-"
            if 1 in of:
                times = [of[threads][f"{statistic}_us"]["vaekern"] for threads in (1, 2)]
                gain = _times(times[0] / times[1])
            two = [us, gain, compiled, eager]
        lines.append([name, shape, *one, *(two if both else [])])
    return _table(["objective", "size", *_NUMBERS, *(_TWO_THREADS if both else [])], lines)


def _operators(rows: Sequence[Row], statistic: str) -> str:
    lines = [[row["name"], _shape(row), *_numbers(row, statistic)] for row in rows]
    return _table(["operator", "size", *_NUMBERS], lines)


def _steps(rows: Sequence[Row], statistic: str) -> str:
    lines = []
    for row in rows:
        ms = [f"{row[f'{statistic}_us'][v] / 1e3:.2f}" for v in ("vaekern", "compile", "eager")]
        ratios = [_times(row[f"{statistic}_speedup"][v]) for v in ("compile", "eager")]
        lines.append([row["name"], _shape(row), str(row["threads"]), *ms, *ratios])
    head = ["training step", "batch", "threads", "vaekern ms", "compile ms", "eager ms"]
    return _table([*head, "vs compile", "vs eager"], lines)


def _training_loops(rows: Sequence[Row], statistic: str) -> str:
    variants = ("vaekern", "compile", "eager")
    lines = []
    for row in rows:
        rates = [1e6 / row[f"{statistic}_us"][v] for v in variants]
        steps = [f"{rate:,.0f}" if rate >= 99.5 else f"{rate:.3g}" for rate in rates]
        ratios = [_times(row[f"{statistic}_speedup"][v]) for v in variants[1:]]
        memory = [f"{row['peak_mb'][v]:,.0f}" for v in variants]
        lines.append([row["name"], _shape(row), str(row["threads"]), *steps, *ratios, *memory])
    head = ["training loop", "batch", "threads", *(f"{v} steps/s" for v in variants)]
    return _table([*head, "vs compile", "vs eager", *(f"{v} peak MB" for v in variants)], lines)


_LOOPS = {"scipy": "loop over SciPy", "loop": "loop over jacrev, svd, SciPy"}


def _linear_algebra(rows: Sequence[Row], statistic: str) -> list[str]:
    """Singular vectors with each solver's worst error (relative; of the largest), the rest."""
    parts = []
    solvers = ("svd", "gram_eigh", "gram_eigh_double")
    lines = []
    for row in (r for r in rows if r["kind"] == "right_svd"):
        errors = [row["errors"][s] for s in ("vaekern", *solvers)]
        lines.append(
            [row["name"], _shape(row), f"{row[f'{statistic}_us']['vaekern'] / 1e3:.2f}"]
            + [_times(row[f"{statistic}_speedup"][solver]) for solver in solvers]
            + [f"{e['relative']:.0e}, {e['absolute']:.0e}" for e in errors]
        )
    if lines:
        names = ["`svd`", "Gram + `eigh`", "in float64"]
        head = ["right_svd", "size", "vaekern ms", *(f"vs {name}" for name in names)]
        parts.append(_table([*head, "vaekern error", *(f"{n} error" for n in names)], lines))
    others = [r for r in rows if r["kind"] in ("assignment", "orthogonality")]
    lines = []
    for row in others:
        ((other, ratio),) = row[f"{statistic}_speedup"].items()
        us = row[f"{statistic}_us"]
        ms = [f"{us[variant] / 1e3:,.2f}" for variant in ("vaekern", other)]
        lines.append([row["name"], _shape(row), *ms, _LOOPS[other], _times(ratio)])
    if lines:
        parts.append(_table(["", "size", "vaekern ms", "other ms", "other", "faster"], lines))
    return parts


_NUMBERS = ["vaekern µs", "vs compile", "vs eager", "GB/s", "copy GB/s"]
_TWO_THREADS = ["2 threads µs", "vs 1 thread", "vs compile", "vs eager"]


def _numbers(row: Row, statistic: str) -> list[str]:
    speedup = row[f"{statistic}_speedup"]
    us = row[f"{statistic}_us"]
    return [
        f"{us['vaekern']:,.0f}" if us["vaekern"] >= 99.95 else f"{us['vaekern']:.1f}",
        _times(speedup["compile"]),
        _times(speedup["eager"]),
        f"{row['bytes'] / us['vaekern'] / 1e3:.1f}",
        f"{row['copy_bytes'] / us['copy'] / 1e3:.1f}",
    ]


def _means(rows: Sequence[Row], statistic: str) -> str:
    lines = []
    for threads in sorted({r["threads"] for r in rows}):
        chosen = [r for r in rows if r["threads"] == threads]
        for other, name in (("compile", "`torch.compile`"), ("eager", "eager PyTorch")):
            ratios = [r[f"{statistic}_speedup"][other] for r in chosen]
            mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
            least = min(chosen, key=lambda r: r[f"{statistic}_speedup"][other])
            lost = sum(ratio < 1 for ratio in ratios)
            lines.append(
                f"- {_count(threads, 'thread')}: {_times(mean)} as fast as {name}, geometric mean "
                f"of {_count(len(chosen), 'row')}; least {_times(min(ratios))} "
                f"({least['name']}, {_shape(least)}); slower in {lost or 'none'}"
            )
    return "\n".join(lines)


def _hardware(result: dict[str, Any], statistic: str) -> str:
    machine = result["machine_info"]
    cpu, package = machine["cpu"], machine["vaekern"]
    isa = f", {package['isa']} kernels" if package.get("isa") else ""
    minima = "minima" if statistic == "minimum" else "medians"
    kinds = {benchmark["extra_info"].get("kind") for benchmark in result["benchmarks"]}
    trained = kinds - {"right_svd", "assignment", "orthogonality"}
    what = "Forward and backward in float32" if trained else "Float32 on one thread"
    return (
        f"Measured on {cpu.get('brand_raw', machine['machine'])}, {cpu['count']} cores, "
        f"{machine['system']}; Python {machine['python_version']}, "
        f"torch {machine['torch']['version']}, vaekern {package['version']} "
        f"({package['backend']} backend{isa}); {result['datetime'][:10]}. {what}, "
        f"{minima} of interleaved single calls; the method is in benchmarks/README.md."
    )


def _shape(row: Row) -> str:
    return " x ".join(map(str, row["shape"]))


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' if n != 1 else ''}"


def _times(ratio: float) -> str:
    """Two decimals, bold where vaekern is the slower one."""
    return f"**{ratio:.2f}x**" if ratio < 1 else f"{ratio:.2f}x"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    left = 2 if "size" in head or "batch" in head else 1
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="print the README's tables from a pytest-benchmark JSON file",
    )
    parser.add_argument("result", type=Path, help="written by --benchmark-json")
    parser.add_argument("--statistic", choices=("minimum", "median"), default="minimum")
    parser.add_argument("--brief", action="store_true", help="objectives on one thread only")
    options = parser.parse_args(arguments)
    try:
        text = report(json.loads(options.result.read_text()), options.statistic, options.brief)
    except OSError as error:
        parser.error(f"cannot read {options.result}: {error.strerror}")
    except (ValueError, KeyError) as error:
        parser.error(f"{options.result} is not a result of these benchmarks: {error}")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
