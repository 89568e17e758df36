"""Kernels' bodies compiled for the warp emulator (emulator/), and what they are called with."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from embedding_store.dtypes import DTYPES
from tests.embedding_store.small_table import SmallTable

SOURCES = Path(__file__).parent / "emulator"
PARTS = ("plain_accesses", "races", "threads", "warp_emulator")
"""Of the emulator itself."""
COMPILER = shutil.which("c++") or shutil.which("g++")
OUTS = (torch.float32, torch.float16, torch.bfloat16)
EXTREMES = [-(2**63), -1, 0, 1, 2**31, 2**63 - 1]
ORDERS = st.integers(0, 2**64 - 1)
"""Of the turns of warps and lanes: what an emulator draws them from."""
MISSING = [5, -7, 2**40, -(2**62)]
IDS = EXTREMES + [1000 + 37 * i for i in range(70)]


class TablePointers(ctypes.Structure):
    """`Table` of emulated_table.h."""

    _fields_ = (
        *(
            field
            for name in ("storage", "cold", "layout")
            for field in ((name, ctypes.c_void_p), (f"{name}_size", ctypes.c_int64))
        ),
        ("layout_on_device", ctypes.c_int64),
    )


def compiled(name: str, folders: pytest.TempPathFactory) -> ctypes.CDLL:
    """A source of emulator/ as a library that undefined behaviour and races end: once for all processes of a run."""
    return ctypes.CDLL(str(library_of(name, folders)))


def library_of(name: str, folders: pytest.TempPathFactory) -> Path:
    """As `compiled`, not loaded."""
    objects = parts_of_emulator(folders)
    # For plain accesses the compiler calls what a thread sanitizer has: here the emulator. It is linked first, so that
    # of what both have of the standard library it does not get the copy that calls it.
    objects += [_made(f"{name}.o", folders, "-O0", "-fsanitize=undefined,thread", "-fno-sanitize-recover=all")]
    return _made(f"{name}.so", folders, "-shared", *objects, "-fsanitize=undefined")


def parts_of_emulator(folders: pytest.TempPathFactory) -> list[Path]:
    """Its own object files, of whose accesses nobody is told."""
    # Without the checks of longjmp: to them, a jump from one stack to another is a mistake.
    return [_made(f"{part}.cpp.o", folders, "-O2", "-U_FORTIFY_SOURCE") for part in PARTS]


def _made(name: str, folders: pytest.TempPathFactory, *options: str | Path) -> Path:
    """An object file of a source, or a library: once for all processes of a run."""
    own = folders.getbasetemp()
    made = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    command = [COMPILER, "-std=c++20", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", *options]
    if made.suffix == ".o":
        command += ["-c", f"-I{SOURCES}", SOURCES / made.stem]
    new = made.with_suffix(f"{made.suffix}.new")
    with made.with_suffix(f"{made.suffix}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            subprocess.run([*command, "-o", new], check=True, timeout=600)
            new.rename(made)
    return made


def pointers(table: SmallTable, layout_on_device: bool = False) -> TablePointers:
    cold = table.cold.data_ptr() if len(table.cold) else None
    sizes = len(table.storage), len(table.cold), len(table.layout)
    layout = table.layout.data_ptr(), sizes[2], layout_on_device
    return TablePointers(table.storage.data_ptr(), sizes[0], cold, sizes[1], *layout)


def refusal(emulator: ctypes.CDLL, table: SmallTable, *, tiered: bool | None = None, rows: bool = True) -> str:
    """What the ops on CUDA say of a layout that is on the host; nothing if they take it."""
    said = ctypes.create_string_buffer(400)
    emulator.emulate_check(
        ctypes.byref(pointers(table)),
        ctypes.c_int64(len(table.cold) > 0 if tiered is None else tiered),
        list(DTYPES).index(table.dtype.name),
        table.dim if rows else 0,
        said,
        ctypes.c_int64(len(said)),
    )
    return said.value.decode()


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def questions(seed: int, count: int) -> Tensor:
    """Ids that are there, some of them twice, and some that are not."""
    choice = torch.randint(len(IDS) + len(MISSING), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(IDS + MISSING)[choice]


def assert_answers(table: SmallTable, ids: Tensor, out: torch.dtype, got: tuple[Tensor, Tensor]) -> None:
    expected, expected_found = table.answer(ids, out)
    assert torch.equal(got[1], expected_found)
    assert torch.equal(got[0], expected)
