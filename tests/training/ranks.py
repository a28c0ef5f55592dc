"""`vaekern` in several processes that know of one another, and what befalls one of them.

Imported by those processes too."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from killed import PRELOADED


def start(
    words: list[str], path: Path, size: int = 2, *, report: bool = False, **faults: str
) -> list[BaseProcess]:
    """`vaekern` with the given words in `size` processes; messages go to PATH.RANK.err.

    Args:
        words: of the command line.
        path: where the run will be.
        size: how many processes.
        report: whether the run ends with its report, or without.
        faults: rank1="kill 6": what the process does in the middle of its sixth step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "torch.nn.parallel", "ranks"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        arguments = (words, str(path), environment, faults.get(f"rank{rank}"), report)
        processes.append(context.Process(target=_command, args=arguments))
        processes[-1].start()
    return processes


def finish(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Wait for them; their exit codes, None for one that hangs."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def messages(path: Path, rank: int) -> str:
    """What a process has written to stdout and stderr."""
    return Path(f"{path}.{rank}.err").read_text(encoding="utf-8")


def _command(
    words: list[str], path: str, environment: dict[str, str], fault: str | None, report: bool
) -> None:
    import torch

    from vaekern.cli import main
    from vaekern.training import report as reporting

    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = environment["RANK"]
    with open(f"{path}.{rank}.err", "w", encoding="utf-8", buffering=1) as said:
        sys.stdout = sys.stderr = said
        if not report:
            reporting.report = lambda *_: "no report"  # type: ignore[assignment]
        if rank != "0":
            sys.addaudithook(_no_writing(path))
        if fault is not None:
            _plant(*fault.split())
        code = main(words)
    os._exit(code)  # nothing of the parent's is to be tidied up here


def _no_writing(path: str) -> Callable[[str, tuple[Any, ...]], None]:
    """Whatever this process changes below the run directory ends it with code 99."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not arguments or not str(arguments[0]).startswith(f"{path}/"):
            return
        reads = event == "open" and arguments[1] in ("r", "rb")
        if event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir") and not reads:
            print(f"{event} {arguments}", file=sys.stderr)
            os._exit(99)

    return hook


def _plant(name: str, step: str) -> None:
    """Let the fault befall this process when it has finished so many steps of both stages."""
    from vaekern.training.metrics import Totals

    original, count = Totals.add, iter(range(1, 10**9))

    def add(self: Totals, components: Any) -> None:
        original(self, components)
        if next(count) == int(step):
            FAULTS[name](components)

    Totals.add = add  # type: ignore[method-assign]


def _signal(number: int) -> Callable[[Any], None]:
    return lambda _: os.kill(os.getpid(), number)


def _out_of_memory(_: Any) -> None:
    raise MemoryError


def _not_a_number(components: Any) -> None:
    components.loss.data.fill_(float("nan"))


def _full_disk(_: Any) -> None:
    """From now on nothing can be written."""

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.fsync = full


FAULTS: dict[str, Callable[[Any], None]] = {
    "kill": _signal(signal.SIGKILL) if hasattr(signal, "SIGKILL") else _out_of_memory,
    "freeze": _signal(signal.SIGSTOP) if hasattr(signal, "SIGSTOP") else _out_of_memory,
    "terminate": _signal(signal.SIGTERM),
    "interrupt": _signal(signal.SIGINT),
    "memory": _out_of_memory,
    "nan": _not_a_number,
    "disk": _full_disk,
}


def lines(path: Path) -> Iterator[str]:
    """metrics.jsonl, line by line."""
    yield from (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
