"""What a set's size costs when it is read from disk: 10^3 to 10^6 images of 28x28, uint8, one .npy.

    python benchmarks/streaming.py

Every size is trained in processes of its own, with `--stream true` and with `--stream false`: the
time from the start of the process to the end of the first training step, the median time of a step
of stage 1 and of stage 2 (default networks, batch 100, one thread), the time in which the latents
of the whole set are computed between them, and the peak memory of the process.  Stage 2 follows a
whole epoch of stage 1: beyond 10^5 images it is left out, but for --whole.  The files are made
in a temporary folder (784 MB for 10^6).  They have just been written, so that the system holds them
in its cache: what is measured is the cost of reading by rows, not the speed of a disk.

Writes benchmarks/results/VERSION/streaming--NAME.json and the table beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_kb

import vaekern
from vaekern.storage.files import write_atomically
from vaekern.training import TrainConfig, Trainer, TrainingRun, run

RESULTS = Path(__file__).parent / "results"
SIZES = (10**3, 10**4, 10**5, 10**6)
BATCH = 100
STEPS = 300  # of each stage, at least
BLOCK = 10_000
Row = dict[str, Any]


def write_images(path: Path, count: int) -> None:
    """Random images, a block at a time."""
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 28, 28))
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        images[start:stop] = rng.integers(0, 256, (stop - start, 28, 28), dtype=np.uint8)
    images.flush()


class Enough(Exception):
    """Stage 2 has made its steps."""


def work(path: str, stream: bool, began: float, second: bool) -> Row:
    """Train some steps of each stage, or of the first one alone; what they took."""
    ends: dict[int, list[float]] = {1: [], 2: []}
    first: list[float] = []

    class Timed(Trainer):
        def _on_time(self, *arguments: Any) -> None:
            super()._on_time(*arguments)
            if not first:
                first.append(time.time() - began)
            stage = ends[self.position.stage]
            stage.append(time.perf_counter())
            if len(ends[2 if second else 1]) > STEPS:
                raise Enough

    run.Trainer = Timed  # type: ignore[attr-defined, misc]
    steps = np.load(path, mmap_mode="r").shape[0] * 9 // 10 // BATCH
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "run": f"{folder}/run",
            "data": f"npy:{path}",
            "stream": stream,
            "threads": 1,
            "stage1": {"epochs": math.ceil(STEPS / steps), "batch_size": BATCH},
            "stage2": {"epochs": 10**6, "batch_size": BATCH},
        }
        with contextlib.suppress(Enough):
            TrainingRun(TrainConfig.from_flat(settings))()
    medians = {
        stage: 1e3 * statistics.median(np.diff(times[10:]).tolist()) if times else None
        for stage, times in ends.items()
    }
    return {
        "first_step_s": first[0],
        "stage1_ms": medians[1],
        "stage2_ms": medians[2],
        "between_s": ends[2][0] - ends[1][-1] if ends[2] else None,
        "peak_mb": peak_kb() / 1024,
    }


def measure(path: Path, stream: bool, second: bool) -> Row:
    """`work` in a process of its own."""
    flags = [str(int(stream)), str(time.time()), str(int(second))]
    call = [sys.executable, __file__, "--work", str(path), *flags]
    done = subprocess.run(
        call, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def table(result: Row) -> str:
    head = ["images", "read", "first step s", "stage 1 ms/step", "latents s", "stage 2 ms/step"]
    lines = ["| " + " | ".join([*head, "peak MB"]) + " |", "| ---: | --- " + "| ---: " * 5 + "|"]
    for row in result["rows"]:
        source = "from disk" if row["stream"] else "into memory"
        lines.append(
            f"| {row['images']:,} | {source} | {row['first_step_s']:.2f} | {row['stage1_ms']:.2f} "
            f"| {_number(row['between_s'])} | {_number(row['stage2_ms'])} | {row['peak_mb']:,.0f} |"
        )
    about = result["machine"]
    return (
        "\n".join(lines)
        + f"\n\nuint8 images of 28x28 in one .npy, default networks, batch {BATCH}, one thread. "
        f"{about['cpu']}, {about['cores']} cores, {about['system']}; Python {about['python']}, "
        f"torch {about['torch']}, vaekern {about['vaekern']}. "
        "Medians; made by benchmarks/streaming.py.\n"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def machine() -> Row:
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        cpu = found.group(1) if found else cpu
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vaekern": vaekern.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/streaming.py", description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="images (10^6)")
    parser.add_argument("--name", default="cpu", help="of the result file")
    parser.add_argument("--out", type=Path, default=RESULTS / vaekern.__version__)
    parser.add_argument("--whole", action="store_true", help="stage 2 of the largest sets, too")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        path, stream, began, second = options.work
        print(json.dumps(work(path, stream == "1", float(began), second == "1")))
        return 0
    rows: list[Row] = []
    for count in (size for size in SIZES if size <= options.largest):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            write_images(path, count)
            for stream in (True, False):
                rows.append(
                    {
                        "images": count,
                        "stream": stream,
                        **measure(path, stream, options.whole or count <= 10**5),
                    }
                )
                print(rows[-1], flush=True)
    result = {"machine": machine(), "batch": BATCH, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"streaming--{options.name}.json"
    write_atomically(file, json.dumps(result, indent=1) + "\n")
    write_atomically(file.with_suffix(".md"), table(result))
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
