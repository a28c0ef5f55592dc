"""The loops of training_loops.py as processes that take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from training_loops import VARIANTS

TURN_SECONDS = 0.25  # of a turn, long against the caches' refill
UNTIMED = 2
FEWEST_TURNS = 5


class Loop:
    """A loop in its own process."""

    def __init__(self, case: str, variant: str, threads: int, device: str):
        self.peak_kb = 0
        self.device_mb = 0.0
        self._process = subprocess.Popen(
            [sys.executable, "training_loops.py", case, variant, str(threads), device],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def steps(self, count: int) -> list[float]:
        """Seconds of each of so many steps."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{count}\n")
        stdin.flush()
        # vaekern's loop also says what it trains
        for line in stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                self.peak_kb, self.device_mb = answer["peak_kb"], answer["device_mb"]
                return list(answer["seconds"])
        raise RuntimeError(f"the loop ended with {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(60)


@contextmanager
def started(
    case: str, threads: int, variants: Sequence[str] = VARIANTS, device: str = "cpu"
) -> Iterator[Mapping[str, Loop]]:
    with ExitStack() as stack:
        loops = {}
        for variant in variants:
            loops[variant] = Loop(case, variant, threads, device)
            stack.callback(loops[variant].close)
        yield loops


def interleave(loops: Mapping[str, Loop], seconds: float, slow: bool) -> dict[str, list[float]]:
    turn = {}
    for name, loop in loops.items():
        loop.steps(1 if slow else 3)  # data, compilation
        turn[name] = 1 if slow else max(3, int(TURN_SECONDS / min(loop.steps(3))))
    durations: dict[str, list[float]] = {name: [] for name in loops}
    end, turns = time.perf_counter() + seconds, 0
    untimed, fewest = (0, 2) if slow else (UNTIMED, FEWEST_TURNS)
    while turns < fewest or time.perf_counter() < end:
        for name, loop in loops.items():
            durations[name] += loop.steps(untimed + turn[name])[untimed:]
        turns += 1
    return durations
