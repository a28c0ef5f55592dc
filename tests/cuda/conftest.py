"""The CUDA kernels twice: compiled as C++ over an emulation of CUDA's threads, and on a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import math
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaekern import backends, cuda, testing

ROOT = Path(__file__).parent.parent.parent
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
#: In which order the threads of a block run between two barriers.
ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}
#: What the emulation can leave out.
FAULTS = {"none": 0, "block": 1, "barrier": 2, "launch": 3, "ticket": 4}


class EmulatedKernels:
    """vaekern.cuda's functions on CPU tensors; outputs and workspace start as NaN or nonsense."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.svd_workspace.restype = ctypes.c_int64
        self.library.svd_workspace.argtypes = [ctypes.c_int64] * 3
        self.order = "forward"
        self.shared_memory = 232_448  # bytes that a block may ask for, on an H200

    def _set(self) -> None:
        self.library.set_emulator(ORDERS[self.order], self.shared_memory)

    @staticmethod
    def _strided(t: Tensor) -> list[object]:
        return [_pointer(t), DTYPES[t.dtype], (ctypes.c_int64 * 3)(*t.shape), _strides(t)]

    def right_svd(self, J: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        self._set()
        B, m, d = J.shape
        S, V = torch.full((B, d), torch.nan), torch.full((B, d, d), torch.nan)
        sweeps = torch.full((B,), -7, dtype=torch.int32)
        converged, finite = (torch.full((B,), 77, dtype=torch.uint8) for _ in range(2))
        size = self.library.svd_workspace(B, m, d)
        assert size >= 0
        guard = 64
        workspace = torch.full((size // 8 + guard,), torch.nan, dtype=torch.float64)
        outputs = [_pointer(t) for t in (S, V, sweeps, converged, finite, workspace)]
        assert self.library.svd(*self._strided(J), *outputs) == 0
        assert workspace[-guard:].isnan().all(), "the workspace is overrun"
        assert bool(((converged | finite) <= 1).all()), "a flag was not written"
        return S, V, sweeps, converged.bool(), finite.bool()

    def assignment(self, cost: Tensor) -> Tensor:
        self._set()
        columns = torch.full(cost.shape[:2], -77)
        assert self.library.assign(*self._strided(cost), _pointer(columns)) == 0
        return columns


class DeviceKernels:
    """The same on the GPU, with tensors of the same layout there."""

    order = "forward"
    shared_memory = 0

    def right_svd(self, J: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.cpu() for t in cuda.right_svd(testing.moved(J, torch.device("cuda"))))

    def assignment(self, cost: Tensor) -> Tensor:
        return cuda.assignment(testing.moved(cost, torch.device("cuda"))).cpu()


def _pointer(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def _strides(t: Tensor) -> object:
    return (ctypes.c_int64 * 3)(*t.stride())


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    cxx = next((name for name in names if shutil.which(name)), None)
    if cxx is None:
        pytest.skip("no C++ compiler, so the CUDA kernels cannot be emulated")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the emulator of CUDA's threads is written for x86-64")
    return cxx


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"]
FOLDERS = [f"-I{ROOT / 'csrc'}", f"-I{Path(__file__).parent}"]


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("emulated") / "kernels.so"
    command = [_compiler(), *COMMON, "-fvisibility=default", "-O2", "-shared", *FOLDERS]
    _run([*command, str(Path(__file__).parent / "emulated.cpp"), "-o", str(output)])
    return output


class EmulatedLosses:
    """What vaekern.cuda.Losses is on a GPU, on CPU tensors."""

    takes_statistics = True

    def __init__(self, path: Path) -> None:
        spec = importlib.util.spec_from_file_location("_core", path)
        assert spec is not None
        assert spec.loader is not None
        self.native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.native)
        self.native.init(torch.Tensor.__dlpack_c_exchange_api__, torch.Tensor, torch.nn.Parameter)
        self.library = ctypes.CDLL(str(path))
        self.library.launches.restype = ctypes.c_int64
        self.library.writes_gradients.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3] + [
            ctypes.c_int
        ] * 2
        for slot in ("loss", "scale", "sample", "sample_backward"):
            setattr(self, slot, getattr(self.native, slot))
        self.set()

    def set(
        self, order: str = "forward", shared_memory: int = 232_448, fault: str = "none"
    ) -> None:
        self.library.set_emulator(ORDERS[order], shared_memory)
        self.library.set_fault(FAULTS[fault])

    def writes_gradients(
        self, objective: int, x_hat: Tensor | None, x: Tensor | None, grad_x: bool, double: bool
    ) -> bool:
        if x_hat is None or x is None:
            return True
        samples = x_hat.shape[0] if x_hat.dim() > x.dim() else 1
        features = math.prod(x.shape[1:])
        return bool(
            self.library.writes_gradients(objective, samples, len(x), features, grad_x, double)
        )


@pytest.fixture(scope="session")
def emulated_objects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The losses' kernels as one object, and the compiler."""
    cxx, folder = _compiler(), tmp_path_factory.mktemp("emulated_losses")
    source = Path(__file__).parent / "emulated_losses.cpp"
    _run([cxx, *COMMON, "-O1", *FOLDERS, "-c", str(source), "-o", str(folder / "losses.o")])
    return folder, cxx


@pytest.fixture(scope="session")
def emulated_losses(emulated_objects: tuple[Path, str]) -> EmulatedLosses:
    import pybind11

    folder, cxx = emulated_objects
    headers = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    bindings = [str(ROOT / "csrc" / "bindings.cpp"), str(folder / "losses.o")]
    output = folder / "_core.so"
    _run([cxx, *COMMON, "-O1", "-shared", *FOLDERS, *headers, *bindings, "-o", str(output)])
    return EmulatedLosses(output)


@pytest.fixture
def emulation(
    emulated_losses: EmulatedLosses, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmulatedLosses]:
    """The backend "cuda" runs on CPU tensors."""
    rows = tuple(
        dataclasses.replace(
            b, unavailable=lambda: None, losses=lambda: emulated_losses, emulated=lambda: True
        )
        if b.name == "cuda"
        else b
        for b in backends.BACKENDS
    )
    monkeypatch.setattr(backends, "BACKENDS", rows)
    backends._forget()
    emulated_losses.set()
    yield emulated_losses
    emulated_losses.set()
    backends._forget()


@pytest.fixture(params=["emulated", "device"] if torch.cuda.is_available() else ["emulated"])
def kernels(request: pytest.FixtureRequest) -> EmulatedKernels | DeviceKernels:
    if request.param == "emulated":
        return EmulatedKernels(request.getfixturevalue("emulated_library"))
    if why := cuda.unavailable():
        pytest.skip(f"no CUDA kernels on a GPU here: {why}")
    return DeviceKernels()
