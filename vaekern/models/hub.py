"""The Hugging Face Hub, where huggingface_hub is installed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vaekern._optional import require
from vaekern.storage.errors import RunError

_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]*\w")


def download(repo_id: str, revision: str | None, files: Sequence[str]) -> Path:
    """The directory on this machine that holds `files` of a repository.

    Raises:
        ModuleNotFoundError: huggingface_hub is not installed; the text names the extra.
        RunError: `repo_id` is no name of a repository, or the hub does not give it.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise RunError(
            f"there is no directory {repo_id}; give one that save_pretrained or vaekern train wrote"
        )
    purpose = f"there is no directory {repo_id}, and loading it from the Hugging Face Hub"
    hub = require("huggingface_hub", purpose, extra="hub")
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # its own, requests' and the system's alike
        raise RunError(
            f"there is no directory {repo_id}, and the Hugging Face Hub does not give it "
            f"({_first_line(error)}); check the name, or log in with: hf auth login"
        ) from error


def upload(
    save: Callable[[Path], None], repo_id: str, *, private: bool | None, message: str | None
) -> str:
    """Upload the directory that `save` writes; returns the repository's address.

    Raises:
        ModuleNotFoundError: huggingface_hub is not installed; the text names the extra.
        RunError: the hub refuses, or cannot be reached.
    """
    hub = require("huggingface_hub", "sharing a model on the Hugging Face Hub", extra="hub")
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"repo_id must be 'user/name', got {repo_id!r}")
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        try:
            api = hub.HfApi()
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message or "Upload a vaekern model",
            )
        except Exception as error:  # its own, requests' and the system's alike
            raise RunError(
                f"the Hugging Face Hub does not take {repo_id} ({_first_line(error)}); check the "
                "name, or log in with: hf auth login"
            ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
