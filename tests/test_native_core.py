"""The native core under AddressSanitizer and UBSan, without Python or torch.

native/check_core.cpp drives the kernels of the losses, native/check_linalg.cpp those of the linear
algebra, over awkward sizes, layouts and dtypes, and compare with naive loops.  The plain suite
does so for the build that nearly every machine runs; a sanitized build takes three times as long to
compile, so that on x86-64 the baseline meets the naive loops without the sanitizers.  ``--slow``
has them for every instruction set, and other seeds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
ISAS = {"baseline": [], "avx2": AVX2, "avx512": [*AVX2, *AVX512]}
CHECKERS = ("check_core", "check_linalg")
KERNELS = sorted(path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp"))
KERNELS.remove("dispatch")
USUAL = "avx2" if X86 else "baseline"  # the instruction set of the plain suite
# null: a null pointer's use crashes and is reported without it, at two thirds of the compile time
FLAGS = ["-std=c++17", "-O1", "-g1", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
LIGHT = ["-Og"]  # half the compile time of sanitized code; the checks take no longer
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize=null", "-fno-sanitize-recover=all"]
CALLS = ["--param", "asan-instrumentation-with-call-threshold=0"]  # smaller code, the same checks


def compiler() -> str | None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name)), None)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)


class Builder:
    """Compiles once per session; programs of several instruction sets share what they can."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cxx = compiler()
        if cxx is None:
            pytest.skip("no C++ compiler: the native core is neither built nor used here")
        self.cxx = cxx
        source = folder / "probe.cpp"
        source.write_text("int main() { return 0; }\n")
        if run([cxx, *FLAGS, *SANITIZE, str(source), "-o", str(folder / "probe")]).returncode:
            pytest.skip(f"{cxx} links no sanitizers (on Debian: install libasan and libubsan)")
        extra = [cxx, *SANITIZE, *CALLS, "-c", str(source), "-o", str(folder / "probe.o")]
        self.flags = [*LIGHT, *SANITIZE, *(CALLS if run(extra).returncode == 0 else [])]

    def compile(self, job: tuple[Path, str, list[str]]) -> Path:
        source, name, flags = job
        output = self.folder / name
        if not output.exists():
            include = f"-I{ROOT / 'csrc'}"
            command = [self.cxx, *FLAGS, *flags, include, "-c", str(source), "-o", str(output)]
            done = run(command)
            assert done.returncode == 0, done.stderr
        return output

    def program(self, checker: str, isa: str, sanitized: bool) -> Path:
        """A checker with one instruction set, besides the baseline that dispatch.cpp always
        needs."""
        # the checker itself is plain: its buffers carry the sanitizer's red zones all the same
        jobs = [(ROOT / "tests" / "native" / f"{checker}.cpp", f"{checker}.o", [])]
        have = [] if isa == "baseline" else [f"-DVAEKERN_HAVE_{isa.upper()}"]
        jobs.append((ROOT / "csrc" / "cpu" / "dispatch.cpp", f"dispatch_{isa}.o", have))
        for name in dict.fromkeys((isa, "baseline")):  # shared templates: the first is linked
            checked = sanitized and name == isa
            for kernel in KERNELS:
                flags = [*(self.flags if checked else []), *ISAS[name], f"-DVAEKERN_ISA={name}"]
                output = f"{kernel}_{name}{'_sanitized' if checked else ''}.o"
                jobs.append((ROOT / "csrc" / "cpu" / f"{kernel}.cpp", output, flags))
        with ThreadPoolExecutor(2) as pool:
            objects = [str(o) for o in pool.map(self.compile, jobs)]
        output = self.folder / f"{checker}_{isa}{'_sanitized' if sanitized else ''}"
        link = SANITIZE if sanitized else []
        done = run([self.cxx, *FLAGS, *link, *objects, "-o", str(output)])
        assert done.returncode == 0, done.stderr
        return output


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("native"))


def check(builder: Builder, checker: str, isa: str, seed: int, sanitized: bool = True) -> None:
    if isa != "baseline" and not X86:
        pytest.skip(f"{isa} is an x86 instruction set, this is {platform.machine()}")
    program = builder.program(checker, isa, sanitized)
    # leaks: LeakSanitizer needs ptrace, which containers often forbid
    done = run([str(program), str(seed)], VAEKERN_ISA=isa, ASAN_OPTIONS="detect_leaks=0")
    if done.returncode == 2:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{isa} is right" in done.stdout


@pytest.mark.parametrize("checker", CHECKERS)
def test_kernels_under_sanitizers(builder: Builder, checker: str) -> None:
    check(builder, checker, USUAL, seed=0)


@pytest.mark.skipif(not X86, reason="the baseline is checked under sanitizers here")
@pytest.mark.parametrize("checker", CHECKERS)
def test_baseline_kernels(builder: Builder, checker: str) -> None:
    check(builder, checker, "baseline", seed=0, sanitized=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("isa", list(ISAS))
def test_kernels_under_sanitizers_other_seeds(
    builder: Builder, isa: str, checker: str, seed: int
) -> None:
    check(builder, checker, isa, seed)
