"""The emulator that the kernels' tests trust: it sees mistakes that a GPU forgives on most days, and only those."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.embedding_store.native.emulation import COMPILER, address, library_of, parts_of_emulator

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

NC = "read through the read-only path"
WRONG = {  # what the emulator says of it, whatever the order
    "two blocks write the same value": ("words + 0: written by block", ", written by block"),
    "two blocks write a struct, one of them in part": ("pairs + ", "written by block 0", "written by block 1"),
    "a block reads a struct that another writes": ("pairs + ", "written by block 0", "read by block 1"),
    "a block reads what another writes": ("words + 0: ", "read by block 1, warp 1", "written by block 0, warp 0"),
    "a plain read of what is changed atomically": ("words + 0", "read by block 1", "changed atomically by block 0"),
    "a plain write of what is changed atomically": ("words + 0", "written by block 1", "changed atomically by block 0"),
    "bytes that overlap": ("a race for", "written by block 0, warp 0, lane 0", "written by block 1, warp 1, lane 0"),
    "warps of a block without a barrier": ("a race for 8 bytes", "read by block", "written by block"),
    "lanes between which there is but a shuffle": ("a race for 8 bytes", "lane 1", "lane 0"),
    "lanes that read before one writes": ("a race for 8 bytes", "lane 0, and", "read by block"),
    "the read-only path to what the same lane has written": (f"{NC} by block", "written by block"),
    "the read-only path to what another changes atomically": (f"{NC} by block 1", "changed atomically by block 0"),
    "a lane leaves the others": ("kernel: a lane left the others",),
    "lanes are at different steps": ("kernel: lanes are at different steps",),
    "a warp leaves its block": ("kernel: a thread left the others of its block",),
    "a plain write elsewhere": ("kernel: a write outside of the outputs",),
    "a plain read elsewhere": ("kernel: a read outside of the inputs",),
    "a write to inputs": ("kernel: a write outside of the outputs",),
    "a misaligned access": ("kernel: a misaligned access",),
}
RUN = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).run_kernel(int(sys.argv[2]), ctypes.c_uint64(int(sys.argv[3])))"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library_of("emulate_races.cpp", tmp_path_factory)


@pytest.fixture(scope="module")
def emulator(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.name_of.restype = ctypes.c_char_p
    return library


def names(emulator: ctypes.CDLL) -> list[str]:
    known: list[str] = []
    while (name := emulator.name_of(len(known))) is not None:
        known.append(name.decode())
    return known


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_ends_the_process_with_its_name(emulator: ctypes.CDLL, path: Path, name: str):
    number = names(emulator).index(name)
    for order in range(2):
        ended = subprocess.run(
            [sys.executable, "-S", "-c", RUN, path, str(number), str(order)], capture_output=True, text=True, timeout=60
        )
        assert ended.returncode < 0, ended
        assert ended.stderr.startswith("warp emulator: kernel: ")
        for part in WRONG[name]:
            assert part in ended.stderr


def test_what_is_right_passes_in_every_order(emulator: ctypes.CDLL):
    right = [number for number, name in enumerate(names(emulator)) if name.startswith("right: ")]
    assert len(right) == len(names(emulator)) - len(WRONG) > 0
    for order in range(30):
        for number in right:
            emulator.run_kernel(number, ctypes.c_uint64(order))
        assert emulator.write_and_read(ctypes.c_uint64(order)) == 0  # a launch forgets the one before


def test_turns_are_taken_in_every_order(emulator: ctypes.CDLL):
    """And in the same one if that is asked for again."""

    def turns(order: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        blocks, lanes = torch.zeros(3, dtype=torch.int64), torch.zeros(32, dtype=torch.int64)
        emulator.emulate_turns(ctypes.c_uint64(order), address(blocks), address(lanes))
        return tuple(blocks.tolist()), tuple(lanes.tolist())

    drawn = [turns(order) for order in range(100)]
    assert drawn == [turns(order) for order in range(100)]
    assert len({blocks for blocks, _ in drawn}) == 6
    assert all(sorted(lanes) == list(range(32)) for _, lanes in drawn)
    assert len({lanes for _, lanes in drawn}) > 50


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_the_emulator_has_no_copy_of_what_kernels_call(tmp_path_factory: pytest.TempPathFactory):
    """It is linked first, and its copy of an inline function, such as decode.h has, would tell of no access."""
    listed = subprocess.run(
        ["nm", "-C", *parts_of_emulator(tmp_path_factory)], capture_output=True, text=True, check=True
    ).stdout
    shared = [line.split(" W ")[1] for line in listed.splitlines() if " W " in line]
    assert shared
    own = ("std::", "embedding_store::warp::")
    assert [name for name in shared if not any(one in name.partition("(")[0] for one in own)] == []
