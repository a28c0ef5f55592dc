"""What Triton makes of the kernels for three architectures: wide loads, no spills, few launches."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it is part of [test] on Linux x86)")

Case = dict[str, Any]
ARCHS = (80, 90, 100)
GAUSSIAN, ISO_I, ISO_D, DIAG_I, DIAG_D = range(1, 6)
ITEM = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
SMALL, ODD, MIDDLE = (64, 784), (64, 785), (512, 12288)
LONG, LONG_ODD, HUGE = (512, 49152), (512, 49153), (8192, 49152)


def case(call: str, arch: int = 90, **more: Any) -> Case:
    made = {"call": call, "dtype": "float32", "shape": SMALL, **more}
    parts = (call, *(f"{k}={v}" for k, v in more.items()), f"sm_{arch}")
    if call == "loss":
        defaults = {
            "objective": ISO_D, "logvar": None, "activation": 0, "samples": 1, "latents": 32,
            "backward": False, "x_gradient": False,
        }  # fmt: skip
        made = {**defaults, **made}
    return {**made, "arch": arch, "name": " ".join(parts)}


#: What every architecture is compiled for.
EVERYWHERE: tuple[dict[str, Any], ...] = (
    {"objective": ISO_D, "shape": LONG},
    {"objective": DIAG_D, "shape": ODD},
    {"objective": DIAG_I, "shape": MIDDLE},
)
ON_SM_90: tuple[dict[str, Any], ...] = (
    {"objective": ISO_I},
    {"objective": DIAG_D, "latents": 0},
    {"objective": 0},
    {"objective": ISO_D, "shape": LONG_ODD},
    {"objective": GAUSSIAN, "logvar": "scalar", "activation": 1},
    {"objective": GAUSSIAN, "logvar": "element"},
    {"objective": GAUSSIAN, "logvar": "dimension"},
    {"objective": DIAG_I, "shape": HUGE},
)
OTHERS = (
    case("sample", shape=(100, 64)),
    case("full", shape=(100, 16)),
    case("dims", shape=(100, 64)),
    case("scale", shape=SMALL),
)


def reduced() -> list[Case]:
    cases = [case("loss", arch, **c) for c in EVERYWHERE for arch in ARCHS]
    return [*cases, *(case("loss", **c) for c in ON_SM_90), *OTHERS]


def thorough() -> list[Case]:
    """Objectives x dtypes x sizes x samples x directions, in turn x architectures x activations."""
    objectives = (
        *(
            {"objective": GAUSSIAN, "logvar": v}
            for v in ("scalar", "sample", "dimension", "element")
        ),
        *({"objective": o} for o in (ISO_I, ISO_D, DIAG_I, DIAG_D)),
    )
    archs, activations = itertools.cycle(ARCHS), itertools.cycle((0, 1, 2, 0, 0))
    gradients = itertools.cycle((False, False, True))
    cases = []
    for o in objectives:
        for dtype in ("float32", "float64", "bfloat16"):
            for shape in (SMALL, ODD, MIDDLE, LONG, LONG_ODD, HUGE):
                for samples, backward in ((1, False), (1, True), (3, False)):
                    if dtype != "float32" and (samples > 1 or shape in (ODD, LONG_ODD)):
                        continue
                    more = {
                        **o, "dtype": dtype, "shape": shape, "samples": samples,
                        "backward": backward, "activation": next(activations),
                        "x_gradient": next(gradients),
                    }  # fmt: skip
                    cases.append(case("loss", next(archs), **more))
    cases.append(case("loss", objective=0, shape=(4096, 4096), latents=4096))
    for c in OTHERS:
        for arch in ARCHS:
            for dtype in ("float32", "float64", "float16"):
                if c["call"] != "scale" or dtype != "float16":
                    cases.append(case(c["call"], arch, shape=c["shape"], dtype=dtype))
    plain = {c["name"] for c in reduced()}
    return [c for c in cases if c["name"] not in plain]


@pytest.fixture(scope="session")
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """A record for each launch of the selected cases."""
    slow = request.config.getoption("--slow")
    selected = {
        c["name"]: c
        for item in request.session.items
        if "compiled" in getattr(item, "fixturenames", ())
        and (slow or "slow" not in item.keywords)
        and (c := getattr(item, "callspec", None) and item.callspec.params.get("case"))  # type: ignore[attr-defined]
    }
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "cases.json").write_text(json.dumps(list(selected.values())))
    worker = Path(__file__).parent / "compiled.py"
    command = [sys.executable, str(worker), str(folder / "cases.json"), str(folder / "out.json")]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = json.loads((folder / "out.json").read_text())
    return found


def _name(c: Case) -> str:
    return str(c["name"])


def check(case: Case, launches: list[dict[str, Any]]) -> None:
    assert len(launches) == wanted_launches(case)
    for found in launches:
        assert found["spills"] == found["stack"] == 0, found
        # registers are handed out to warps by the 256, of 65,536 on a multiprocessor
        assert (found["registers"] * 32 + 255) // 256 * 256 * found["warps"] <= 65_536, found
        assert found["float_atomics"] == 0, found
        assert found["wide_loads"] >= wanted_wide_loads(case, found), found
        assert found["wide_loads_sass"] >= wanted_wide_loads(case, found), found


def wanted_launches(case: Case) -> int:
    """As the kernels' modules say."""
    if case["call"] != "loss":
        return {"sample": 2, "full": 4, "dims": 1, "scale": 1}[case["call"]]
    gradients = case["backward"] or ITEM[case["dtype"]] > 2
    if case["objective"] == ISO_I:
        return 2 if gradients else 1
    columns = case["objective"] == DIAG_I or (case["logvar"] == "dimension" and gradients)
    if columns and case["shape"] == HUGE:
        return 2
    return 1


