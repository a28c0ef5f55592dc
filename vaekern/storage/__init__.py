"""Files that are never half written: atomic writes, safetensors with a JSON header, no pickle."""

from vaekern.storage.errors import RunError
from vaekern.storage.files import write_atomically
from vaekern.storage.tensors import load_state, load_tensors, save_tensors

__all__ = ["RunError", "load_state", "load_tensors", "save_tensors", "write_atomically"]
