"""What is installed is what runs: the package, its native core, and every way of building it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

import vaekern
from vaekern import backends

ROOT = Path(__file__).parent.parent
PURE = os.environ.get("VAEKERN_PURE") == "1"
COMPILERS = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
REMEDY = 'run  pip install -c constraints.txt ".[test]"  in the checkout, then pytest'

OPTIONAL = ("scipy", "sklearn", "safetensors", "tqdm", "jsonargparse", "matplotlib", "PIL", "yaml")
BLOCK_OPTIONAL = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
"""
LOSS = """
import torch, vaekern
x_hat = torch.zeros(2, 3, requires_grad=True)
loss = vaekern.GaussianVAELoss("iso-i", "fixed")(
    x_hat, torch.ones(2, 3), torch.zeros(2, 1), torch.zeros(2, 1))
loss.backward()
print(vaekern.backends.active("cpu"), round(loss.item(), 4), x_hat.grad[0].tolist())
print(vaekern.backends.describe())
"""
BUILD_FOLDER = """
from setuptools.dist import Distribution
command = Distribution().get_command_obj("build_ext")
from setuptools import Extension
command.distribution.ext_modules = [Extension("m", [])]
command.ensure_finalized()
print(command.build_lib)
"""
LOSS_VALUE = "4.2568 [-0.5, -0.5, -0.5]"  # 3/2 (1 + log 2 pi); -r / B


