"""Compile csrc/ into one library for many versions of torch and Python; everything else stands in pyproject.toml.

One object an operation and instruction set, recompiled only where a source, a header or the command changed. Without a
compiler or without torch the package installs as pure Python and runs on torch's own operations.
SEPARABLE_BUILD = auto (default), 0 (pure Python), 1 (fail where the library cannot be built).
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
LIBRARY = "libseparable.dylib" if sys.platform == "darwin" else "libseparable.so"
WANT = os.environ.get("SEPARABLE_BUILD", "auto")
MACHINE = os.environ.get("SEPARABLE_TARGET", platform.machine()).lower()  # set it to compile for another processor
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512"
ISAS = {"baseline": ""}
if MACHINE in ("x86_64", "amd64"):
    ISAS |= {"avx2": "-mavx2 -mfma", "avx512": AVX512}
elif MACHINE in ("aarch64", "arm64"):
    ISAS |= {"neon": ""}
# A template of the standard library, instantiated here with AVX-512, could be the copy that the linker keeps for all:
# kernels include no standard header and make no weak symbol (csrc/kernels.h).
KERNEL_FLAGS = ["-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-Wno-maybe-uninitialized"]
KERNEL_FLAGS += ["-fno-tree-loop-distribute-patterns"]  # no call of memset for two vectors of zeros
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10: the oldest whose stable ABI has all we call


def torch_folder() -> Path:
    """Where torch's headers and libraries lie, without importing torch."""
    given = os.environ.get("TORCH_DIR")
    spec = None if given else importlib.util.find_spec("torch")
    folder = Path(given) if given else Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / "include/torch/csrc/stable/ops.h").exists():
        raise RuntimeError("no torch >= 2.10 in the build environment; use pip's --no-build-isolation")
    return folder


def compiler() -> str:
    found = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
    if found is None or os.name == "nt":
        raise RuntimeError("no C++ compiler")
    return found


def objects(torch: Path) -> dict[str, tuple[Path, list[str]]]:
    """Name of each object file: its source and its flags."""
    base = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=off"]
    base += ["-fno-math-errno", "-Wall", f"-ffile-prefix-map={HERE}=.", f"-ffile-prefix-map={torch}=torch"]
    base += shlex.split(os.environ.get("CXXFLAGS", ""))
    found = {}
    for source in sorted((HERE / "csrc").glob("*.cpp")):
        if source.stem.startswith("ops"):
            found[source.stem] = (source, [*base, TORCH_TARGET, f"-isystem{torch / 'include'}"])
        elif source.stem in ("dispatch", "program"):
            found[source.stem] = (source, base)
        else:
            for isa, flags in ISAS.items():
                found[f"{source.stem}.{isa}"] = (source, [*base, *KERNEL_FLAGS, f"-DSEP_ISA={isa}", *flags.split()])
    return found


def is_current(target: Path, command: str) -> bool:
    """True where `target` was made by this very command and nothing that it read has changed since."""
    made_by, read = target.with_suffix(".cmd"), target.with_suffix(".d")
    if not (target.exists() and made_by.exists() and read.exists() and made_by.read_text() == command):
        return False
    files = read.read_text().replace("\\\n", " ").partition(":")[2].split()
    return all(Path(f).exists() and Path(f).stat().st_mtime <= target.stat().st_mtime for f in files)


def compile_object(cxx: str, source: Path, flags: list[str], target: Path) -> None:
    command = [cxx, *flags, "-MMD", "-MF", str(target.with_suffix(".d")), "-c", str(source), "-o", str(target)]
    if not is_current(target, shlex.join(command)):
        target.with_suffix(".cmd").unlink(missing_ok=True)
        run(command)
        target.with_suffix(".cmd").write_text(shlex.join(command))


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)  # noqa: S603 - the compiler, with our own arguments


class BuildLibrary(build_ext):
    """A plain shared library instead of a Python extension module."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)  # no suffix of a Python version

    def build_extension(self, ext):
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._build(out)
        except Exception as error:
            out.unlink(missing_ok=True)  # never package a stale one
            if WANT == "1":
                raise
            print(f"separable: native kernels NOT built ({error}); installing as pure Python", file=sys.stderr)

    def _build(self, out: Path) -> None:
        torch, cxx, work = torch_folder(), compiler(), Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        jobs = [(cxx, source, flags, work / f"{name}.o") for name, (source, flags) in objects(torch).items()]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
            list(pool.map(lambda job: compile_object(*job), jobs))
        link = ["-ltorch_cpu"]
        if sys.platform != "darwin":
            link = ["-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed", "-Wl,-s"]
        beside = out.with_name(f"{out.name}.{os.getpid()}")
        run([cxx, "-shared", *(str(job[-1]) for job in jobs), "-o", str(beside), f"-L{torch / 'lib'}", *link])
        beside.replace(out)  # a process that runs the old one keeps it

    def get_outputs(self):
        return [name for name in super().get_outputs() if Path(name).exists()]  # it may not have been built

    def copy_extensions_to_source(self):
        if any(Path(self.build_lib).rglob(LIBRARY)):
            super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """py3-none-<platform> with the library, py3-none-any without."""

    def run(self):
        self.run_command("build")  # only then is it known which of the two it is
        self.root_is_pure = not any(Path(self.get_finalized_command("build").build_lib).rglob(LIBRARY))
        self.skip_build = True  # or everything would be compiled a second time
        super().run()

    def get_tag(self):
        if self.root_is_pure:
            return "py3", "none", "any"
        return "py3", "none", os.environ.get("SEPARABLE_PLAT") or super().get_tag()[2]


setup(
    ext_modules=[] if WANT == "0" else [Extension("separable._libseparable", sources=[])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
