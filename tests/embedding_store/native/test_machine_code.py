"""The CUDA kernels as machine code, for which a compiler is enough: registers, spills, loads under way together.

That a warp has eight loads under way, and a multiprocessor 24 such warps, is what the kernels' speed rests on; one
register more, or one condition kept too long, costs a good part of it and no test of results would tell.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.embedding_store.native.machine_code.sass import CUOBJDUMP, NVCC, assembled, kernels, loop_orders, spills

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc, which is not on the PATH")

KERNELS = 14
MOST_REGISTERS = 80  # of 65 536, for 6 blocks of 128 threads: plan.h
LOOKUP_LOOPS = ["LLLLLLLLuuuuuuuu", "LLLLuuuu", "LLLLuuuu", "LLuu", "Lu"]  # rows; buckets with 32, 16, 8, 4 ids a warp


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return assembled("instances.cu", tmp_path_factory.mktemp("machine_code"))


def test_registers_suffice_and_nothing_is_spilled(compiled: tuple[Path, str]):
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", compiled[1])]
    assert len(registers) == KERNELS
    assert max(registers) <= MOST_REGISTERS
    assert spills(compiled[1]) == [("0", "0", "0")] * KERNELS


@pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump: on the PATH, named by CUOBJDUMP, or as pip installs it")
def test_all_loads_are_under_way_before_the_first_is_used(compiled: tuple[Path, str]):
    code = kernels(compiled[0])
    assert len(code) == KERNELS
    for name, instructions in code.items():
        assert loop_orders(instructions) == LOOKUP_LOOPS, name
