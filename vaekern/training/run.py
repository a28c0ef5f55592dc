"""A whole run: data, both stages, pictures, table."""

from __future__ import annotations

import platform
import time
import warnings
from pathlib import Path

import torch

import vaekern
from vaekern import backends, data
from vaekern.data.rows import UnreadableSampleError
from vaekern.models import TwoStageVAE, sharing
from vaekern.storage.errors import RunError
from vaekern.training.config import TrainConfig, differences
from vaekern.training.memory import out_of_memory
from vaekern.training.run_directory import RunDirectory
from vaekern.training.trainer import Trainer


def choose_device(name: str) -> torch.device:
    """The device that `name` (auto, cpu, cuda) stands for.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds none; use --device cpu")
    return torch.device(name)


CONTINUE = "free memory by ending other programs, and continue with --resume"
LARGE = "free memory by ending other programs, or choose a smaller --image-size or network"


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


class TrainingRun:
    """`vaekern train` as an object: everything is checked here, before anything is written.

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
        self.continued = self.directory.is_run()
        if self.continued and not resume:
            raise RunError(
                f"{self.directory.path} already holds a run; continue it with --resume, "
                "or choose another directory with --run DIR"
            )
        try:
            if self.continued:
                self.directory.lock.acquire()
            with out_of_memory(lambda: f"out of memory while {config.data.data} was read; {LARGE}"):
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        config = self.config
        self.device = choose_device(config.run.device)
        self.data = load_data(config)
        stored = self._check_same_run() if self.continued else config
        torch.manual_seed(config.run.seed)
        self.model = TwoStageVAE.from_config(
            config.model, self.data.sample_shape, self.data.value_range
        ).to(self.device)
        threads = choose_threads(config.run.threads, self.model)
        if threads is not None:
            torch.set_num_threads(threads)
        self.trainer = Trainer(self.model, self.data.train, config, self.directory)
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
            self.start()
            began = time.monotonic()
            with out_of_memory(self._explain_memory):
                self.trainer.train()
            self.seconds = time.monotonic() - began
            with out_of_memory(lambda: f"out of memory in the report; {CONTINUE}"):
                return report(self.model, self.data, self.config, self.directory)
        except UnreadableSampleError as error:
            raise RunError(f"{error}, and continue with --resume") from error
        finally:
            self.close()

    def start(self) -> None:
        """Create the run directory, lock it, and write what describes the run.

        Raises:
            RunError: it cannot be written, or another process trains in it.
        """
        self.directory.start(self.config, self._description(), fresh=not self.continued)
        sharing.write_config(self.model, self.path)

    def close(self) -> None:
        """Let other processes into the run directory; a run that is called does this itself."""
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
        return (
            f"Training on {self.data.name} ({len(self.data.train)} samples of {shape}) "
            f"on {self.device.type}, in {self.path}"
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
