"""Builds the native core (csrc/) with ninja, or notes why not and installs in pure Python.

The core is torch-free C++17: one object per kernel file and instruction set, and one for the Python
module.  CXX chooses the compiler, VAEKERN_PURE=1 builds nothing.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
# built once per instruction set
KERNEL_FILES = ("loss.cpp", "sample.cpp", "scale.cpp", "right_svd.cpp", "assignment.cpp")
PLAIN_FILES = ("cpu/dispatch.cpp", "bindings.cpp")
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


def ninja_command() -> list[str] | None:
    try:
        import ninja

        return [str(Path(ninja.BIN_DIR) / "ninja")]
    except ImportError:
        found = shutil.which("ninja")
        return [found] if found else None


class BuildCore(build_ext):
    """One shared library from csrc/; a failure is noted in vaekern/_build_info.py, not raised."""

    def run(self) -> None:
        reason = ""
        in_source = bool(self.inplace)  # the parent clears it while it works
        if os.environ.get("VAEKERN_PURE") == "1":
            reason = "built with VAEKERN_PURE=1"
        else:
            try:
                super().run()
            except (CompileError, subprocess.CalledProcessError, OSError, ImportError) as error:
                reason = f"the C++ core was not built: {error}"
                sys.stderr.write(f"vaekern: {reason}; installing in pure Python\n")
        package = ROOT / "vaekern" if in_source else Path(self.build_lib) / "vaekern"
        package.mkdir(parents=True, exist_ok=True)
        if reason:
            self.extensions: list[Extension] = []
            for old in package.glob("_core.*"):  # an earlier build's core must not stand in
                old.unlink()
        self._note(reason, package)

    def _note(self, reason: str, package: Path) -> None:
        text = f'"""Written by the build."""\n\nREASON = {" ".join(reason.split())[:500]!r}\n'
        (package / "_build_info.py").write_text(text)

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cxx = find_compiler()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = Path(self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)

        flags = list(COMMON)
        openmp = ["-fopenmp"] if compiles(cxx, ["-fopenmp"]) else []
        isas: dict[str, list[str]] = {"baseline": []}
        if platform.machine().lower() in ("x86_64", "amd64"):
            isas |= {n: f for n, f in ISAS.items() if compiles(cxx, ["-std=c++17", *f])}
        have = [f"-DVAEKERN_HAVE_{name.upper()}" for name in isas if name != "baseline"]
        include = [
            f"-I{pybind11.get_include()}",
            f"-I{sysconfig.get_path('include')}",
            f"-I{ROOT / 'csrc'}",
        ]
        steps: list[tuple[Path, Path, list[str]]] = [
            (
                ROOT / "csrc" / name,
                objects / (Path(name).stem + ".o"),
                [*flags, *openmp, *have, *include],
            )
            for name in PLAIN_FILES
        ]
        for isa, isa_flags in isas.items():
            if isa == "baseline" and len(isas) > 1:
                isa_flags = ["-O1"]  # for processors of before 2013: half the time to compile
            for name in KERNEL_FILES:
                steps.append(
                    (
                        ROOT / "csrc" / "cpu" / name,
                        objects / f"{Path(name).stem}_{isa}.o",
                        [*flags, *openmp, *isa_flags, f"-DVAEKERN_ISA={isa}"],
                    )
                )
        link = [*cxx, "-shared", *openmp, "-s"]
        if sys.platform == "darwin":
            link = [*cxx, "-bundle", "-undefined", "dynamic_lookup", *openmp]
        self._build(objects, target, cxx, steps, link)

    def _build(
        self,
        folder: Path,
        target: Path,
        cxx: list[str],
        steps: list[tuple[Path, Path, list[str]]],
        link: list[str],
    ) -> None:
        ninja = ninja_command()
        if ninja is None:  # as correct, one file after the other
            for source, output, flags in steps:
                subprocess.run([*cxx, *flags, "-c", str(source), "-o", str(output)], check=True)
            subprocess.run([*link, *[str(o) for _, o, _ in steps], "-o", str(target)], check=True)
            return

        def escape(path: Path) -> str:
            return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        lines = [
            "rule compile",
            f"  command = {shlex.join(cxx)} $flags -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {shlex.join(link)} $in -o $out",
        ]
        for source, output, flags in steps:
            lines.append(f"build {escape(output)}: compile {escape(source)}")
            lines.append("  flags = " + shlex.join(flags).replace("$", "$$"))
        lines.append(f"build {escape(target)}: link {' '.join(escape(o) for _, o, _ in steps)}")
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        result = subprocess.run(
            [*ninja, "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode:
            sys.stderr.write(result.stdout)
            errors = [line for line in result.stdout.splitlines() if "error" in line.lower()]
            raise CompileError(errors[0] if errors else "ninja failed")


setup(
    ext_modules=[Extension("vaekern._core", sources=[])],
    cmdclass={"build_ext": BuildCore},
)
