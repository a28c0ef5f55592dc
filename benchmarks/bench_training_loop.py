"""Steps per second of whole training loops: what `vaekern train` does, and what a user writes.

Every loop runs in a process of its own (training_loops.py); they take turns, some steps at a time,
while the others wait.
"""

from __future__ import annotations

import os

import pytest
import torch
from conftest import Compare
from loop_processes import interleave, started
from training_loops import BATCH, CASES, Case


@pytest.mark.parametrize("threads", [1, 2], ids=["1-thread", "2-threads"])
@pytest.mark.parametrize("name", CASES)
def bench_training_loop(
    name: str, threads: int, compare: Compare, request: pytest.FixtureRequest
) -> None:
    if threads > (os.cpu_count() or 1):
        pytest.skip(f"{threads} threads on {os.cpu_count()} core(s) measure the scheduler")
    case: Case = CASES[name]
    if case.slow and threads < (os.cpu_count() or 1):
        pytest.skip("seconds a step: on all cores only")
    seconds = request.config.getoption("--cell-seconds")
    with started(name, threads) as loops:
        durations = interleave(loops, 6 * seconds, case.slow)
        memory = {variant: loop.peak_kb / 1024 for variant, loop in loops.items()}
    torch.set_num_threads(threads)  # what the row says
    compare(
        durations,
        kind="training loop",
        name=case.title,
        shape=[BATCH, *case.shape],
        peak_mb=memory,
    )
