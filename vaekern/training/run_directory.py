"""The run directory: where everything lies, and when it may be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vaekern._optional import require
from vaekern.models import TwoStageVAE, sharing
from vaekern.storage.errors import RunError
from vaekern.storage.files import PREFIX, remove_temporaries, write_atomically
from vaekern.storage.lock import Lock
from vaekern.storage.tensors import load_state, load_tensors
from vaekern.training.config import TrainConfig

FORMAT = "vaekern run"
VERSION = 1
MODEL = sharing.FORMAT


class RunDirectory:
    """A directory that holds one run.

    config.yaml                      the settings, as `vaekern train --config` reads them
    run.json                         what the data was, and the version that wrote the run
    model.safetensors                weights, losses and buffers of both stages
    config.json                      what these belong to, as `TwoStageVAE.from_pretrained` reads it
    best-stage1.safetensors          the same, stage 1 as it was after its best epoch
    best-stage2.safetensors          the same, stage 2 as it was after its best epoch
    checkpoint.safetensors           what `--resume` needs: model, optimiser, random states
    previous-checkpoint.safetensors  the one before, for when that is damaged
    skipped-checkpoint.safetensors   a damaged one that was found in its place
    metrics.jsonl                    one line for each epoch
    metrics.json                     the numbers of the final table
    table.txt                        the table
    report.html                      all of it on one page, for a browser
    figures/                         pictures
    train.lock                       while a process trains here

    None of them ever holds weights that are infinite or NaN. The best epoch is that of the lowest
    validation loss, where part of the training set is held out for one that is watched; otherwise
    of the lowest reconstruction + beta KL, a mean over the epoch's steps and at the full beta. The
    test set has no say.
    Stage 2 is always trained on the latents of stage 1's last weights.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.config = self.path / "config.yaml"
        self.description = self.path / "run.json"
        self.model = self.path / "model.safetensors"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.previous_checkpoint = self.path / "previous-checkpoint.safetensors"
        self.skipped_checkpoint = self.path / "skipped-checkpoint.safetensors"
        self.log = self.path / "metrics.jsonl"
        self.metrics = self.path / "metrics.json"
        self.table = self.path / "table.txt"
        self.page = self.path / "report.html"
        self.figures = self.path / "figures"
        self.lock = Lock(self.path / "train.lock", str(self.path))

    def best(self, stage: int) -> Path:
        """The weights after the best epoch of a stage."""
        return self.path / f"best-stage{stage}.safetensors"

    def is_run(self) -> bool:
        """Whether the directory holds a run.

        Raises:
            RunError: it is a file, it holds something else, or a run of a newer version.
        """
        try:
            entries = [each.name for each in self.path.iterdir()]
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            raise RunError(
                f"{self.path} is a file, or below one, but a run needs a directory; "
                "choose another with --run DIR"
            ) from None
        except OSError as error:
            raise RunError(
                f"cannot read {self.path} ({error.strerror}); choose another with --run DIR"
            ) from error
        left = (PREFIX, self.lock.path.name)  # what a crash may have left
        if all(name.startswith(left) for name in entries):
            return False
        if self.description.name not in entries:
            raise RunError(
                f"{self.path} is not a vaekern run (it holds no {self.description.name}) and is "
                "not empty; choose another directory with --run DIR"
            )
        self.read_description()
        return True

    def read_description(self) -> dict[str, Any]:
        """run.json.

        Raises:
            RunError: it is missing, damaged, from something else, or from a newer version.
        """
        try:
            content = json.loads(self.description.read_text(encoding="utf-8"))
            ours = content["format"] == FORMAT
            version = int(content["version"])
        except FileNotFoundError:
            raise RunError(
                f"{self.path} is not a vaekern run (it holds no {self.description.name}); "
                "give the directory that `vaekern train` wrote"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            ours, version = False, VERSION
        if not ours:
            raise RunError(
                f"{self.description} is damaged or not from vaekern; "
                "choose another directory with --run DIR"
            )
        if version > VERSION:
            raise RunError(
                f"{self.path} was written by a newer vaekern (run format {version}, this one reads "
                f"{VERSION}); update vaekern"
            )
        return dict(content)

    def start(
        self, config: TrainConfig, description: dict[str, Any], *, fresh: bool = False
    ) -> None:
        """Create the directory, lock it, and write what describes the run.

        Raises:
            RunError: it cannot be written, another process trains in it, or it is to be fresh and
                another process has started a run in it meanwhile.
        """
        yaml = require("yaml", "saving a run", package="PyYAML")
        self._make(self.path)
        self.lock.acquire()
        if fresh and self.is_run():
            raise RunError(
                f"another process has just trained in {self.path}; continue that run with "
                "--resume, or choose another directory with --run DIR"
            )
        remove_temporaries(self.path)
        header = {"format": FORMAT, "version": VERSION}
        # run.json marks the directory as a run, so it comes first: whatever happens afterwards,
        # `--resume` knows what it is looking at.
        write_atomically(self.description, json.dumps(header | description, indent=2) + "\n")
        write_atomically(self.config, yaml.safe_dump(config.to_flat(), sort_keys=False))
        self._make(self.figures)
        remove_temporaries(self.figures)

    def _make(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot create {path} ({error.strerror}); choose another with --run DIR"
            ) from error

    def read_config(self) -> TrainConfig:
        """config.yaml.

        Raises:
            RunError: it is missing or damaged.
        """
        yaml = require("yaml", "reading a run", package="PyYAML")
        try:
            return TrainConfig.from_flat(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"cannot read {self.config} ({reason}); restore it from a copy, "
                "or train again with another --run directory"
            ) from error


def load_model(
    run: str | Path, *, best_of_stage: int | None = None
) -> tuple[TwoStageVAE, dict[str, Any]]:
    """(model in evaluation mode, on the CPU; what run.json says of the data) of a trained run.

    Args:
        run: the run directory.
        best_of_stage: 1 or 2 takes that stage as it was after its best epoch, in place of its last.

    Raises:
        RunError: the directory is no run, or one of its files is missing or damaged.

    Example:
        >>> model, data = load_model("runs/digits-iso-i-mle")  # doctest: +SKIP
        >>> model.sample(64, stage=2).shape  # doctest: +SKIP
        torch.Size([64, 1, 8, 8])
    """
    directory = RunDirectory(run)
    data = directory.read_description()["data"]
    config = directory.read_config()
    value_range = data["value_range"]
    model = TwoStageVAE.from_config(
        config.model,
        tuple(data["sample_shape"]),
        None if value_range is None else (value_range[0], value_range[1]),
    )
    path = directory.model if best_of_stage is None else directory.best(best_of_stage)
    if best_of_stage is not None and not path.exists():
        raise RunError(
            f"{directory.path} holds no best weights of stage {best_of_stage}: they come with its "
            "first finished epoch; take the last ones, or train on with --resume"
        )
    state, _ = load_tensors(path, MODEL)
    load_state(model, state, path)
    return model.eval(), data