def wanted_wide_loads(case: Case, found: dict[str, Any]) -> int:
    """x_hat and x of one block, 16 bytes at a time; a column tile's rows start anywhere where 16
    does not divide F, and so do the second and third samples of x_hat."""
    if case["call"] != "loss" or not case["objective"] or found["mode"] == 6:  # REST may read none
        return 0
    aligned = case["shape"][1] % 16 == 0
    if found["kernel"] == "columns_kernel" and not aligned:
        return 0
    threads, tensors = 32 * found["warps"], 2 if case["samples"] == 1 or aligned else 1
    elements = max(found["tile"], found["keep"])
    return tensors * max(elements * ITEM[case["dtype"]] // (16 * threads), 1)


@pytest.mark.parametrize("case", reduced(), ids=_name)
def test_compiled(case: Case, compiled: dict[str, list[dict[str, Any]]]) -> None:
    check(case, compiled[case["name"]])


@pytest.mark.slow
@pytest.mark.parametrize("case", thorough(), ids=_name)
def test_compiled_thoroughly(case: Case, compiled: dict[str, list[dict[str, Any]]]) -> None:
    check(case, compiled[case["name"]])


def test_a_spill_and_a_narrow_load_would_be_seen() -> None:
    good = {
        "kernel": "rows_kernel", "mode": 2, "warps": 4, "tile": 1024, "keep": 1024, "registers": 64,
        "stack": 0, "spills": 0, "wide_loads": 4, "wide_loads_sass": 4, "float_atomics": 0,
    }  # fmt: skip
    check(case("loss"), [good])
    faults = ({"spills": 2}, {"stack": 8}, {"wide_loads": 3}, {"wide_loads_sass": 3},
              {"registers": 600}, {"float_atomics": 1})  # fmt: skip
    for fault in faults:
        with pytest.raises(AssertionError):
            check(case("loss"), [{**good, **fault}])
    with pytest.raises(AssertionError):
        check(case("loss"), [good, good])
