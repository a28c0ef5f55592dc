"""The CUDA kernels twice: compiled as C++ over an emulation of CUDA's threads, and on a GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaekern import cuda

ROOT = Path(__file__).parent.parent.parent
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
#: In which order the threads of a block run between two barriers.
ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}


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

    @staticmethod
    def _move(t: Tensor) -> Tensor:
        whole = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
        return whole.cuda().as_strided(t.shape, t.stride(), t.storage_offset())

    def right_svd(self, J: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.cpu() for t in cuda.right_svd(self._move(J)))

    def assignment(self, cost: Tensor) -> Tensor:
        return cuda.assignment(self._move(cost)).cpu()


def _pointer(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def _strides(t: Tensor) -> object:
    return (ctypes.c_int64 * 3)(*t.stride())


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    cxx = next((name for name in names if shutil.which(name)), None)
    if cxx is None:
        pytest.skip("no C++ compiler, so the CUDA kernels cannot be emulated")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("the emulator of CUDA's threads is written for x86-64")
    output = tmp_path_factory.mktemp("emulated") / "kernels.so"
    command = [cxx, "-std=c++17", "-O2", "-fPIC", "-shared", "-fno-math-errno"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{Path(__file__).parent}"]
    command += [str(Path(__file__).parent / "emulated.cpp"), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(params=["emulated", "device"] if torch.cuda.is_available() else ["emulated"])
def kernels(request: pytest.FixtureRequest) -> EmulatedKernels | DeviceKernels:
    if request.param == "emulated":
        return EmulatedKernels(request.getfixturevalue("emulated_library"))
    if why := cuda.unavailable():
        pytest.skip(f"no CUDA kernels on a GPU here: {why}")
    return DeviceKernels()
