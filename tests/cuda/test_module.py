"""The built module, without a GPU: it loads, refuses in one sentence, and the backends know."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import subprocess
import sys

import pytest
import torch

from vaekern import backends, cuda

ASKED_AWAY = os.environ.get("VAEKERN_PURE") == "1" or os.environ.get("VAEKERN_CUDA") == "0"


@pytest.fixture
def module():  # type: ignore[no-untyped-def]
    try:
        return importlib.import_module("vaekern._cuda")
    except ImportError:
        if shutil.which("nvcc") is None or ASKED_AWAY:
            pytest.skip("no nvcc, or told not to build the CUDA kernels")
        pytest.fail(f"nvcc is here and vaekern._cuda is not built: {cuda.unavailable()}")


def test_it_holds_code_for_every_architecture_it_names(module) -> None:
    names = module.architectures.split()
    assert names
    assert all(name.startswith("sm_") for name in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it answers")
def test_a_launch_without_a_driver_is_an_exception(module) -> None:
    module.init(torch.Tensor.__dlpack_c_exchange_api__)
    calls = (
        lambda: module.probe(0),
        lambda: module.right_svd_workspace(2, 100, 100, 0),
        lambda: module.assignment(torch.zeros(1, 2, 2), torch.zeros(1, 2).long(), 0, 0),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match=r"CUDA error \d+, "):
            call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it answers")
def test_the_backend_says_why_it_cannot_run() -> None:
    why = cuda.unavailable()
    assert why is not None
    assert "\n" not in why
    assert f"unavailable: {why}" in backends.describe()
    assert backends.active("cuda", backends.LINALG) == "reference"
    with (
        pytest.raises(RuntimeError, match="backend 'cuda' cannot run here: "),
        backends.use("cuda"),
    ):
        pass


def test_a_backend_serves_the_operators_it_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is a GPU: linalg runs on CUDA's kernels, the losses on Triton's."""
    rows = tuple(
        dataclasses.replace(b, unavailable=lambda: None, details=lambda: "")
        for b in backends.BACKENDS
    )
    monkeypatch.setattr(backends, "BACKENDS", rows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.active("cuda", backends.LINALG) == "cuda"
    assert backends.active("cuda") == "triton"
    assert "cuda       CUDA C++ kernels: in use: linalg on cuda" in backends.describe()
    assert "triton     Triton kernels: in use: losses on cuda" in backends.describe()
    with backends.use("cuda"):
        assert backends.active("cuda", backends.LINALG) == "cuda"
        assert backends.active("cpu") == backends.active("cuda") == "reference"
        assert not backends.has_kernel("cpu")
        assert not backends.has_kernel("cuda")
    with backends.use("reference"):
        assert backends.active("cuda", backends.LINALG) == "reference"
    assert backends.has_kernel("cuda")


def test_importing_the_package_does_not_start_cuda() -> None:
    """A process that forks its data loaders must not find CUDA started by an import."""
    code = (
        "import torch\n"
        "def started(*_): raise SystemExit('asked for a device')\n"
        "torch.cuda.is_available = torch.cuda.init = started\n"
        "torch.version.cuda = '13.0'\n"
        "import vaekern\n"
        "vaekern.functional.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_float64_takes_the_pytorch_path() -> None:
    J = torch.randn(2, 9, 4, dtype=torch.float64)
    J[1, 0, 0] = torch.inf
    *_, finite = cuda.right_svd(J[:1])
    assert finite.tolist() == [True]