def run(
    command: list[str | Path], folder: Path, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    # a virtual environment that runs pytest must not leak its paths into others
    dropped = ("VAEKERN_", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")
    env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return subprocess.run(
        [str(c) for c in command],
        cwd=folder,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def succeed(
    command: list[str | Path], folder: Path, timeout: float = 300, **environment: str
) -> str:
    done = run(command, folder, timeout, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


# ------------------------------------------------------------------ what is installed


def distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("vaekern")
    except importlib.metadata.PackageNotFoundError:
        pytest.fail(f"vaekern is not installed, its source tree was imported: {REMEDY}")


def editable_root(dist: importlib.metadata.Distribution) -> Path | None:
    """The checkout that an editable install points to (PEP 610), else None."""
    text = dist.read_text("direct_url.json")
    if text is None:
        return None
    record = json.loads(text)
    if not record.get("dir_info", {}).get("editable", False):
        return None
    return Path(unquote(urlparse(record["url"]).path))


def test_the_installed_package_is_what_runs() -> None:
    assert vaekern.__file__ is not None
    package = Path(vaekern.__file__).resolve().parent
    editable = editable_root(distribution())
    if editable is not None:
        assert package == (editable / "vaekern").resolve(), f"{package} is not the editable install"
    else:
        assert not package.is_relative_to(ROOT.resolve()), f"{package} is the source tree: {REMEDY}"


@pytest.mark.skipif(PURE, reason="VAEKERN_PURE=1 asks for the reference")
def test_the_native_core_is_what_runs() -> None:
    if not any(shutil.which(name.split()[0]) for name in COMPILERS):
        pytest.skip("no C++ compiler, so there is no native core")
    assert backends.active("cpu") == "cpu", f"{backends.describe()}\n{REMEDY}"


def test_version_is_the_metadata_s() -> None:
    assert vaekern.__version__ == distribution().version


def test_import_needs_torch_and_numpy_only(tmp_path: Path) -> None:
    code = BLOCK_OPTIONAL + LOSS + f"print(sorted(set(sys.modules) & set({OPTIONAL})))"
    lines = succeed([sys.executable, "-c", code], tmp_path).splitlines()
    assert lines[0].endswith(LOSS_VALUE)
    assert lines[-1] == "[]"
    info = BLOCK_OPTIONAL + (
        "import runpy\nsys.argv = ['vaekern', 'info']\n"
        "runpy.run_module('vaekern', run_name='__main__')"
    )
    text = succeed([sys.executable, "-c", info], tmp_path)
    assert f"vaekern {vaekern.__version__}" in text
    assert "reference" in text


def test_pure_python_says_so_and_computes(tmp_path: Path) -> None:
    text = succeed([sys.executable, "-c", LOSS], tmp_path, VAEKERN_PURE="1")
    assert text.startswith(f"reference {LOSS_VALUE}")
    assert "VAEKERN_PURE=1 asks for pure Python" in text


# ------------------------------------------------------------------ every way of building it


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that no build touches the checkout."""
    target = tmp_path_factory.mktemp("packaging") / "checkout"
    names = ("csrc", "vaekern", "tests", "benchmarks")
    built = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "_build_info.py", "results")
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, target)
    return target


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment's python with the build requirements; torch is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    python = Path(sysconfig.get_path("scripts", vars=scheme)) / "python"
    words = ["-m", "pip", "install", "-q", "setuptools>=77", "pybind11", "ninja"]
    if run([python, *words], folder).returncode:
        pytest.skip("no package index can be reached")
    site = Path(sysconfig.get_path("purelib", vars=scheme))
    borrowed = folder / "borrowed"  # all but this environment's own vaekern
    borrowed.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("vaekern", "__editable__", "_vaekern")):
            (borrowed / path.name).symlink_to(path)
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return python


def pip(python: Path, folder: Path, *words: str | Path, **environment: str) -> str:
    """The CUDA kernels, half of the build, only where a test asks for them: VAEKERN_CUDA=""."""
    command = [python, "-m", "pip", "install", "--no-deps", "--force-reinstall", *words]
    return succeed([*command], folder, 600, **{"VAEKERN_CUDA": "0", **environment})


@pytest.mark.slow
def test_an_earlier_core_does_not_stand_in(checkout: Path, python: Path, tmp_path: Path) -> None:
    """The build folder that pip leaves in a checkout may hold a core."""
    built = succeed([python, "-c", BUILD_FOLDER], checkout).strip()
    stale = checkout / built / "vaekern" / ("_core" + sysconfig.get_config_var("EXT_SUFFIX"))
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_bytes(b"stale")
    pip(python, checkout, "--no-build-isolation", ".", VAEKERN_PURE="1")
    text = succeed([python, "-c", LOSS], tmp_path)
    assert text.startswith(f"reference {LOSS_VALUE}")
    assert "built with VAEKERN_PURE=1" in text


@pytest.mark.slow
def test_without_a_compiler_it_installs_in_pure_python(
    checkout: Path, python: Path, tmp_path: Path
) -> None:
    pip(python, checkout, "--no-build-isolation", ".", CXX="false", CC="false")
    text = succeed([python, "-m", "vaekern", "info"], tmp_path)
    assert "no working C++17 compiler was found (tried false)" in text
    assert succeed([python, "-c", LOSS], tmp_path).startswith(f"reference {LOSS_VALUE}")


@pytest.mark.slow
@pytest.mark.skipif(PURE, reason="VAEKERN_PURE=1 asks for the reference")
@pytest.mark.parametrize("how", ["isolated", "shared", "uv"])
def test_install_builds_the_core(checkout: Path, python: Path, tmp_path: Path, how: str) -> None:
    if how == "shared":
        pip(python, checkout, "--no-build-isolation", ".")
    elif how == "isolated":
        pip(python, checkout, ".", VAEKERN_CUDA="")
        if shutil.which("nvcc") is not None:
            succeed([python, "-c", "import vaekern._cuda"], tmp_path)
    else:
        venv.create(tmp_path / "uv", with_pip=True)
        uv = tmp_path / "uv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        if run([uv, "-m", "pip", "install", "-q", "uv"], tmp_path).returncode:
            pytest.skip("the package index has no uv")
        words = ["-m", "uv", "pip", "install", "--no-deps", "--reinstall", "--python", python, "."]
        succeed([uv, *words], checkout, 600, VAEKERN_CUDA="0")
    assert succeed([python, "-c", LOSS], tmp_path).startswith(f"cpu {LOSS_VALUE}")


@pytest.mark.slow
@pytest.mark.skipif(PURE, reason="VAEKERN_PURE=1 asks for the reference")
@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvcc is a shell script")
def test_no_cuda_kernels_is_no_failure(checkout: Path, python: Path, tmp_path: Path) -> None:
    """Left out when asked, and where nvcc fails: the rest is built, and the reason is shown."""
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho no such toolkit\nexit 1\n")
    nvcc.chmod(0o755)
    home = str(nvcc.parent.parent)
    for environment, reason in (
        ({"VAEKERN_CUDA": "0"}, "built with VAEKERN_CUDA=0"),
        ({"CUDA_HOME": home, "VAEKERN_CUDA": ""}, "the CUDA kernels were not built: "),
        ({"CUDA_HOME": home, "VAEKERN_CUDA": "1"}, "VAEKERN_CUDA=1 asks for CUDA kernels, but "),
    ):
        pip(python, checkout, "--no-build-isolation", ".", **environment)
        text = succeed([python, "-c", LOSS], tmp_path)
        assert text.startswith(f"cpu {LOSS_VALUE}")
        assert f"unavailable: {reason}" in text
        assert ("no such toolkit" in text) == ("CUDA_HOME" in environment)


@pytest.mark.slow
@pytest.mark.skipif(PURE, reason="VAEKERN_PURE=1 asks for the reference")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_chosen_architectures(checkout: Path, python: Path, tmp_path: Path) -> None:
    environment = {"VAEKERN_CUDA": "", "VAEKERN_CUDA_ARCHS": "9.0; 80"}
    pip(python, checkout, "--no-build-isolation", ".", **environment)
    code = "import vaekern._cuda as c; print(c.architectures)"
    assert succeed([python, "-c", code], tmp_path).strip() == "sm_80 sm_90"
    environment = {"VAEKERN_CUDA": "", "VAEKERN_CUDA_ARCHS": "12"}
    pip(python, checkout, "--no-build-isolation", ".", **environment)
    text = succeed([python, "-m", "vaekern", "info"], tmp_path)
    assert "VAEKERN_CUDA_ARCHS asks for 12; this nvcc knows " in text


@pytest.mark.slow
@pytest.mark.skipif(PURE, reason="VAEKERN_PURE=1 asks for the reference")
def test_editable_install_builds_in_place(checkout: Path, python: Path, tmp_path: Path) -> None:
    copy = tmp_path / "editable"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip(python, copy, "--no-build-isolation", "-e", ".")
    assert list((copy / "vaekern").glob("_core.*"))
    text = succeed([python, "-c", LOSS + "print(vaekern.__file__)"], tmp_path)
    assert text.startswith(f"cpu {LOSS_VALUE}")
    assert text.endswith(f"{copy / 'vaekern' / '__init__.py'}\n")


@pytest.mark.slow
@pytest.mark.skipif(PURE, reason="VAEKERN_PURE=1 asks for the reference")
def test_source_distribution_builds_a_wheel(checkout: Path, python: Path, tmp_path: Path) -> None:
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    succeed([python, "-c", code, tmp_path], checkout)
    (archive,) = tmp_path.glob("vaekern-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    needed = {"LICENSE", "README.md", "pyproject.toml", "setup.py", "constraints.txt"}
    missing = (sources | needed | {"tests/conftest.py", "tests/native/check_core.cpp"}) - names
    assert not missing
    assert not [name for name in names if name.endswith((".so", ".pyd", ".o"))]

    words = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, archive]
    succeed([python, *words], tmp_path, 600, VAEKERN_CUDA="0")
    (wheel,) = tmp_path.glob("vaekern-*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
    assert any(name.startswith("vaekern/_core.") for name in names)
    assert "vaekern/py.typed" in names
    assert not [n for n in names if n.startswith(("csrc", "tests", "benchmarks"))]
    pip(python, tmp_path, wheel)
    assert succeed([python, "-c", LOSS], tmp_path).startswith(f"cpu {LOSS_VALUE}")
