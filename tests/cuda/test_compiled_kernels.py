"""What nvcc makes of the CUDA kernels: no spills, launchable, wide loads, tensor cores."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("right_svd", "assignment")
LOSS_SOURCES = ("loss", "sample", "scale")
ARCHS = ("80", "90", "100")
#: The plain suite has nvcc compile the linear algebra for the oldest and the newest, and the losses
#: for the one that needs most registers; --slow takes all.
PLAIN_ARCHS, PLAIN_LOSS_ARCHS = ("80", "100"), ("100",)


def marked(plain: tuple[str, ...]) -> list[Any]:
    return [pytest.param(a, marks=[] if a in plain else [pytest.mark.slow]) for a in ARCHS]


#: Threads in a block of each kernel: its registers times these must fit a multiprocessor's 65,536.
THREADS = {
    "decompose_small": 512,
    "gram": 256,
    "gram_tiles": 256,
    "decompose<Jacobi<64": 256,
    "decompose<Jacobi<256": 1024,
    "assign": 32,
    "loss_elements": 256,
    "loss_rows": 512,
    "loss_columns": 256,
    "kl_dimensions": 256,
    "draw": 128,
    "draw_backward": 128,
    "scale_all": 256,
}
#: 128-bit loads in the body of each Gram kernel for float32: one packet of rows along d, and one of
#: columns, are NB / 2 + NB of them for 8 NB columns, and the tiles load two packets.
WIDE_LOADS = {
    "decompose_small<1>": 1,
    "decompose_small<2>": 4,
    "decompose_small<4>": 8,
    "gram": 16,
    "gram_tiles": 16,
}


def nvcc() -> str:
    homes = [os.environ[k] for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    for name in [*(str(Path(home) / "bin" / "nvcc") for home in homes), "nvcc"]:
        if found := shutil.which(name):
            return found
    pytest.skip("no nvcc, so there are no CUDA kernels to look at")


def run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def readable(text: str) -> str:
    """Mangled names as C++ spells them, without namespaces."""
    command = shutil.which("c++filt")
    if command is None:
        pytest.skip("no c++filt to read the kernels' names with")
    done = subprocess.run([command], input=text, capture_output=True, text=True, check=True)
    return done.stdout.replace("vaekern::cuda::", "").replace("(anonymous namespace)::", "")


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    stack: int
    spills: int
    registers: int


def compile_sources(folder: Path, names: tuple[str, ...], archs: tuple[str, ...]) -> None:
    """One object per source, and ptxas's report."""
    compiler = nvcc()
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    for name in names:
        command = [compiler, "-std=c++17", "-O3", "-Xptxas=-v", f"-I{ROOT / 'csrc'}", *code]
        source = ROOT / "csrc" / "cuda" / f"{name}.cu"
        report = run([*command, "-c", str(source), "-o", str(folder / f"{name}.o")])
        (folder / f"{name}.txt").write_text(report)


def reported(folder: Path, names: tuple[str, ...]) -> list[Kernel]:
    """What ptxas says of each kernel and the functions that it calls."""
    text = readable("".join((folder / f"{name}.txt").read_text() for name in names))
    kernels = []
    for part in text.split("Compiling entry function ")[1:]:
        entry = re.match(r"'(?:void )?(.*?)\(\w+\)' for 'sm_(\d+)'", part)
        used = re.search(r"Used (\d+) registers", part)
        memory = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        assert entry is not None, part
        assert used is not None, part
        assert memory, part
        stack = sum(int(frame) for frame, _, _ in memory)
        spills = sum(int(stores) + int(loads) for _, stores, loads in memory)
        kernels.append(Kernel(entry[1], entry[2], stack, spills, int(used[1])))
    return kernels


