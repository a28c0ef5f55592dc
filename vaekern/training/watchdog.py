"""Signs of life between the processes of a run, so that none waits for one that is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

BEAT = 1.0  # seconds between two signs of life
LOST = 30  # beats that a process may miss
SUSPECT = 4  # beats that it may miss once a connection has broken
GRACE = 3.0  # seconds that the main thread has to end by itself, if it waits for nobody


class Failure(NamedTuple):
    """What ended the run: the first thing that went wrong in any process."""

    rank: int
    sentence: str | None  # None: the process is gone and says nothing
    reporter: int  # the process that tells the user
    host: str = ""

    def text(self, size: int) -> str:
        """One sentence on another process."""
        who = f"process {self.rank} of {size}"
        if self.sentence is not None:
            return f"{who} stopped: {self.sentence}"
        return (
            f"{who} is gone: it was killed, or its machine or the connection to it is down; all "
            "have stopped, and the last checkpoint is kept: continue with --resume, with as many "
            "processes as you like"
        )


class Watchdog:
    """Counts up in a store, in a thread, for the others to see, and looks at their counts.

    Process 0 looks at all, the others at process 0 and at whether a failure has been noted: the
    first one counts. What is counted are beats, not seconds, so that a machine that was suspended
    finds everybody where they were. Where the main thread waits for what will never come (a
    collective cannot be interrupted) the process is ended from here.

    Args:
        store: a `torch.distributed.Store` that nobody else uses.
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, store: Any, rank: int, size: int):
        self.rank, self.size = rank, size
        self.failure: Failure | None = None
        self._store = store
        self._ended, self._found = threading.Event(), threading.Event()
        self._seen: dict[int, tuple[bytes, int]] = {}
        store.set(f"beat/{rank}", "0")
        self._looks = 0

    def start(self) -> None:
        """Begin, once all processes have made theirs."""
        # One asks the store, the other sees whether it answers: a question cannot be given up.
        for target in (self._ask, self._watch):
            threading.Thread(target=target, name="vaekern-watchdog", daemon=True).start()

    def end(self) -> None:
        """Stop looking; the process goes on alone, or ends."""
        self._ended.set()

    def note(self, sentence: str | None, rank: int | None = None) -> Failure:
        """Tell the others what went wrong in this process, or that `rank` is gone.

        Returns:
            What counts: this, unless another process was faster.
        """
        failure = Failure(
            self.rank if rank is None else rank, sentence, self.rank, socket.gethostname()
        )
        try:
            first = self._store.compare_set("failure", "", json.dumps(failure))
        except RuntimeError:  # the store is gone, and so are those who would read it
            return failure
        return _parse(first)

    def suspect(self, seconds: float) -> Failure | None:
        """A connection broke: find out who is gone, or what they said before."""
        with contextlib.suppress(RuntimeError):  # the thread finds the same
            self._store.set("suspect", "1")
        self._found.wait(seconds)
        return self.failure

    def leave(self, linger: float) -> None:
        """End after a failure; process 0, which may hold the store, waits for the others."""
        self._ended.set()
        try:
            self._store.set(f"left/{self.rank}", "1")
            deadline = time.monotonic() + linger
            gone = -1 if self.failure is None else self.failure.rank
            others = [f"left/{rank}" for rank in range(1, self.size) if rank != gone]
            while self.rank == 0 and others and time.monotonic() < deadline:
                if self._store.check(others):
                    return
                time.sleep(0.05)
        except RuntimeError:
            return

    def _ask(self) -> None:
        while self.failure is None and not self._ended.wait(BEAT):
            try:
                self.failure = self._look()
            except RuntimeError:
                self.failure = self._no_store()

    def _watch(self) -> None:
        missed, before, answers = 0, 0, True
        while not self._ended.wait(BEAT):
            if self.failure is None:
                missed, before = missed + 1 if self._looks == before else 0, self._looks
                if missed <= LOST:
                    continue
                self.failure = self._no_store()  # it has not answered, and may never
                answers = False
            self._found.set()
            if not self._ended.wait(GRACE):
                if self.speaks(self.failure):
                    print(f"vaekern: {self.failure.text(self.size)}", file=sys.stderr, flush=True)
                if answers:  # else nobody could read it, and the question would never end
                    self.leave(2 * GRACE)
                os._exit(1)
            return

    def _no_store(self) -> Failure:
        """Process 0 holds the store, unless torchrun's agent does: the next one says it is gone."""
        return Failure(0, None, 1, socket.gethostname())

    def speaks(self, failure: Failure) -> bool:
        """Whether this process tells the user: the one that noted it, or the first elsewhere."""
        elsewhere = failure.host != socket.gethostname()
        return failure.reporter == self.rank or (elsewhere and self.rank == 0)

    def _look(self) -> Failure | None:
        store = self._store
        self._looks += 1
        store.set(f"beat/{self.rank}", str(self._looks))
        if store.check(["failure"]):
            return _parse(store.get("failure"))
        bearable = SUSPECT if store.check(["suspect"]) else LOST
        watched = range(1, self.size) if self.rank == 0 else (0,)
        counts = store.multi_get([f"beat/{rank}" for rank in watched])
        for rank, count in zip(watched, counts, strict=True):
            before, missed = self._seen.get(rank, (count, 0))
            self._seen[rank] = count, missed + 1 if count == before else 0
        rank = max(watched, key=lambda each: self._seen[each][1])
        return self.note(None, rank) if self._seen[rank][1] > bearable else None


def _parse(text: bytes) -> Failure:
    return Failure(*json.loads(text))
