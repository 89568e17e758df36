"""Lookups in many versions as machine code: see test_machine_code.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.embedding_store.native.machine_code.sass import CUOBJDUMP, NVCC, assembled, kernels, loop_orders, spills

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc, which is not on the PATH")

KERNELS = 11
MOST_REGISTERS = 80  # of 65 536, for 6 blocks of 128 threads: plan.h
LOOPS = ["LLLLLLLLuuuuuuuu", "LLLLuuuu"]  # rows; buckets


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return assembled("instances_versions.cu", tmp_path_factory.mktemp("machine_code"))


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
        assert loop_orders(instructions) == LOOPS, name
