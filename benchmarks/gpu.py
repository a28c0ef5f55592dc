"""The one command for a machine with a GPU: builds, checks every kernel, then times it beside the
others.

    python benchmarks/gpu.py

Ten minutes at most: installs the package from this checkout with the machine's own torch, runs the
device's tests (tests/cuda: conformance, graphs, streams, compile, autocast), a few of them under
compute-sanitizer where that is installed, then the checks and the tables.  What time is left goes
to whole training loops, which gpu_training.py also times by itself.  Writes
benchmarks/results/VERSION/gpu--NAME.json with the hardware, the versions, every check and every
time, and the table beside it.  Ends with 1 where a check failed.  ``--dry-run`` goes the same way
on a CPU with small inputs and plain PyTorch, and does not install: it shows that the command works,
and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gpu_clock
import gpu_losses
import gpu_training
import torch
from gpu_operators import OPERATORS, Operator

import vaekern
from vaekern import backends, testing
from vaekern.storage.files import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
TESTS = "tests/cuda"
#: A few launches of every kernel: the sanitizer takes a hundred times as long.
SANITIZED = (
    "test_device and (test_shapes or test_same_bits_again) and not triton "
    "and (mle_nll or scalar or element or kl-none or sample_and_kl)"
)
Record = dict[str, Any]


class Run:
    """One run: its device, its clock's limits and what it has found."""

    def __init__(self, device: torch.device, seconds: float, dry: bool) -> None:
        self.device = device
        self.dry = dry
        self.deadline = time.monotonic() + seconds
        self.checks: list[Record] = []
        self.rows: list[Record] = []
        self.losses: list[Record] = []

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def tests(self) -> None:
        """The suite's own tests of the kernels, on the device; on a CPU those skip, and say so."""
        self._pytest(
            "tests on the device", [], [TESTS, "-k", "device"], min(240.0, self.left() / 2)
        )

    def sanitize(self) -> None:
        found = shutil.which("compute-sanitizer")
        if found is None or self.dry:
            why = "a dry run" if self.dry else "compute-sanitizer is not on PATH"
            self.checks.append({"operator": "compute-sanitizer", "skipped": why, "passed": True})
            return
        sanitizer = [found, "--tool", "memcheck", "--error-exitcode", "9"]
        chosen = [f"{TESTS}/test_device.py", "-k", SANITIZED, "-x"]
        self._pytest("compute-sanitizer", sanitizer, chosen, min(120.0, self.left() / 4))

    def _pytest(self, name: str, prefix: list[str], chosen: list[str], limit: float) -> None:
        record: Record = {"operator": name, "case": " ".join(chosen), "limit_s": round(limit)}
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "junit.xml"
            # -P: the installed package, never the source tree beside it
            command = [*prefix, sys.executable, "-P", "-m", "pytest", "-q", f"--junit-xml={report}"]
            # what has no time left to start is skipped, and counted; a test that hangs is ended
            command.append(f"--seconds={0.8 * limit:.0f}")
            started = time.monotonic()
            try:
                done = subprocess.run(
                    [*command, *chosen], cwd=ROOT, capture_output=True, text=True, timeout=limit
                )
                record["passed"] = done.returncode in (0, 5)  # 5: nothing was chosen
                if not record["passed"]:
                    record["error"] = (done.stdout + done.stderr)[-2000:]
            except subprocess.TimeoutExpired:
                record.update(passed=False, error=f"took longer than {limit:.0f} s")
            record["seconds"] = round(time.monotonic() - started, 1)
            if report.exists():
                suite = next(ElementTree.parse(report).iter("testsuite"))
                record["counts"] = {k: int(suite.get(k, 0)) for k in _COUNTS}
        self.checks.append(record)
        print(name, json.dumps({k: v for k, v in record.items() if k != "error"}), flush=True)

    def check_losses(self) -> None:
        shapes = gpu_losses.SMALL if self.dry else gpu_losses.SHAPES
        for shape in shapes:
            if shape[0] * shape[1] > gpu_losses.GATED:
                continue
            for objective in gpu_losses.OBJECTIVES:
                self.checks.append(gpu_losses.check(objective, shape, self.device))

    def time_losses(self) -> None:
        seconds = 0.01 if self.dry else 0.3
        for shape in gpu_losses.SMALL[:1] if self.dry else gpu_losses.SHAPES:
            for objective in gpu_losses.OBJECTIVES:
                if self.left() < 60:
                    print("out of time:", objective.name, shape, flush=True)
                    continue
                row = gpu_losses.row(objective, shape, self.device, seconds, self.left)
                self.losses.append(row)
                print(gpu_losses.line(row), flush=True)

    def check(self, operator: Operator) -> None:
        torch.manual_seed(0)
        for name, case in operator.cases(self.dry).items():
            record: Record = {"operator": operator.name, "case": name, "shape": list(case.shape)}
            try:
                x = testing.moved(case, self.device)
                first = operator.kernel(x)
                record["errors"] = operator.errors(case, first)
                limits = operator.limits(name)
                record["passed"] = all(
                    record["errors"][key] <= limit for key, limit in limits.items()
                )
                again = operator.kernel(x)
                record["same_bits_again"] = all(
                    torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(again), strict=True)
                )
                record["passed"] = record["passed"] and record["same_bits_again"]
            except RuntimeError as error:
                record.update(passed=False, error=str(error)[:300])
            self.checks.append(record)

    def time(self, operator: Operator) -> None:
        for shape in operator.small if self.dry else operator.shapes:
            torch.manual_seed(1)
            source = operator.inputs(shape)
            inputs = gpu_clock.copies(source.to(self.device))
            seconds = 0.02 if self.dry else 1.0
            kernel = gpu_clock.graph(operator.kernel, inputs, seconds)
            bytes_ = operator.bytes_moved(shape)
            row: Record = {
                "operator": operator.name,
                "shape": list(shape),
                "copies": len(inputs),
                "bytes": bytes_,
                "kernel": {
                    **kernel.record(),
                    "gb_per_s": bytes_ / kernel.us / 1e3,
                    "host_us": gpu_clock.host(operator.kernel, inputs[0], 5 if self.dry else 100),
                    "errors": operator.errors(source, operator.kernel(inputs[0])),
                },
                "public": gpu_clock.single(operator.public, inputs, seconds, fewest=3).record(),
                "baselines": {},
            }
            for name, baseline in operator.baselines.items():
                given = [source] if name in operator.on_cpu else inputs
                row["baselines"][name] = self._baseline(operator, baseline, given, source)
            self.rows.append(row)
            print(line(row), flush=True)

    def _baseline(
        self, operator: Operator, call: gpu_clock.Call, inputs: Sequence[torch.Tensor], source: Any
    ) -> Record:
        if self.left() < 20:
            return {"skipped": "out of time"}
        try:
            limit = min(25.0, self.left() / 4)
            record = gpu_clock.bounded(call, inputs, 0.02 if self.dry else 2.0, limit).record()
            few = inputs[0][:8]
            record["errors"] = operator.errors(source[:8], call(few))
        except (RuntimeError, torch.linalg.LinAlgError) as error:
            return {"skipped": " ".join(str(error).split())[:200]}
        return record


