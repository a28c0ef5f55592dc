"""Tensors on disk: safetensors with a JSON header, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaekern._optional import require
from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    kind: str,
    header: Any,
    *,
    previous: Path | None = None,
) -> None:
    """Write tensors, and a JSON value that says what they are, in one atomic step.

    `previous` is where the old file stays, if it is to stay.

    Raises:
        RunError: the disk is full or the file cannot be written.
    """
    save = require("safetensors.torch", "saving a run").save
    # One file, so that weights, optimiser and position can never be of different ages.
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = save(ready, metadata={"kind": kind, "header": json.dumps(header)})
    write_atomically(path, content, previous=previous)


RETRAIN = "restore it from a copy, or train again with another --run directory"


def load_tensors(path: Path, kind: str, *, remedy: str = RETRAIN) -> tuple[dict[str, Tensor], Any]:
    """(tensors, header) of a file that `save_tensors` wrote with the same kind.

    `remedy` ends the sentence of an error.

    Raises:
        RunError: no such file, a damaged one, or one from somewhere else.
    """
    with _opened(path, kind, remedy) as (file, header):
        # The handle itself cannot be iterated.
        return {name: file.get_tensor(name) for name in list(file.keys())}, header


def read_header(path: Path, kind: str) -> Any:
    """The header alone; the tensors are not read.

    Raises:
        RunError: as `load_tensors`.
    """
    with _opened(path, kind) as (_, header):
        return header


@contextmanager
def _opened(path: Path, kind: str, remedy: str = RETRAIN) -> Iterator[tuple[Any, Any]]:
    safetensors = require("safetensors", "loading a run")
    if not path.is_file():
        raise RunError(f"there is no file {path}; {remedy}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != kind:
                raise RunError(f"{path} was not written by vaekern as {kind}; {remedy}")
            yield file, json.loads(metadata["header"])
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged or incomplete ({error}); {remedy}") from error


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    remedy: str = "use the config.yaml that was written beside it",
) -> None:
    """Load a module's state, all of it or nothing. `remedy` ends the sentence of an error.

    Raises:
        RunError: names or shapes that are not the module's.
    """
    own = module.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    wrong += [name for name in state if name not in own]
    if wrong:
        raise RunError(
            f"{path} does not hold this model: {len(wrong)} tensors differ, the first is "
            f"{wrong[0]!r}; {remedy}"
        )
    module.load_state_dict(dict(state))


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity, with a single wait for the device."""
    checks = [torch.isfinite(each).all() for each in tensors if each.is_floating_point()]
    return not checks or bool(torch.stack(checks).all())
