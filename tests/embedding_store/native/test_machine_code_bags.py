"""Pooled lookups as machine code: see test_machine_code.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.embedding_store.native.machine_code.sass import CUOBJDUMP, NVCC, assembled, kernels, loop_orders, spills

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc, which is not on the PATH")

KERNELS = 8
LOOPS = ["LLLLLLLLuuuuuuuu", "LLLLuuuu"]  # rows; buckets


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return assembled("instances_bags.cu", tmp_path_factory.mktemp("machine_code"))


def test_registers_suffice_and_nothing_is_spilled(compiled: tuple[Path, str]):
    used = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", compiled[1], re.DOTALL)
    assert len(used) == KERNELS
    for name, registers in used:  # of 65 536: for 5 blocks of 128 threads, or 4 with the widest chunks; for one of 512
        roomy = "finish_kernel" in name or "Li16E" in name
        assert int(registers) <= (128 if roomy else 96), name
    assert spills(compiled[1]) == [("0", "0", "0")] * KERNELS


@pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump: on the PATH, named by CUOBJDUMP, or as pip installs it")
def test_all_loads_are_under_way_before_the_first_is_used(compiled: tuple[Path, str]):
    code = kernels(compiled[0])
    assert len(code) == KERNELS
    for name, instructions in code.items():
        orders = loop_orders(instructions)
        if "pooled_kernel" in name:
            assert orders == LOOPS, name
        else:
            assert orders == LOOPS[:1] * 2, name
