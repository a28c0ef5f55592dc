"""The built module, without a GPU: it loads, refuses in one sentence, and the backends know."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import subprocess
import sys
import warnings

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
        lambda: module.writes_gradients(4, 1, 64, 784, False, False, 0),
        lambda: module.scale(*[None] * 8, None, 1, 0, 0),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match=r"CUDA error \d+, "):
            call()


def test_the_losses_refuse_tensors_of_the_host(module) -> None:
    module.init(torch.Tensor.__dlpack_c_exchange_api__)
    x, number = torch.zeros(2, 3), torch.zeros(())
    arguments = [x, x, number, *[None] * 7, number, *[None] * 11, 0.0, 1, 0, 0, 1.0]
    arguments += [1e-6, -1.0, 1.0, -1.0, 1, None, 0, 0]
    with pytest.raises(ValueError, match="a tensor is not on a CUDA device"):
        module.loss(*arguments)
    with pytest.raises(ValueError, match="a tensor is not on a CUDA device"):
        module.sample(x, x, None, x, x, None, 1, 0, 0)


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
    """As where there is a GPU."""
    rows = tuple(
        dataclasses.replace(b, unavailable=lambda: None, details=lambda: "")
        for b in backends.BACKENDS
    )
    monkeypatch.setattr(backends, "BACKENDS", rows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.active("cuda", backends.LINALG) == backends.active("cuda") == "cuda"
    assert "CUDA C++ kernels: in use: losses on cuda, linalg on cuda" in backends.describe()
    with backends.use("cuda"):
        assert backends.active("cuda", backends.LINALG) == "cuda"
        assert backends.active("cpu") == "reference"
        assert not backends.has_kernel("cpu")
        assert backends.has_kernel("cuda")
    with backends.use("reference"):
        assert backends.active("cuda", backends.LINALG) == "reference"
        assert not backends.has_kernel("cuda")


def test_the_kernels_of_a_loss_are_chosen_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """And Triton, whose probe compiles, is not asked before a loss is large."""
    calls: list[str] = []

    class Kernels:
        def __init__(self, name: str, takes_statistics: bool) -> None:
            self.name, self.takes_statistics = name, takes_statistics

        def loss(self, *args: object) -> None:
            calls.append(self.name if args[11] is None else f"{self.name} with statistics")

        scale = sample = sample_backward = loss

    broken: list[str] = []

    def probe() -> str | None:
        calls.append("probe")
        return broken[0] if broken else None

    cuda_row = next(b for b in backends.BACKENDS if b.name == "cuda")
    rows = [
        dataclasses.replace(
            cuda_row, unavailable=lambda: None, losses=lambda: Kernels("cuda", True)
        ),
        dataclasses.replace(
            cuda_row, name="triton", unavailable=probe, losses=lambda: Kernels("triton", False)
        ),
        backends.BACKENDS[-1],
    ]
    monkeypatch.setattr(backends, "BACKENDS", tuple(rows))
    large = torch.empty(1).expand(1 << 13, 1 << 13)  # nothing is computed
    for expected in ("triton", "cuda with statistics"):
        backends._forget()
        calls.clear()
        for objective, x in ((1, torch.empty(2, 3)), (3, large), (1, large), (5, large)):
            arguments = [x, x, *[None] * 9, torch.empty(1), *[None] * 11, objective]
            backends.loss_kernels("cuda").loss(*arguments)
        assert calls == ["cuda with statistics"] * 2 + ["probe", expected, expected]
        broken.append("it is broken")
    backends._forget()


def test_a_failed_probe_warns_once_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        architectures = "sm_90"
        init = staticmethod(lambda table: None)

        @staticmethod
        def probe(device: int) -> int:
            raise RuntimeError("a trial launch failed: CUDA error 35")

    monkeypatch.setattr(cuda.importlib, "import_module", lambda name: Broken)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.delenv("VAEKERN_PURE", raising=False)
    cuda._load.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"cannot run here: .*error 35.*next backend"):
            assert cuda.losses() is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cuda.unavailable() is not None
    finally:
        cuda._load.cache_clear()
        cuda.losses.cache_clear()


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
