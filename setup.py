"""Builds the native core (csrc/) with ninja, or notes why not and installs in pure Python.

The core is torch-free C++17: one object per kernel file and instruction set, and one for the Python
module.  CXX chooses the compiler, VAEKERN_PURE=1 builds nothing.

Where there is nvcc (on PATH, or in CUDA_HOME or CUDA_PATH) the CUDA kernels become a second module
with the CUDA run time inside, which loads on any machine.  VAEKERN_CUDA=0 leaves it out, 1 makes
its absence a loud note, VAEKERN_CUDA_ARCHS="90;100" chooses the compute capabilities.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
#: Built once per instruction set.
KERNEL_FILES = ("loss.cpp", "sample.cpp", "scale.cpp", "right_svd.cpp", "assignment.cpp")
PLAIN_FILES = ("cpu/dispatch.cpp", "bindings.cpp")
CUDA_FILES = ("loss.cu", "right_svd.cu", "sample.cu", "assignment.cu", "scale.cu")
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")  # machine code; PTX of the newest for the rest
# -fno-math-errno and -fno-trapping-math change no result; -ffast-math would
COMMON = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-g0"]
COMMON += ["-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
ISAS: dict[str, list[str]] = {"baseline": [], "avx2": AVX2, "avx512": [*AVX2, *AVX512]}


def compiles(cxx: list[str], flags: list[str], source: str = "int main() { return 0; }") -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.cpp"
        path.write_text(source)
        command = [*cxx, *flags, str(path), "-o", str(Path(folder) / "probe")]
        try:
            return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
        except OSError:
            return False


def find_compiler() -> list[str]:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        command = shlex.split(name)
        if command and shutil.which(command[0]) and compiles(command, ["-std=c++17"]):
            return command
    raise CompileError(f"no working C++17 compiler was found (tried {', '.join(names)})")


def find_nvcc() -> str:
    homes = [os.environ[k] for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    for name in [*(str(Path(home) / "bin" / "nvcc") for home in homes), "nvcc"]:
        found = shutil.which(name)
        if found is not None:
            return found
    raise CompileError("nvcc was not found on PATH, in CUDA_HOME or in CUDA_PATH")


def ask(command: list[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    if done.returncode:
        raise CompileError(f"{command[0]} failed: {done.stdout.strip()[-300:]}")
    return done.stdout


def cuda_archs(nvcc: str) -> list[str]:
    known = re.findall(r"sm_(\d+)", ask([nvcc, "--list-gpu-code"]))
    wanted = re.split(r"[;,\s]+", os.environ.get("VAEKERN_CUDA_ARCHS", "").strip(" ;,"))
    if wanted == [""]:
        return [arch for arch in CUDA_ARCHS if arch in known]
    wanted = [arch.replace(".", "").removeprefix("sm_") for arch in wanted]
    if unknown := [arch for arch in wanted if arch not in known]:
        raise CompileError(
            f"VAEKERN_CUDA_ARCHS asks for {', '.join(unknown)}; this nvcc knows {' '.join(known)}"
        )
    return sorted(set(wanted), key=int)


def toolkit_folders(nvcc: str, variable: str, flag: str) -> list[str]:
    """Where nvcc itself looks for headers or libraries, whatever the toolkit's layout."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cu"
        source.touch()
        text = ask([nvcc, "--dryrun", "-c", str(source), "-o", str(source.with_suffix(".o"))])
    found = re.search(rf"^#\$ {variable}=(.*)$", text, re.MULTILINE)
    return re.findall(rf'"?{flag}([^"]+?)"?(?:\s|$)', found.group(1)) if found else []


def ninja_command() -> list[str] | None:
    try:
        import ninja

        return [str(Path(ninja.BIN_DIR) / "ninja")]
    except ImportError:
        found = shutil.which("ninja")
        return [found] if found else None


FAILURES = (CompileError, subprocess.SubprocessError, OSError, ImportError)


class Step(NamedTuple):
    """One source file to one object."""

    source: Path
    output: Path
    command: list[str]  # compiler and flags


