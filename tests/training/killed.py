"""Runs in processes of their own that are killed; imported by those processes too."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# A process forked from one that has imported everything starts in milliseconds; the server itself
# is a fresh interpreter, without the threads of the test process.
PRELOADED = [
    *("killed", "vaekern.cli", "vaekern.training", "vaekern.training.flags"),
    *("vaekern.training.report", "vaekern.data", "matplotlib.backends.backend_agg"),
    *(
        "torch._dynamo",
        "matplotlib.font_manager",
        "jsonargparse",
        "safetensors.torch",
        "tqdm",
        "yaml",
    ),
]

# What Python reports before it touches a file. os.replace counts as os.rename.
FILE_EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir")


def command(words: list[str], crash_at: int | None, directory: str) -> None:
    """`vaekern` with the given words; SIGKILL just before its `crash_at`-th touch of a file.

    Its exit code becomes that of the process, its messages go to directory + ".err".
    """
    import torch

    from vaekern.cli import main

    torch.set_num_threads(1)
    with open(f"{directory}.err", "w", encoding="utf-8") as messages:
        sys.stdout = sys.stderr = messages
        if crash_at is not None:
            sys.addaudithook(_crash(directory, crash_at))
        code = main(words)
    os._exit(code)  # nothing of the parent's is to be tidied up here


def _crash(directory: str, at: int) -> Callable[[str, tuple[Any, ...]], None]:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(f"{directory}/"):
            return
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def start(words: list[str], directory: Path, crash_at: int | None = None) -> BaseProcess:
    """Start `vaekern` with the given words."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=command, args=(words, crash_at, str(directory)))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Wait for a process; its exit code, negative where a signal ended it."""
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def kill_when(process: BaseProcess, reached: Callable[[], bool]) -> bool:
    """SIGKILL as soon as `reached`; whether the process was still alive."""
    while process.is_alive() and not reached():
        time.sleep(0.0002)
    process.kill()
    return finish(process) == -signal.SIGKILL
