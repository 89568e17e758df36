"""The CUDA kernels as machine code, for which a compiler is enough: registers, spills, loads under way together.

That a warp has eight loads under way, and a multiprocessor 24 such warps, is what the kernels' speed rests on; one
register more, or one condition kept too long, costs a good part of it and no test of results would tell.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.embedding_store.native.machine_code.sass import CUOBJDUMP, NVCC, assembled, kernels, loop_orders, spills

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc, which is not on the PATH")

MOST_REGISTERS = 80  # of 65 536, for 6 blocks of 128 threads: plan.h
ROWS = "LLLLLLLLuuuuuuuu"
SOURCES = {  # of instances: how many kernels; the loads of rows, then of buckets
    "instances.cu": (15, [ROWS, "LLLLuuuu", "LLLLuuuu", "LLuu", "Lu"]),  # of buckets with 32, 16, 8, 4 ids a warp
    "instances_versions.cu": (11, [ROWS, "LLLLuuuu"]),
}


class Compiled(NamedTuple):
    """A source of instances: its object file, what the assembler told, and what SOURCES says of it."""

    path: Path
    told: str
    count: int
    loops: list[str]


@pytest.fixture(scope="module", params=SOURCES)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(*assembled(request.param, tmp_path_factory.mktemp("machine_code")), *SOURCES[request.param])


def test_registers_suffice_and_nothing_is_spilled(compiled: Compiled):
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", compiled.told)]
    assert len(registers) == compiled.count
    assert max(registers) <= MOST_REGISTERS
    assert spills(compiled.told) == [("0", "0", "0")] * compiled.count


@pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump: on the PATH, named by CUOBJDUMP, or as pip installs it")
def test_all_loads_are_under_way_before_the_first_is_used(compiled: Compiled):
    code = kernels(compiled.path)
    assert len(code) == compiled.count
    for name, instructions in code.items():
        assert loop_orders(instructions) == compiled.loops, name