class BuildNative(build_ext):
    """Shared libraries from csrc/; a failure is noted in vaekern/_build_info.py, not raised."""

    def run(self) -> None:
        reason = ""
        self.cuda_reason = ""
        in_source = bool(self.inplace)  # the parent clears it while it works
        if os.environ.get("VAEKERN_PURE") == "1":
            reason = self.cuda_reason = "built with VAEKERN_PURE=1"
        else:
            try:
                super().run()
            except FAILURES as error:
                reason = f"the C++ core was not built: {error}"
                self.cuda_reason = self.cuda_reason or reason
                sys.stderr.write(f"vaekern: {reason}; installing in pure Python\n")
        package = ROOT / "vaekern" if in_source else Path(self.build_lib) / "vaekern"
        package.mkdir(parents=True, exist_ok=True)
        if reason:
            self.extensions: list[Extension] = []
        # an earlier build's module must not stand in
        for name, why in (("_core", reason), ("_cuda", self.cuda_reason)):
            for old in package.glob(f"{name}.*") if why else ():
                old.unlink()
        self._note(reason, package)

    def _note(self, reason: str, package: Path) -> None:
        lines = ['"""Written by the build."""', ""]
        for name, why in (("REASON", reason), ("CUDA_REASON", self.cuda_reason)):
            lines.append(f"{name} = {' '.join(why.split())[:500]!r}")
        (package / "_build_info.py").write_text("\n".join(lines) + "\n")

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "vaekern._core":
            self._build_core(ext)
            return
        wanted = os.environ.get("VAEKERN_CUDA", "")
        if wanted == "0":
            self.cuda_reason = "built with VAEKERN_CUDA=0"
            return
        try:
            self._build_cuda(ext)
        except FAILURES as error:
            self.cuda_reason = f"the CUDA kernels were not built: {error}"
            if wanted == "1":
                self.cuda_reason = f"VAEKERN_CUDA=1 asks for CUDA kernels, but {error}"
                sys.stderr.write(f"\nvaekern: WARNING: {self.cuda_reason}\n\n")

    def _folders(self, ext: Extension) -> tuple[Path, Path]:
        """The module's path, and a folder for its objects."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = Path(self.build_temp).resolve() / ext.name
        objects.mkdir(parents=True, exist_ok=True)
        return target, objects

    def _build_cuda(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        archs = cuda_archs(nvcc)
        if not archs:
            raise CompileError(f"{nvcc} compiles for none of sm_{', sm_'.join(CUDA_ARCHS)}")
        cxx = find_compiler()
        target, objects = self._folders(ext)
        code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        host = [] if os.environ.get("NVCC_CCBIN") else ["-ccbin", cxx[0]]
        device = [nvcc, *host, "-O3", "-std=c++17", "--threads=2", *code]
        device += ["-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all"]
        device.append(f"-I{ROOT / 'csrc'}")
        names = " ".join(f"sm_{arch}" for arch in archs)
        binding = [
            *cxx,
            *COMMON,
            f'-DVAEKERN_CUDA_ARCHITECTURES="{names}"',
            *self._python_headers(),
        ]
        binding += [f"-I{folder}" for folder in toolkit_folders(nvcc, "INCLUDES", "-I")]
        cuda = ROOT / "csrc" / "cuda"
        steps = [Step(cuda / name, objects / f"{name}.o", device) for name in CUDA_FILES]
        steps.append(Step(cuda / "bindings.cpp", objects / "bindings.o", binding))
        libraries = [f"-L{folder}" for folder in toolkit_folders(nvcc, "LIBRARIES", "-L")]
        libraries += ["-lcudart_static", "-ldl", "-lpthread", "-lrt"]
        self._build(objects, target, steps, [*cxx, "-shared", "-s"], libraries)

    def _python_headers(self) -> list[str]:
        import pybind11

        folders = (pybind11.get_include(), sysconfig.get_path("include"), ROOT / "csrc")
        return [f"-I{folder}" for folder in folders]

    def _build_core(self, ext: Extension) -> None:
        cxx = find_compiler()
        target, objects = self._folders(ext)
        flags = list(COMMON)
        openmp = ["-fopenmp"] if compiles(cxx, ["-fopenmp"]) else []
        isas: dict[str, list[str]] = {"baseline": []}
        if platform.machine().lower() in ("x86_64", "amd64"):
            isas |= {n: f for n, f in ISAS.items() if compiles(cxx, ["-std=c++17", *f])}
        have = [f"-DVAEKERN_HAVE_{name.upper()}" for name in isas if name != "baseline"]
        plain = [*cxx, *flags, *openmp, *have, *self._python_headers()]
        steps = [
            Step(ROOT / "csrc" / name, objects / (Path(name).stem + ".o"), plain)
            for name in PLAIN_FILES
        ]
        for isa, isa_flags in isas.items():
            if isa == "baseline" and len(isas) > 1:
                isa_flags = ["-O1"]  # for processors of before 2013: half the time to compile
            command = [*cxx, *flags, *openmp, *isa_flags, f"-DVAEKERN_ISA={isa}"]
            for name in KERNEL_FILES:
                output = objects / f"{Path(name).stem}_{isa}.o"
                steps.append(Step(ROOT / "csrc" / "cpu" / name, output, command))
        link = [*cxx, "-shared", *openmp, "-s"]
        if sys.platform == "darwin":
            link = [*cxx, "-bundle", "-undefined", "dynamic_lookup", *openmp]
        self._build(objects, target, steps, link, [])

    def _build(
        self,
        folder: Path,
        target: Path,
        steps: list[Step],
        link: list[str],
        libraries: list[str],
    ) -> None:
        ninja = ninja_command()
        if ninja is None:  # as correct, one file after the other
            for source, output, command in steps:
                subprocess.run([*command, "-c", str(source), "-o", str(output)], check=True)
            objects = [str(step.output) for step in steps]
            subprocess.run([*link, *objects, "-o", str(target), *libraries], check=True)
            return

        def escape(path: Path) -> str:
            return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        def words(command: list[str]) -> str:
            return shlex.join(command).replace("$", "$$")

        lines = [
            "rule compile",
            "  command = $tool -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {words(link)} $in -o $out {words(libraries)}",
        ]
        for source, output, command in steps:
            lines.append(f"build {escape(output)}: compile {escape(source)}")
            lines.append(f"  tool = {words(command)}")
        inputs = " ".join(escape(step.output) for step in steps)
        lines.append(f"build {escape(target)}: link {inputs}")
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        result = subprocess.run(
            [*ninja, "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode:
            sys.stderr.write(result.stdout)
            errors = [line for line in result.stdout.splitlines() if "error" in line.lower()]
            raise CompileError(errors[0] if errors else "ninja failed")


setup(
    ext_modules=[
        Extension("vaekern._core", sources=[]),
        Extension("vaekern._cuda", sources=[], optional=True),
    ],
    cmdclass={"build_ext": BuildNative},
)
