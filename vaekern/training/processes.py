"""The processes that train one model together: who they are, and what they tell one another."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vaekern.storage.errors import RunError, SaidElsewhere
from vaekern.training.interrupt import Stopped
from vaekern.training.watchdog import BEAT, GRACE, SUSPECT, Watchdog

# A process that has not come by then never will; torchrun starts all of them in seconds.
MEETING = datetime.timedelta(minutes=5)
# The longest that a process works alone while the others wait. One that is gone is noticed by the
# watchdog; this is for one that lives and never comes.
PATIENCE = datetime.timedelta(hours=2)

# What gloo and NCCL say in a plain RuntimeError where another process does not answer.
SIGNS = ("gloo", "NCCL", "ProcessGroup", "Connection closed by peer", "Connection reset by peer")

_joined = itertools.count()

# The last process group that was ended here. DDP's reducer must not be the last to hold one: it
# would wait, with the interpreter locked, for a thread of gloo's that may want the interpreter.
# This object's own end lets go of the interpreter first.
_ended: list[Any] = []


def size_of_environment() -> int:
    """How many processes torchrun's variables speak of."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1


def rank_of_environment() -> int:
    """Which of them this one is."""
    return int(os.environ.get("RANK", "0")) if size_of_environment() > 1 else 0


def local_rank() -> int:
    """Which of the processes on this machine this one is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class Processes:
    """One process alone (the default), or this one among those that train a model together.

    Every method but `share` is a collective: all processes have to call it, in the same order. For
    one process alone they cost nothing.

    Args:
        rank: of this process.
        size: how many there are.
        device: where this one's tensors are.
        watchdog: looks whether the others live.
        owned: whether the process group was made for this run, and ends with it.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        device: torch.device | None = None,
        watchdog: Watchdog | None = None,
        *,
        owned: bool = False,
    ):
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")
        self._watchdog = watchdog
        self._owned = owned
        self._store: Any = None
        self._alike: BaseException | None = None

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the processes that torchrun has started, where it has.

        A process group that the caller has initialised is used as it is. Otherwise gloo connects
        CPUs and NCCL connects GPUs, as the variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
        say.

        Raises:
            RunError: the processes do not find one another.
        """
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            found = cls(distributed.get_rank(), distributed.get_world_size(), device)
            try:
                found.most([0])
            except RuntimeError as error:
                raise RunError(
                    "torch.distributed must be initialised for CPU tensors too, got "
                    f"{distributed.get_backend()} ({_first_line(error)}); give "
                    "init_process_group the backend 'cpu:gloo,cuda:nccl'"
                ) from error
            return found
        size = size_of_environment()
        if size < 2:
            return cls()
        if not distributed.is_available():
            raise RunError(
                f"WORLD_SIZE is {size}, but this torch has no torch.distributed; "
                "install one that has, or start one process"
            )
        missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing:
            raise RunError(
                f"WORLD_SIZE is {size}, but {missing[0]} is not set; start the processes with "
                "torchrun --nproc-per-node N -m vaekern train, or unset WORLD_SIZE for one process"
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefix = f"vaekern/{attempt}/{next(_joined)}"
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            store, rank, size = next(distributed.rendezvous("env://", timeout=MEETING))
            distributed.init_process_group(
                "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=distributed.PrefixStore(f"{prefix}/groups", store),
                rank=rank,
                world_size=size,
                timeout=PATIENCE,
            )
            # A client of its own: one that waits for an answer keeps others from asking.
            client = distributed.TCPStore(
                *address, is_master=False, wait_for_workers=False, timeout=MEETING
            )
            watchdog = Watchdog(distributed.PrefixStore(f"{prefix}/watch", client), rank, size)
            processes = cls(rank, size, device, watchdog, owned=True)
            processes.most([0])
        except RuntimeError as error:
            raise RunError(
                f"the {size} processes of this run did not find one another at "
                f"{address[0]}:{address[1]} ({_first_line(error)}); start them together, "
                "with torchrun"
            ) from error
        client.set_timeout(datetime.timedelta(seconds=30))
        watchdog.start()
        processes._store = store  # process 0 may hold the server: it lives as long as this
        return processes

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return self.size == 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    # -- data --------------------------------------------------------------------------------

    def share(self, count: int) -> slice:
        """This process's rows of a batch of so many; the first ones have one more where needed."""
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes, where the tensor is; the same bits everywhere."""
        return value if self.alone else self.sum(value) / self.size

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, where the tensor is."""
        if self.alone:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def rows(self, part: Tensor, count: int) -> Tensor:
        """All `count` rows in order, of which each process has its `share`."""
        if self.alone:
            return part
        whole = part.new_zeros(count, *part.shape[1:])
        whole[self.share(count)] = part.detach()
        return self.sum(whole)

    def stack(self, value: Tensor) -> Tensor:
        """[size, ...]: every process's value."""
        return self.rows(value[None], self.size)

    # -- agreement ----------------------------------------------------------------------------

    def most(self, numbers: list[float]) -> list[float]:
        """The largest of each number, between the CPUs: no device is waited for."""
        if self.alone:
            return numbers
        found = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return found.tolist()

    def tell(self, thing: Any, rank: int = 0) -> Any:
        """What process `rank` calls thing: a small object."""
        if self.alone:
            return thing
        box = [thing]
        torch.distributed.broadcast_object_list(box, src=rank, device=torch.device("cpu"))
        return box[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All processes leave the block well, or all with an error, which one of them says.

        There may be no collective in the block: the others would wait for one that failed.

        Raises:
            SaidElsewhere: in all but one.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.alone:
                raise
            error = raised
        if self.alone:
            return
        failed = int(self.most([0 if error is None else self.size - self.rank])[0])
        if not failed:
            return
        first = self.size - failed
        said = self.tell(str(error), first)
        if error is None or first != self.rank:
            raise SaidElsewhere(said)
        self._alike = error
        raise error

    def alike(self, error: RunError) -> RunError:
        """An error that every process has come upon: process 0 says it."""
        self._alike = error if self.main else SaidElsewhere(str(error))
        return self._alike

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever ends the block in one process ends it in all of them.

        Raises:
            RunError: another process is gone.
            SaidElsewhere: another process failed, and says why.
        """
        if self.alone:
            yield
            return
        try:
            yield
        except (SaidElsewhere, Stopped):
            raise
        except BaseException as error:
            if error is self._alike:
                raise
            _ignore_sigterm()  # torchrun sends it as soon as one has failed
            found = self._explain(error)
            if self._watchdog is not None:
                self._watchdog.leave(2 * GRACE)
            if found is error:
                raise
            raise found from error

    def _explain(self, error: BaseException) -> BaseException:
        watchdog = self._watchdog
        if not _is_of_communication(error):
            if watchdog is not None:
                interrupted = isinstance(error, KeyboardInterrupt)
                watchdog.note("it was interrupted" if interrupted else _first_line(error))
            return error
        failure = None if watchdog is None else watchdog.suspect(10 * SUSPECT * BEAT)
        if failure is None:
            return self.alike(
                RunError(
                    f"the connection to another process broke ({_first_line(error)}); the last "
                    "checkpoint is kept: continue with --resume"
                )
            )
        assert watchdog is not None
        kind = RunError if watchdog.speaks(failure) else SaidElsewhere
        return kind(failure.text(self.size))

    def leave(self) -> None:
        """Go on alone: the others have nothing more to do with this run."""
        if self.alone:
            return
        self.most([0])
        self.close()
        self.size = 1

    def close(self) -> None:
        """End the watch, and the process group where this run made it."""
        if self._watchdog is not None:
            self._watchdog.end()
        if self._owned and self.device.type == "cpu" and torch.distributed.is_initialized():
            _ended[:] = [torch.distributed.group.WORLD]
            torch.distributed.destroy_process_group()
        self._owned = False


def _is_of_communication(error: BaseException) -> bool:
    if isinstance(error, RunError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.distributed.DistError) or any(s in str(error) for s in SIGNS)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _ignore_sigterm() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