_COUNTS = ("tests", "failures", "errors", "skipped")


def build() -> None:
    """Installs this checkout for the interpreter that runs this."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def line(row: Record) -> str:
    """One row of the table."""
    kernel = row["kernel"]
    shape = "x".join(map(str, row["shape"]))
    errors = ", ".join(f"{name} {value:.0e}" for name, value in kernel["errors"].items())
    parts = [
        f"{row['operator']} {shape}: {_us(kernel['us'])} ({kernel['gb_per_s']:.0f} GB/s, host "
        f"{kernel['host_us']:.0f} us, public {_us(row['public']['us'])}; {errors})"
    ]
    for name, other in row["baselines"].items():
        if "skipped" in other:
            parts.append(f"    {name:<20} not run: {other['skipped']}")
            continue
        ratio = other["us"] / kernel["us"]
        errors = ", ".join(f"{k} {v:.0e}" for k, v in other["errors"].items())
        made = f", estimated from {other['matrices']}" if other["how"] == "estimate" else ""
        parts.append(f"    {name:<20} {_us(other['us'])} = {ratio:.1f}x{made}; {errors}")
    return "\n".join(parts)


def _us(value: float) -> str:
    return f"{value:.1f} us" if value < 1e3 else f"{value / 1e3:.2f} ms"


def machine(device: torch.device) -> Record:
    record: Record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "vaekern": vaekern.__version__,
        "backends": backends.describe().splitlines(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        record["gpu"] = {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory": found.total_memory,
            "l2_cache": found.L2_cache_size,
        }
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU: no measurement")
    names = [o.name for o in OPERATORS]
    parser.add_argument("--only", choices=["loss", *names], help="one operator")
    parser.add_argument("--no-build", action="store_true", help="the package is installed")
    parser.add_argument("--no-tests", action="store_true", help="leave the suite's tests out")
    parser.add_argument("--checks-only", action="store_true", help="time nothing")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything (540)")
    parser.add_argument("--out", type=Path, help="folder of the result")
    options = parser.parse_args(arguments)
    if torch.cuda.is_available() and not (options.dry_run or options.no_build):
        started = time.monotonic()
        build()
        left = options.seconds - (time.monotonic() - started)
        given = sys.argv[1:] if arguments is None else arguments
        again = [*given, "--no-build", f"--seconds={left:.0f}"]
        return subprocess.run([sys.executable, str(Path(__file__)), *again]).returncode
    if options.dry_run:
        device = torch.device("cpu")
    elif backends.active("cuda", backends.LINALG) == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        row = next(b for b in backends.BACKENDS if b.name == "cuda")
        parser.error(f"the CUDA kernels cannot run here: {row.unavailable()}; --dry-run can")
    started = time.monotonic()
    run = Run(device, options.seconds, options.dry_run)
    operators = [o for o in OPERATORS if options.only in (None, o.name)]
    losses = options.only in (None, "loss")
    if losses and not options.no_tests:
        run.tests()
        run.sanitize()
    for operator in operators:
        run.check(operator)
    if losses:
        run.check_losses()
    failed = [check for check in run.checks if not check["passed"]]
    print(f"{len(run.checks) - len(failed)} of {len(run.checks)} checks passed", flush=True)
    for check in failed:
        print("FAILED", json.dumps(check), flush=True)
    if not options.checks_only:
        if losses:
            run.time_losses()
        for operator in operators:
            run.time(operator)
    training = []
    if not (options.dry_run or options.checks_only or options.only):
        training = gpu_training.run("cuda", 8.0, list(gpu_training.AIMS), run.left)
    about = machine(device)
    result = {
        "dry_run": options.dry_run,
        "machine": about,
        "seconds": round(time.monotonic() - started, 1),
        "checks": run.checks,
        "rows": run.rows,
        "losses": run.losses,
        "training": training,
    }
    name = "dry-run" if options.dry_run else about["gpu"]["name"]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder = options.out or RESULTS / vaekern.__version__
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu--{slug}.json"
    table = "\n".join([*map(gpu_losses.line, run.losses), *map(line, run.rows)])
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    write_atomically(path.with_suffix(".txt"), table + "\n")
    print(path)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
