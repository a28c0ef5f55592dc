"""Every Triton kernel in the interpreter against the reference in float64.

The whole conformance table on sizes that take every branch of the launches, and every second row in
one of the layouts and dtypes in turn; ``--slow`` runs all of them.  Planted faults have to be
seen.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vaekern.testing import LAYOUTS, OPERATORS

pytest.importorskip("triton", reason="Triton is not installed (it is part of [test] on Linux x86)")

Case = dict[str, Any]
#: Not bfloat16, to which the interpreter cuts off where a GPU rounds.
DTYPES = ("float32", "float64", "float16")
#: Rows that start anywhere and end anywhere; images for the layouts.
ODD, IMAGES = (3, 1, 51), (2, 2, 3, 5)
SHAPES = {
    "one element": (3, 1, 1),
    "rows of whole blocks": (2, 1, 64),
    "batch of one": (1, 2, 37),
    "empty batch": (0, 2, 3),
    "many samples": (20, 1, 7),
}
MLE = "GaussianVAELoss-{}-mle"


def case(check: str, operator: str = "", tuning: str = "small", **more: Any) -> Case:
    made = {
        "check": check, "operator": operator, "tuning": tuning, "shape": ODD, "dtype": "float32",
        "layout": "contiguous", **more,
    }  # fmt: skip
    parts = (check, operator, *(str(v) for v in more.values()), tuning)
    return {**made, "name": " ".join(p for p in parts if p)}


def conformance() -> list[Case]:
    cases = [case("compare", o.name) for o in OPERATORS]
    dtypes, layouts = itertools.cycle(DTYPES[1:]), itertools.cycle(list(LAYOUTS)[1:])
    for o, dtype, layout in zip(OPERATORS[::2], dtypes, layouts, strict=False):
        cases.append(case("compare", o.name, "large", shape=IMAGES, dtype=dtype, layout=layout))
    for objective in ("iso-i", "iso-d", "diag-i", "diag-d"):
        for shape in SHAPES.values():
            cases.append(case("compare", MLE.format(objective), shape=shape))
        cases.append(case("dispatcher", MLE.format(objective)))
        cases.append(case("bits", MLE.format(objective)))
        cases.append(case("no_grad", MLE.format(objective)))
    for name in ("GaussianVAELoss-diag-i-mle", "sample_and_kl-diagonal-L3"):
        cases.append(case("compiled", name))
    cases += [case("buffers", layout=layout) for layout in ("contiguous", "channels_last")]
    cases.append(case("zero"))
    return cases


def thorough() -> list[Case]:
    plain = {c["name"] for c in conformance()}
    cases = [
        case("compare", o.name, tuning, shape=shape, dtype=dtype, layout=layout)
        for o in OPERATORS
        for tuning, shape in (("small", ODD), ("large", IMAGES), ("small", IMAGES))
        for dtype in DTYPES
        for layout in LAYOUTS
    ]
    cases += [
        case("compare", o.name, shape=shape, dtype=dtype)
        for o in OPERATORS
        for shape in SHAPES.values()
        for dtype in DTYPES[:2]
    ]
    return [c for c in cases if c["name"] not in plain]


#: fault -> an operator and a size that meet it.
SEEN: dict[str, Case] = {
    "ends of rows left out": case("compare", "mle_nll-diag-d-None-batchmean-L0"),
    "what is not kept left out": case("compare", "mle_nll-iso-d-None-batchmean-L0"),
    "another eps": case("compare", "mle_nll-diag-i-None-batchmean-L0"),
    "another activation": case("compare", "mle_nll-iso-d-tanh-mean-L0"),
    "another reduction": case("compare", "mle_nll-iso-i-None-batchmean-L0", shape=(2, 1, 9)),
    "KL left out": case("compare", "GaussianVAELoss-iso-d-mle"),
    "variance taken for another layout": case("compare", "gaussian_nll-sample-None-batchmean-L0"),
    "even weights for uneven ones": case("compare", "mle_nll-diag-i-None-none-L3"),
    "a program forgotten": case("compare", "mle_nll-diag-d-None-batchmean-L0"),
    "a counter left behind": case("compare", "mle_nll-iso-d-None-batchmean-L0"),
    "second launch forgotten": case("compare", "mle_nll-iso-i-None-batchmean-L0"),
    "samples out of step": case("compare", "mle_nll-iso-d-None-none-L3"),
}


def faults() -> list[Case]:
    return [{**c, "fault": fault, "name": fault} for fault, c in SEEN.items()]


@pytest.fixture(scope="session")
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """What the interpreter found wrong in the selected cases."""
    slow = request.config.getoption("--slow")
    selected = [
        item.callspec.params["case"]  # type: ignore[attr-defined]
        for item in request.session.items
        if "found" in getattr(item, "fixturenames", ()) and (slow or "slow" not in item.keywords)
    ]
    folder = tmp_path_factory.mktemp("interpreted")
    worker = Path(__file__).parent / "interpreted.py"
    results: dict[str, list[str]] = {}
    running = []
    for i in range(2):  # two processes
        cases, out = folder / f"cases{i}.json", folder / f"out{i}.json"
        cases.write_text(json.dumps(selected[i::2]))
        command = [sys.executable, str(worker), str(cases), str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        running.append((process, out))
    for process, out in running:
        text, _ = process.communicate()
        assert process.returncode == 0, text.decode()[-3000:]
        results |= json.loads(out.read_text())
    return results


def _name(c: Case) -> str:
    return str(c["name"])


@pytest.mark.parametrize("case", conformance(), ids=_name)
def test_interpreted(case: Case, found: dict[str, list[str]]) -> None:
    assert found[case["name"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", thorough(), ids=_name)
def test_interpreted_thoroughly(case: Case, found: dict[str, list[str]]) -> None:
    assert found[case["name"]] == []


@pytest.mark.parametrize("case", faults(), ids=_name)
def test_a_planted_fault_is_seen(case: Case, found: dict[str, list[str]]) -> None:
    assert found[case["name"]]
