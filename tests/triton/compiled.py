"""Compiles Triton's kernels ahead of time, without a GPU: ``python compiled.py CASES OUT``.

A process of its own, since a stand-in takes the driver's place.  The backend's own code chooses the
launches and Triton's own code the specialisation of their arguments, so what is looked at is what a
GPU would run.  CASES and OUT are JSON; a case ends in one record for each launch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vaekern.triton import launch, plan

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Driver:
    """What Triton asks a driver before it compiles; a device for each architecture."""

    arch = 90

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def record(kernel: Any, programs: int, warps: int, args: tuple[Any, ...]) -> dict[str, Any]:
    found = kernel.warmup(*args, grid=(programs,), **launch.options(warps))
    how = args[-1]
    ptx, sass = found.asm["ptx"], machine_code(found.asm["cubin"])
    usage = tool(found.asm["cubin"], "--dump-resource-usage")
    return {
        "kernel": kernel.fn.__name__,
        "mode": getattr(how, "mode", 0),
        "warps": warps,
        "programs": programs,
        "tile": how.rows * how.block if hasattr(how, "rows") else how,
        "keep": getattr(how, "keep", 0),
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[0]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "wide_loads": len(re.findall(r"ld\.global[\w.]*\.(?:v4\.b32|v2\.b64)", ptx)),
        "wide_stores": len(re.findall(r"st\.global[\w.]*\.(?:v4\.b32|v2\.b64)", ptx)),
        "wide_loads_sass": len(re.findall(r"LDG\.E(?:\.\w+)*\.128", sass)),
        "float_atomics": len(re.findall(r"(?:atom|red)\.[\w.]*\.f(?:16|32|64)", ptx)),
        "barrier_before_count": bool(
            re.search(r"bar\.sync[^\n]*\n(?:(?!st\.global)[^\n]*\n)*?[^\n]*atom\.", ptx)
        ),
    }


def tool(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def machine_code(cubin: bytes) -> str:
    return tool(cubin, "--dump-sass")


def like(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else torch.empty_like(t)


def loss(case: dict[str, Any]) -> None:
    """vaekern::loss, or its backward with an upstream gradient for each sample."""
    dtype, shape, L = getattr(torch, case["dtype"]), tuple(case["shape"]), case["samples"]
    B, backward = shape[0], case["backward"]
    x_hat = torch.empty((L, *shape) if L > 1 else shape, dtype=dtype)
    x = torch.empty(shape, dtype=dtype)
    if not case["objective"]:
        x_hat = x = None  # type: ignore[assignment]
    logvar_shape = {"scalar": (1,), "sample": (B, 1), "dimension": shape[1:], "element": shape}
    x_logvar = None
    if case["logvar"]:
        x_logvar = torch.empty(logvar_shape[case["logvar"]], dtype=dtype)
    mu = logvar = None
    if case["latents"]:
        mu, logvar = torch.empty(2, B, case["latents"], dtype=dtype)
    arithmetic = torch.promote_types(dtype, torch.float32)
    value = None if backward else torch.empty((), dtype=arithmetic)
    upstream = torch.empty(B, dtype=arithmetic) if backward else None
    early = backward or dtype in (torch.float32, torch.float64)
    grads = [like(x_hat), like(x) if case["x_gradient"] else None, like(x_logvar)]
    grads = [
        *(grads if early else [None] * 3),
        *([like(mu), like(logvar)] if early else [None] * 2),
    ]
    launch.loss(
        x_hat, x, x_logvar, mu, logvar, None, None, None, None, upstream, value, None, *grads,
        None, None, None, None, None, 0.1, case["objective"], case["activation"],
        3 if backward else 0, 1.0, 1e-6, -3e38, 3e38, -3e38, 1,
    )  # fmt: skip


def sample(case: dict[str, Any]) -> None:
    dtype, (B, d) = getattr(torch, case["dtype"]), case["shape"]
    mu, logvar, noise, z = torch.empty(4, B, d, dtype=dtype)
    launch.sample(mu, logvar, None, noise, z, torch.empty(B), 1)
    launch.sample_backward(z, torch.empty(B), mu, logvar, None, noise, like(mu), like(logvar),
                           None, 1)  # fmt: skip


def full(case: dict[str, Any]) -> None:
    dtype, (B, d) = getattr(torch, case["dtype"]), case["shape"]
    mu, noise, z = torch.empty(3, B, d, dtype=dtype)
    tril = torch.empty(B, d, d, dtype=dtype)
    launch.sample(mu, None, tril, noise, z, torch.empty(B), 1)
    launch.sample_backward(z, torch.empty(B), mu, None, tril, noise, like(mu), None, like(tril), 1)
    launch.loss(
        *[None] * 3, mu, None, tril, *[None] * 4, torch.empty(()), *[None] * 4, like(mu), None,
        like(tril), *[None] * 4, 0.1, 0, 0, 0, 1.0, 1e-6, -3e38, 3e38, -3e38, 1,
    )  # fmt: skip


def dims(case: dict[str, Any]) -> None:
    dtype, (B, d) = getattr(torch, case["dtype"]), case["shape"]
    mu, logvar = torch.empty(2, B, d, dtype=dtype)
    launch.loss(
        *[None] * 3, mu, logvar, *[None] * 5, torch.empty(d), *[None] * 4, like(mu), like(logvar),
        *[None] * 5, 0.1, 0, 0, 4, 1.0, 1e-6, -3e38, 3e38, -3e38, 1,
    )  # fmt: skip


def scale(case: dict[str, Any]) -> None:
    dtype, shape = getattr(torch, case["dtype"]), case["shape"]
    a, b = torch.empty(shape, dtype=dtype), torch.empty(shape[0], 32, dtype=dtype)
    launch.scale(a, None, None, b, b, None, None, None, torch.empty(()), 1)


CALLS = {f.__name__: f for f in (loss, sample, full, dims, scale)}


def main() -> None:
    stand_in = Driver()
    driver.set_active(stand_in)
    launch.TUNING = plan.Tuning()
    records: list[dict[str, Any]] = []
    launch.run = lambda kernel, programs, warps, *args: records.append(
        record(kernel, programs, warps, args)
    )
    found = {}
    for case in json.loads(Path(sys.argv[1]).read_text()):
        stand_in.arch = case["arch"]
        records.clear()
        CALLS[case["call"]](case)
        found[case["name"]] = list(records)
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main()
