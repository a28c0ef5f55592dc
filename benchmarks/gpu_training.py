"""Steps per second of whole training loops on a GPU: `vaekern train` against what a user writes.

    python benchmarks/gpu_training.py            # about four minutes; writes results/VERSION/
    python benchmarks/gpu_training.py --dry-run  # the same way on a CPU: no measurement

The loops are those of training_loops.py, each in a process of its own, in turns of some steps, with
a wait for the device before and after a turn.  `vaekern train` runs as its defaults are (CUDA
graphs where a step can be recorded) and once more with `--step eager`, which is what the recording
is worth.  The aims are 5 times the plain loop for stage 2 and 2 times for stage 1 at 28x28.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from loop_processes import interleave, started
from training_loops import BATCH, CASES, Case

import vaekern
from vaekern.storage.files import write_atomically

RESULTS = Path(__file__).parent / "results"
#: How many times as fast as the plain loop each stage is meant to be.
AIMS = {"stage2-1024-64": 5.0, "stage2-256-16": 5.0, "infogan-28": 2.0}
NAMES = (*AIMS, "stage2-256-64", "infogan-64", "wae-64")
START_SECONDS = 60.0  # four processes start, and one compiles
VARIANTS = ("vaekern", "vaekern-eager", "compile", "eager")
Row = dict[str, Any]


def measure(name: str, device: str, seconds: float) -> Row:
    """Steps per second and peak memory of every loop of a case."""
    case: Case = CASES[name]
    with started(name, 1, VARIANTS, device) as loops:
        durations = interleave(loops, seconds, slow=False)
        memory = {variant: loop.device_mb for variant, loop in loops.items()}
    rates = {variant: 1 / statistics.median(each) for variant, each in durations.items()}
    return {
        "case": name,
        "title": case.title,
        "shape": [BATCH, *case.shape],
        "steps_per_s": rates,
        "device_mb": memory,
        "times_eager": rates["vaekern"] / rates["eager"],
        "aim": AIMS.get(name),
    }


def table(rows: Sequence[Row], about: str) -> str:
    head = ["training loop", "batch", *(f"{v} steps/s" for v in VARIANTS), "times eager", "aim"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- " + "| ---: " * (len(head) - 2) + "|"]
    for row in rows:
        if "skipped" in row:
            lines.append(f"| {row['case']} | not run: {row['skipped']} |" + " |" * (len(head) - 2))
            continue
        rates = [f"{row['steps_per_s'][v]:,.0f}" for v in VARIANTS]
        ratio = f"{row['times_eager']:.2f}x"
        cells = [
            row["title"],
            " x ".join(map(str, row["shape"])),
            *rates,
            f"**{ratio}**" if row["times_eager"] < 1 else ratio,
            "" if row["aim"] is None else f"{row['aim']:g}x",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{about}\n"


def run(
    device: str,
    seconds: float,
    names: Sequence[str] = NAMES,
    left: Callable[[], float] = lambda: math.inf,
) -> list[Row]:
    """All rows; one that cannot be measured says why, as does one for which no time is left."""
    rows: list[Row] = []
    for name in names:
        if left() < START_SECONDS + seconds:
            rows.append({"case": name, "skipped": "out of time"})
            continue
        try:
            rows.append(measure(name, device, seconds))
        except (RuntimeError, OSError) as error:
            rows.append({"case": name, "skipped": " ".join(str(error).split())[:200]})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu_training.py", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: no measurement")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row (10)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these rows")
    parser.add_argument("--out", type=Path, default=RESULTS / vaekern.__version__)
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --dry-run goes the same way on a CPU")
    device = "cpu" if options.dry_run else "cuda"
    name = "dry-run" if options.dry_run else torch.cuda.get_device_name()
    # On a CPU some networks take many seconds a step, which shows nothing more.
    names = [name for name in options.only if not (options.dry_run and CASES[name].slow)]
    rows = run(device, 0.1 if options.dry_run else options.seconds, names)
    about = f"{name}; torch {torch.__version__}, vaekern {vaekern.__version__}"
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"training--{slug}.json"
    result = {"dry_run": options.dry_run, "machine": about, "rows": rows}
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), table(rows, about))
    print(path)
    return 1 if any("skipped" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
