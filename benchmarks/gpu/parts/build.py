"""The native libraries: used if they are there and can be loaded, else built, by CMake or by the compilers.

The CUDA library is built for the GPU that is here alone, which takes a part of the time of all architectures.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.gpu.journal import Journal, SkippedError
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tools import ROOT, found

PACKAGE = ROOT / "embedding_store"
SOURCES = PACKAGE / "csrc"
CPU, CUDA = "libembedding_store.so", "libembedding_store_cuda.so"
BUILT = ROOT / "build/gpu"
LEVELS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"),
}
PER_LEVEL = ("products.cpp", "rows.cpp")
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
LOADS = """
import ctypes, sys, torch
for path in sys.argv[1:]:
    torch.ops.load_library(path)
"""


def run(settings: Settings, journal: Journal) -> None:
    """Build what is missing. Raises RuntimeError, with the compiler's words, where that fails."""
    wanted = [CPU] if settings.rehearse else [CPU, CUDA]
    reason = unusable(wanted)
    if reason is None:
        older = [name for name in wanted if (PACKAGE / name).stat().st_mtime < newest_source()]
        done = "nothing: they are there and can be loaded"
        journal.write("library", done=done, files=", ".join(wanted), older_than_sources=older)
        return
    if settings.rehearse:
        raise SkippedError(f"{reason}; a rehearsal builds nothing: run `make install`")
    started = time.perf_counter()
    journal.write("library", needed=reason)
    if found("cmake") and found("c++"):
        try:
            by_cmake(wanted)
            how = "CMake"
        except RuntimeError as error:
            journal.left_out("CMake", str(error))
            by_compilers(wanted)
            how = "the compilers, since CMake failed"
    else:
        by_compilers(wanted)
        how = "the compilers, without CMake"
    if reason := unusable(wanted):
        raise RuntimeError(f"built by {how}, but {reason}")
    seconds = round(time.perf_counter() - started, 1)
    journal.write("library", done=f"built by {how}", files=", ".join(wanted), seconds=seconds)


def unusable(names: Sequence[str]) -> str | None:
    """Why these libraries cannot be used as they are; None if they can. Tried in a process of its own."""
    paths = [PACKAGE / name for name in names]
    for path in paths:
        if not path.exists():
            return f"{path.name} is not there"
    command = [sys.executable, "-c", LOADS, *map(str, paths)]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return f"they cannot be loaded: {tried.stderr.strip()[-300:]}" if tried.returncode else None


def newest_source() -> float:
    """When a source was changed last, as far as the files' times tell: those of a copied tree may say nothing."""
    return max(path.stat().st_mtime for path in SOURCES.rglob("*") if path.is_file())


def by_cmake(names: Sequence[str]) -> None:
    """With the project's own CMakeLists.txt. Raises RuntimeError."""
    generator = ["-G", "Ninja"] if found("ninja") else []
    _run(
        [
            *(_need("cmake"), "-S", str(ROOT), "-B", str(BUILT / "cmake"), *generator),
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DSKBUILD_STATE=editable",  # the libraries go into the package
            f"-DEMBEDDING_STORE_CUDA_ARCHITECTURES={_capability()}-real",
            *([f"-DCMAKE_CUDA_COMPILER={nvcc}"] if (nvcc := found("nvcc")) else []),  # where it is not on the PATH
        ]
    )
    targets = [name.removeprefix("lib").removesuffix(".so") for name in names]
    _run([_need("cmake"), "--build", str(BUILT / "cmake"), "--target", *targets, "--parallel", str(os.cpu_count())])


def by_compilers(names: Sequence[str]) -> None:
    """With c++ and nvcc alone. Raises RuntimeError."""
    BUILT.mkdir(parents=True, exist_ok=True)
    for name in names:
        commands = cpu_commands() if name == CPU else cuda_commands(_capability())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        objects, linked = [command[-1] for command in commands], BUILT / name
        _run([*_linker(name), *objects, "-o", str(linked)])
        shutil.copyfile(linked, PACKAGE / f"{name}.new")
        os.replace(PACKAGE / f"{name}.new", PACKAGE / name)


def cpu_commands() -> list[list[str]]:
    """What compiles the CPU library, a command an object, whose path is last."""
    sources = sorted((SOURCES / "cpu").glob("*.cpp"))
    levels = LEVELS if platform.machine() in ("x86_64", "AMD64") else {"baseline": ()}
    shared = ["-O3", "-DNDEBUG", *(["-DES_X86_LEVELS"] if len(levels) > 1 else [])]
    commands = [
        _cxx(source, shared) for source in (*sources, SOURCES / "common/ops.cpp") if source.name not in PER_LEVEL
    ]
    for level, flags in levels.items():
        for name in PER_LEVEL:
            contract = ["-ffp-contract=fast"] if name == "products.cpp" else []
            options = [*shared, *flags, f"-DES_LEVEL={level}", *contract]
            commands.append(_cxx(SOURCES / "cpu" / name, options, f"-{level}"))
    return commands


def cuda_commands(capability: int) -> list[list[str]]:
    """As `cpu_commands`, of the CUDA library: nvcc knows where its headers and libraries are."""
    sources = (*sorted((SOURCES / "cuda").glob("*.c*")), SOURCES / "common/ops.cpp")
    architecture = f"-gencode=arch=compute_{capability},code=sm_{capability}"
    shared = [
        *(_need("nvcc"), "-O3", "-DNDEBUG", "-DEMBEDDING_STORE_CUDA", "-DUSE_CUDA", TARGET, architecture),
        *("-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-isystem={_torch() / 'include'}"),
    ]
    commands = []
    for source in sources:
        standard = "-std=c++17" if source.suffix == ".cu" else "-std=c++20"
        result = BUILT / f"cuda-{source.parent.name}-{source.name}.o"
        commands.append([*shared, standard, "-c", str(source), "-o", str(result)])
    return commands


def _linker(name: str) -> list[str]:
    """What comes before the objects; libstdc++ before torch, which may have a part of it: see CMakeLists.txt."""
    library = _torch() / ("lib/libtorch_cpu.so" if name == CPU else "lib/libtorch.so")
    kept = f"--no-as-needed,-lstdc++,{library}"  # together: nvcc puts libraries before other options
    if name == CPU:
        return [_need("c++"), "-shared", "-pthread", f"-Wl,{kept}"]
    return [_need("nvcc"), "-shared", "-cudart=static", f"-Xlinker={kept}"]


def _cxx(source: Path, flags: Sequence[str], suffix: str = "") -> list[str]:
    command = [_need("c++"), "-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", TARGET]
    result = str(BUILT / f"{source.parent.name}-{source.stem}{suffix}.o")
    return [*command, f"-isystem{_torch() / 'include'}", *flags, "-c", str(source), "-o", result]


def _torch() -> Path:
    return Path(torch.__file__).parent


def _capability() -> int:
    """Of the GPU that is here, 90 for 9.0; of a Hopper where none is."""
    if not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _need(name: str) -> str:
    if path := found(name):
        return path
    raise RuntimeError(f"{name} is not here, and the libraries have to be built: carry {CPU} and {CUDA} into {PACKAGE}")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} ... failed: {(done.stderr or done.stdout).strip()[-1500:]}")