@pytest.fixture(scope="module")
def archs(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return ARCHS if request.config.getoption("--slow") else PLAIN_ARCHS


@pytest.fixture(scope="module")
def compiled(archs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    compile_sources(folder, SOURCES, archs)
    return folder


@pytest.fixture(scope="module")
def kernels(compiled: Path) -> list[Kernel]:
    return reported(compiled, SOURCES)


@pytest.fixture(scope="module", params=marked(PLAIN_LOSS_ARCHS))
def compiled_losses(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[Path, str]:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("compiled_losses")
    compile_sources(folder, LOSS_SOURCES, (request.param,))
    return folder, request.param


def test_every_kernel_compiles_for_every_architecture(
    kernels: list[Kernel], archs: tuple[str, ...]
) -> None:
    for arch in archs:
        names = [k.name for k in kernels if k.arch == arch]
        assert len(names) == len(set(names)) == 15, (arch, names)


def test_no_kernel_spills(kernels: list[Kernel]) -> None:
    assert [k for k in kernels if k.spills or k.stack] == []


def can_be_launched(k: Kernel) -> bool:
    # the longest name that fits
    (threads,) = [THREADS[name] for name in THREADS if re.match(rf"{name}(?![\w])", k.name)]
    # registers are handed out to warps by the 256
    per_warp = (k.registers * 32 + 255) // 256 * 256
    return per_warp * ((threads + 31) // 32) <= 65_536


def test_every_kernel_can_be_launched(kernels: list[Kernel]) -> None:
    assert [k for k in kernels if not can_be_launched(k)] == []


def test_the_losses_kernels_do_not_spill(compiled_losses: tuple[Path, str]) -> None:
    folder, arch = compiled_losses
    kernels = reported(folder, LOSS_SOURCES)
    assert {k.arch for k in kernels} == {arch}
    assert len({k.name for k in kernels}) == len(kernels) == 13
    assert [k for k in kernels if k.spills or k.stack] == []
    assert [k for k in kernels if not can_be_launched(k)] == []
    # two blocks to a multiprocessor keep 64 KB of loads under way
    streaming = [k for k in kernels if k.name in ("loss_elements<float>", "loss_columns<float>")]
    assert len(streaming) == 2
    assert [k for k in streaming if k.registers > 128] == []


#: 128-bit accesses of the kernels that stream float32: x_hat and x, two each, and the gradient's.
WIDE_ACCESSES = {
    "loss_elements<float>": (4, 2),
    "loss_rows<float>": (4, 2),
    "loss_columns<float>": (4, 2),
    "scale_all": (1, 1),
}


def test_the_losses_move_16_bytes_at_a_time(compiled_losses: tuple[Path, str]) -> None:
    folder, arch = compiled_losses
    command = [cuobjdump(), "--dump-sass", "--gpu-architecture", f"sm_{arch}"]
    text = readable("".join(run([*command, str(folder / f"{n}.o")]) for n in LOSS_SOURCES))
    parts = re.split(r"Function : (?:void )?", text)[1:]
    machine = {part.partition("(")[0].split()[0]: part for part in parts}
    for name, (loads, stores) in WIDE_ACCESSES.items():
        assert len(re.findall(r"LD(?:G)?\.E(?:\.\w+)*\.128", machine[name])) >= loads, name
        assert len(re.findall(r"ST(?:G)?\.E(?:\.\w+)*\.128", machine[name])) >= stores, name


@pytest.fixture(scope="module")
def bodies(compiled: Path) -> dict[str, str]:
    """Each kernel's PTX for sm_90: ptxas keeps the width of loads and the matrix instructions."""
    source = ROOT / "csrc" / "cuda" / "right_svd.cu"
    output = compiled / "right_svd.ptx"
    common = ["-std=c++17", "-O3", f"-I{ROOT / 'csrc'}"]
    run([nvcc(), *common, "-arch=compute_90", "-ptx", str(source), "-o", str(output)])
    parts = re.split(r"\.entry ", readable(output.read_text()))[1:]
    return {re.sub(r"^void ", "", part).partition("(")[0]: part for part in parts}


@pytest.mark.parametrize("name", list(WIDE_LOADS))
def test_dense_float32_is_loaded_16_bytes_at_a_time(bodies: dict[str, str], name: str) -> None:
    found = len(re.findall(r"ld\.global(?:\.nc)?\.v4\.(?:f32|b32|u32)", bodies[name]))
    assert found >= WIDE_LOADS[name], found
    assert "mma.sync.aligned.m8n8k4.row.col.f64" in bodies[name]


def cuobjdump() -> str:
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        found = shutil.which(
            str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
        )
    if found is None:
        pytest.skip("no cuobjdump (CUDA's, or Triton's) to disassemble with; the PTX was read")
    return found


@pytest.mark.parametrize("arch", marked(PLAIN_ARCHS))
def test_machine_code_keeps_wide_loads_and_tensor_cores(compiled: Path, arch: str) -> None:
    command = [cuobjdump(), "--dump-sass", "--gpu-architecture", f"sm_{arch}"]
    text = readable(run([*command, str(compiled / "right_svd.o")]))
    parts = re.split(r"Function : (?:void )?", text)[1:]
    machine = {part.partition("(")[0].split()[0]: part for part in parts}
    for name, wide in WIDE_LOADS.items():
        assert len(re.findall(r"LDG\.E(?:\.\w+)*\.128", machine[name])) >= wide, name
        assert "DMMA" in machine[name], name
        assert not re.findall(r"\b(?:LDL|STL)\b", machine[name]), name
