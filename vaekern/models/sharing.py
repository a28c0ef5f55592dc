"""A model as a directory: config.json and model.safetensors, nothing pickled."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vaekern import _version
from vaekern.models import hub
from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.storage.tensors import load_state, load_tensors, save_tensors

FORMAT = "vaekern model"
VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_REMEDY = "restore it from a copy, or save the model again with save_pretrained"


class Shareable(nn.Module):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model that describes itself."""

    _kind: ClassVar[str]

    def _describe(self) -> dict[str, Any]:
        """What `_from_description` builds the model from, as JSON values."""
        raise NotImplementedError

    def _load_hint(self) -> str | None:
        """How the model is loaded, where its description alone is not enough."""
        raise NotImplementedError

    @classmethod
    def _from_description(
        cls, description: Mapping[str, Any], state: Mapping[str, Tensor], given: Mapping[str, Any]
    ) -> Self:
        """A model for this description, with the modules that the caller has given."""
        raise NotImplementedError

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors: weights, losses and buffers of all stages.

        Networks that vaekern built are described in config.json, and `from_pretrained(directory)`
        builds them again. Of other modules only the weights are kept, never the code: a warning
        then says which modules `from_pretrained` needs beside the directory.

        Args:
            directory: created where it does not exist; an older model in it is replaced.

        Raises:
            RunError: the directory cannot be written, or is a run of `vaekern train`.
            TypeError: a module keeps a state that is no tensor.

        Example:
            >>> import tempfile, torch
            >>> from vaekern.models import VAE, ModelConfig
            >>> vae = VAE.from_config(ModelConfig(), (1, 8, 8), value_range=(0.0, 1.0)).eval()
            >>> directory = tempfile.TemporaryDirectory()
            >>> vae.save_pretrained(directory.name)
            >>> again = VAE.from_pretrained(directory.name)
            >>> z = torch.randn(3, 16)
            >>> bool((again.decode(z) == vae.decode(z)).all())
            True
            >>> directory.cleanup()
        """
        path = Path(directory).expanduser()
        if (path / "run.json").exists():
            raise RunError(
                f"{path} is a run of vaekern train, which from_pretrained loads as it is; "
                "save to another directory"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot create {path} ({error.strerror}); save to another directory"
            ) from error
        save_tensors(path / WEIGHTS, _separate(self.state_dict()), FORMAT, {})
        write_config(self, path)
        hint = self._load_hint()
        if hint is not None:
            warnings.warn(
                f"{path} holds the weights of modules that vaekern did not build; load it with "
                f"{hint}",
                stacklevel=2,
            )

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, message: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; returns the address.

        Args:
            repo_id: "user/name"; the repository is created where it does not exist.
            private: of a new repository; None takes the account's default.
            message: of the commit.

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed; the text names the extra.
            RunError: the hub refuses, or cannot be reached.

        Example:
            >>> vae.push_to_hub("ada/digits-vae")  # doctest: +SKIP
        """
        return hub.upload(self.save_pretrained, repo_id, private=private, message=message)

    @classmethod
    def _load(cls, source: str | Path, revision: str | None, given: Mapping[str, Any]) -> Self:
        """`from_pretrained`, with the modules that the caller has given."""
        path = Path(source).expanduser()
        if not path.is_dir():
            if path.exists():
                raise RunError(
                    f"{path} is a file, but a model is a directory with {CONFIG} and {WEIGHTS}; "
                    "give the directory"
                )
            path = hub.download(str(source), revision, (CONFIG, WEIGHTS))
        description = _read_config(path, cls._kind)
        weights = path / WEIGHTS
        state, _ = load_tensors(weights, FORMAT, remedy=_REMEDY)
        try:
            # A model that is loaded must not change what the program draws afterwards.
            with torch.random.fork_rng(devices=[]):
                model = cls._from_description(description, state, given)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, MissingModulesError):
                raise ValueError(f"{path}: {error}") from None
            reason = " ".join(str(error).split())
            raise RunError(
                f"{path / CONFIG} does not describe a model of this version of vaekern "
                f"({_version.__version__}): {reason}; {_REMEDY}"
            ) from error
        _take_dtypes(model, state)
        load_state(
            model, state, weights, remedy=f"give the modules and the {CONFIG} it was saved with"
        )
        return model.eval()


class MissingModulesError(ValueError):
    """Modules that only the caller can give; the text says how."""


def write_config(model: Shareable, directory: Path) -> None:
    """Write config.json, which makes model.safetensors beside it loadable.

    Raises:
        RunError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "vaekern": _version.__version__,
        "model": model._kind,
    }
    write_atomically(directory / CONFIG, json.dumps(content | model._describe(), indent=2) + "\n")


def _read_config(directory: Path, kind: str) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ours = content["format"] == FORMAT
        version = int(content["version"])
        found = content["model"]
    except FileNotFoundError:
        remedy = (
            "continue the run once with vaekern train --resume, which writes it"
            if (directory / "run.json").exists()
            else "give a directory that save_pretrained or vaekern train wrote"
        )
        raise RunError(f"{directory} holds no {CONFIG}; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError):
        ours, version, found = False, VERSION, kind
    if not ours:
        raise RunError(f"{path} is damaged or not from vaekern; {_REMEDY}")
    if version > VERSION:
        raise RunError(
            f"{path} was written by a newer vaekern (model format {version}, this one reads "
            f"{VERSION}); update vaekern"
        )
    if found != kind:
        raise RunError(
            f"{directory} holds a {found}, not a {kind}; load it with {found}.from_pretrained"
        )
    return dict(content)


def _separate(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state without two names for one piece of memory, which the file format has no word for."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the state {name!r} must be a tensor to be saved, got {type(value).__name__}, and "
                "nothing is pickled; register it as a buffer, or leave get_extra_state out"
            )
        address = value.untyped_storage().data_ptr()
        separate[name] = value.detach().clone() if address in seen else value
        seen.add(address)
    return separate


def _take_dtypes(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make the module's tensors what the file's are: bfloat16 weights stay bfloat16."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name in state and value.dtype != state[name].dtype:
            value.data = value.data.to(state[name].dtype)
