"""A whole run: data, both stages, pictures, table."""

from __future__ import annotations

import contextlib
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

import vaekern
from vaekern import backends, data
from vaekern.data.rows import UnreadableSampleError
from vaekern.models import TwoStageVAE, sharing
from vaekern.storage.errors import RunError
from vaekern.training.config import TrainConfig, differences
from vaekern.training.fitting import fitted
from vaekern.training.memory import out_of_memory
from vaekern.training.processes import Processes, local_rank, size_of_environment
from vaekern.training.run_directory import RunDirectory
from vaekern.training.trainer import Trainer


def choose_device(name: str, number: int = 0) -> torch.device:
    """The device that `name` (auto, cpu, cuda) stands for.

    Args:
        name: of its kind.
        number: of the process on this machine: each takes a GPU of its own.

    Raises:
        ValueError: cuda was asked for and there is none, or none for this process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds none; use --device cpu")
    if name == "cuda" and size_of_environment() > 1:
        if number >= torch.cuda.device_count():
            raise ValueError(
                f"each process needs a GPU of its own, and this machine has "
                f"{torch.cuda.device_count()}, got process {number + 1} on it; start fewer with "
                "torchrun --nproc-per-node, or use --device cpu"
            )
        return torch.device("cuda", number)
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Its name, and which kernels run there."""
    if device.type != "cuda":
        return f"{device.type}, kernels: {backends.active(device)}"
    return f"{torch.cuda.get_device_name(device)}, kernels: {backends.active(device)}"


#: Parameters of both stages below which one thread is as good: two would wait for one another at
#: every small matrix product, which costs little on an idle machine and a factor of five on a busy
#: one.
SMALL_MODEL = 1_000_000


def choose_threads(asked: int | None, model: torch.nn.Module) -> int | None:
    """How many CPU threads to train on; None leaves torch's own number."""
    if asked is not None:
        return asked
    return 1 if sum(p.numel() for p in model.parameters()) < SMALL_MODEL else None


def load_data(config: TrainConfig) -> data.Dataset:
    """The data that the settings name, split as they say.

    Raises:
        ValueError, TypeError, OSError: data that cannot be read.
    """
    try:
        return data.load(
            config.data.data,
            image_size=config.data.image_size,
            test_fraction=config.data.test_fraction,
            seed=config.run.seed,
            stream=config.data.stream,
        )
    except ValueError as error:
        raise ValueError(f"--data {config.data.data}: {error}") from error


def describe_data(found: data.Dataset) -> dict[str, object]:
    """What run.json keeps of the data: enough to notice that another set lies in its place."""
    value_range = found.value_range
    return {
        "name": found.name,
        "kind": found.kind,
        "sample_shape": list(found.sample_shape),
        "value_range": None if value_range is None else list(value_range),
        "train": len(found.train),
        "test": len(found.test),
    }


def check_same_data(found: data.Dataset, config: TrainConfig, directory: RunDirectory) -> None:
    """Refuse data that is not what the run in the directory was trained on.

    Raises:
        RunError: it is not, as far as run.json can tell.
    """
    before, now = directory.read_description().get("data"), describe_data(found)
    if before != now:
        raise RunError(
            f"{config.data.data} is not the data that {directory.path} was trained "
            f"on (then {before}, now {now}); restore the data, or start another run"
        )


def read_data(directory: RunDirectory) -> data.Dataset:
    """The data that a run was trained on, read again from where they were.

    Raises:
        RunError: they are gone, or others lie in their place, or the directory is no run.
    """
    config = directory.read_config()
    try:
        found = load_data(config)
    except (ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"the data of {directory.path}, {config.data.data}, cannot be read ({reason}); "
            "restore them, or run the command where their path leads to them"
        ) from error
    check_same_data(found, config, directory)
    return found


CONTINUE = "free memory, by ending other programs, and continue with --resume"
LARGE = "free memory by ending other programs, or choose a smaller --image-size or network"


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except UnreadableSampleError as error:
        raise RunError(
            f"{error}; --resume goes on where samples were replaced, and a new run where they were "
            "removed"
        ) from error


