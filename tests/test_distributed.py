"""The losses on several processes: gradients, values and buffers are those of the joined batch.

The processes start once for each number of them, run every case of distributed_worker.py through
gloo, and each case's outcome is one test here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch has no distributed package"
)
if torch.distributed.is_available():
    sys.path.append(str(Path(__file__).parent))
    from distributed_worker import CASES, SLOW
else:
    CASES, SLOW = {}, set()

WORKER = Path(__file__).with_name("distributed_worker.py")
LIMIT = 120  # seconds (--slow: five times as many) for a process that waits in vain


@pytest.fixture(scope="module", params=[2, 4], ids=["2 processes", "4 processes"])
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, str | None]]:
    """What each process says of each case."""
    folder = tmp_path_factory.mktemp("processes")
    slow = ["--slow"] if request.config.getoption("--slow") else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = []
    try:
        for rank in range(request.param):
            command = [sys.executable, WORKER, str(rank), str(request.param), folder, *slow]
            with (folder / f"{rank}.log").open("w") as log:
                workers.append(subprocess.Popen(command, stderr=log, env=environment))
        deadline = time.monotonic() + LIMIT * (5 if slow else 1)
        while any(worker.poll() is None for worker in workers):
            if time.monotonic() > deadline or any(worker.poll() for worker in workers):
                break
            time.sleep(0.05)
        codes = [worker.poll() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    logs = "\n".join((folder / f"{rank}.log").read_text() for rank in range(len(workers)))
    assert codes == [0] * len(workers), f"the processes returned {codes} (None hangs):\n{logs}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(workers))]


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
def test_the_processes_equal_one(case: str, outcomes: list[dict[str, str | None]]) -> None:
    for rank, outcome in enumerate(outcomes):
        failure = outcome[case]
        assert failure is None, f"on process {rank}: {failure}"
