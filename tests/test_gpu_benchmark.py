"""The command for a machine with a GPU, as far as it runs without one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vaekern import testing

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def modules():  # type: ignore[no-untyped-def]
    """gpu, gpu_clock and gpu_operators, imported as the script imports them."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import gpu
        import gpu_clock
        import gpu_operators

        yield gpu, gpu_clock, gpu_operators
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_dry_run_checks_and_writes_every_row(modules, tmp_path: Path, capsys) -> None:
    gpu, _, operators = modules
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu--dry-run.json").read_text())
    assert result["dry_run"] is True
    checked = {"right_svd", "assignment", "loss", "tests on the device", "compute-sanitizer"}
    assert {check["operator"] for check in result["checks"]} == checked
    assert all(check["passed"] for check in result["checks"])
    assert len(result["rows"]) == sum(len(o.small) for o in operators.OPERATORS)
    objectives = [row["objective"] for row in result["losses"]]
    assert objectives == [o.name for o in gpu.gpu_losses.OBJECTIVES]
    for row in result["losses"]:
        for variant in row["variants"].values():
            assert variant["kernel"]["us"] > 0
            assert variant["host_us"] > 0
    for row in result["rows"]:
        assert row["kernel"]["us"] > 0
        assert all("us" in other for other in row["baselines"].values())
    table = (tmp_path / "gpu--dry-run.txt").read_text()
    assert table in capsys.readouterr().out


def test_a_wrong_loss_fails(modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, *_ = modules
    arguments = ["--dry-run", "--checks-only", "--no-tests", "--only", "loss"]
    arguments += ["--out", str(tmp_path)]
    assert gpu.main(arguments) == 0
    right = gpu.gpu_losses.reference.gaussian_kl
    monkeypatch.setattr(
        gpu.gpu_losses.reference, "gaussian_kl", lambda *given: right(*given) * (1 + 1e-5)
    )
    assert gpu.main(arguments) == 1


def test_a_wrong_kernel_fails(modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, _, operators = modules
    right = operators.RIGHT_SVD.kernel
    planted = {
        "value": lambda J: (right(J)[0] * (1 + 1e-6), *right(J)[1:]),
        "vector": lambda J: (right(J)[0], right(J)[1].roll(1, 1)),
        "bits": lambda J: (right(J)[0] + 1e-7 * torch.rand(()) * right(J)[0], right(J)[1]),
    }
    for kernel in planted.values():
        wrong = dataclasses.replace(operators.RIGHT_SVD, kernel=kernel)
        monkeypatch.setattr(gpu, "OPERATORS", (wrong,))
        assert gpu.main(["--dry-run", "--checks-only", "--no-tests", "--out", str(tmp_path)]) == 1


def test_building_takes_from_the_time(modules, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, *_ = modules
    clock, commands = iter([100.0, 190.0]), []

    def run(command: list[str]) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "build", lambda: None)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=run))
    assert gpu.main(["--only", "loss", "--seconds", "500"]) == 3
    assert commands[0][2:] == ["--only", "loss", "--seconds", "500", "--no-build", "--seconds=410"]


def test_what_has_no_time_left_is_skipped(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the tests end within the command's ten minutes, and say what they left out."""
    plugins = request.config.pluginmanager.get_plugins()
    suite = next(p for p in plugins if hasattr(p, "pytest_runtest_setup") and hasattr(p, "STARTED"))
    monkeypatch.setattr(request.config.option, "seconds", 1e9)
    suite.pytest_runtest_setup(request.node)
    monkeypatch.setattr(request.config.option, "seconds", 0.0)
    with pytest.raises(pytest.skip.Exception, match="out of time"):
        suite.pytest_runtest_setup(request.node)


def test_moving_keeps_the_layout() -> None:
    case = torch.randn(3, 8, 6)[1:, ::2, 1::2]
    moved = testing.moved(case, torch.device("cpu"))
    assert torch.equal(moved, case)
    assert (moved.stride(), moved.storage_offset()) == (case.stride(), case.storage_offset())


def test_slow_baselines_are_estimated(modules, monkeypatch: pytest.MonkeyPatch) -> None:
    _, clock, _ = modules
    seen: list[int] = []

    def one_second_each(x: torch.Tensor) -> None:
        seen.append(len(x))

    def single(call, inputs, seconds, fewest=1):  # type: ignore[no-untyped-def]
        call(inputs[0])
        us = 1e6 * len(inputs[0])
        return clock.Timing(us, "single", 1, us, us)

    monkeypatch.setattr(clock, "single", single)
    timing = clock.bounded(one_second_each, [torch.zeros(512, 1)], 1.0, limit=25.0)
    assert (timing.how, timing.us, timing.matrices) == ("estimate", 512e6, 8)
    assert max(seen) == 8
    timing = clock.bounded(one_second_each, [torch.zeros(20, 1)], 1.0, limit=25.0)
    assert (timing.how, max(seen)) == ("single", 20)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 2
    assert "the CUDA kernels cannot run here: " in done.stderr
    assert "--dry-run" in done.stderr