class TrainingRun:
    """`vaekern train` as an object: everything is checked here, before anything is written.

    Started by torchrun, the processes train one model together. Process 0 alone looks after the
    run directory and reports at the end; the others return an empty table before.

    Args:
        config: the settings.
        resume: continue the run in the directory, or start one where it is empty.

    Raises:
        RunError: the directory holds something else, or a run and `resume` is False, or other
            settings than the run's are asked for.
        ValueError, TypeError, OSError: data that cannot be read, or settings that do not fit it.

    Example:
        >>> run = TrainingRun(TrainConfig())  # doctest: +SKIP
        >>> print(run())  # trains; returns the table  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False):
        self.config = config
        self.seconds = 0.0  # that the call has trained, without its report
        self.directory = RunDirectory(config.run_directory)
        self.device = choose_device(config.run.device, local_rank())
        self.processes = Processes.join(self.device)
        try:
            with self.processes.watched():
                with self.processes.together():
                    self.continued = self.processes.main and self._enter(resume)
                self.continued = self.processes.tell(self.continued)
                explain = f"out of memory while {config.data.data} was read; {LARGE}"
                with self.processes.together(), out_of_memory(lambda: explain):
                    self._prepare()
                self._check_same_position()
        except BaseException:
            self.close()
            raise

    def _enter(self, resume: bool) -> bool:
        """Whether there is a run to continue, whose directory is then locked."""
        if not self.directory.is_run():
            return False
        if not resume:
            raise RunError(
                f"{self.directory.path} already holds a run; continue it with --resume, "
                "or choose another directory with --run DIR"
            )
        self.directory.lock.acquire()
        return True

    def _check_same_position(self) -> None:
        """Refuse to go on where the processes do not see the same files."""
        here = f"{self.trainer.position}, step {self.trainer.position.step}"
        main = self.processes.tell(here)
        with self.processes.together():
            if here != main:
                raise RunError(
                    f"{self.path} must be one directory for all processes, got {main} in process "
                    f"0 and {here} in process {self.processes.rank}; give a --run directory on a "
                    "file system that all machines share"
                )

    def _prepare(self) -> None:
        self.data = load_data(self.config)
        self.config = config = fitted(self.config, self.data)
        stored = self._check_same_run() if self.continued else config
        torch.manual_seed(config.run.seed)
        self.model = TwoStageVAE.from_config(
            config.model, self.data.sample_shape, self.data.value_range
        ).to(self.device)
        threads = choose_threads(config.run.threads, self.model)
        if threads is not None:
            torch.set_num_threads(threads)
        self.trainer = Trainer(self.model, self.data.train, config, self.directory, self.processes)
        if (warning := self.trainer.warning()) is not None:
            warnings.warn(warning, stacklevel=3)
        if not self.continued:
            return
        if (skipped := self.trainer.restore()) is not None:
            warnings.warn(skipped, stacklevel=3)
        if stored.stage1 != config.stage1 and self.trainer.position.stage == 2:
            raise RunError(
                f"stage 1 of {self.directory.path} is finished, and stage 2 builds on it; leave "
                "--stage1 settings out, or choose another directory with --run DIR"
            )

    def __call__(self) -> str:
        """Train to the end, evaluate, draw; returns the table.

        Raises:
            RunError: the loss is no longer finite, the disk or the memory is full, a sample on disk
                cannot be read, or another process trains in the directory.
            KeyboardInterrupt: Ctrl-C; the directory holds a checkpoint.
        """
        from vaekern.training.report import report  # its packages take a second to import

        try:
            with self.processes.watched(), _readable(), out_of_memory(self._explain_memory):
                self.start()
                began = time.monotonic()
                self.trainer.train()
                self.seconds = time.monotonic() - began
                self.processes.leave()
            if not self.processes.main:
                return ""
            with _readable(), out_of_memory(lambda: f"out of memory in the report; {CONTINUE}"):
                return report(self.model, self.data, self.config, self.directory)
        finally:
            self.close()

    def start(self) -> None:
        """Create the run directory, lock it, and write what describes the run.

        Raises:
            RunError: it cannot be written, or another process trains in it.
        """
        with self.processes.together():
            if self.processes.main:
                self.directory.start(self.config, self._description(), fresh=not self.continued)
                sharing.write_config(self.model, self.path)

    def close(self) -> None:
        """Let other processes into the run directory; a run that is called does this itself."""
        self.processes.close()
        self.directory.lock.release()

    def _explain_memory(self) -> str:
        position = self.trainer.position
        name = f"stage{position.stage}"
        size = getattr(self.config, name).batch_size
        return (
            f"out of memory in stage {position.stage}, epoch {position.epoch + 1}, step "
            f"{position.step + 1}, with batches of {size} samples; the last checkpoint is kept: "
            f"{CONTINUE}, or start a run with a smaller --{name}.batch-size"
        )

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    def summary(self) -> str:
        """One line on what is trained, and where."""
        shape = "x".join(map(str, self.data.sample_shape))
        count = self.processes.size
        where = self.device.type if count == 1 else f"{self.device.type}, {count} processes"
        return (
            f"Training on {self.data.name} ({len(self.data.train)} samples of {shape}) "
            f"on {where}, in {self.path}"
        )

    def _description(self) -> dict[str, object]:
        return {
            "vaekern": vaekern.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "device": describe_device(self.device),
            "data": describe_data(self.data),
        }

    def _check_same_run(self) -> TrainConfig:
        """The settings that the run in the directory was started with."""
        directory, stored = self.directory, self.config
        if directory.config.exists() or directory.model.exists():
            stored = directory.read_config()  # else it was stopped before it had written them
        changed = differences(stored, self.config)
        if changed:
            raise RunError(
                f"{directory.path} was trained with other settings ({'; '.join(changed)}); "
                "leave these out, or choose another directory with --run DIR"
            )
        check_same_data(self.data, self.config, directory)
        return stored
