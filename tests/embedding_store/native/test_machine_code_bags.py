"""Pooled lookups as machine code: see test_machine_code.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.embedding_store.native.machine_code.sass import CUOBJDUMP, kernels, loop_orders

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc, which is not on the PATH")

KERNELS = 8
LOOPS = ["LLLLLLLLuuuuuuuu", "LLLLuuuu"]  # rows; buckets


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The machine code for Hopper, and what the assembler says of it."""
    source = Path(__file__).parent / "machine_code" / "instances_bags.cu"
    cubin = tmp_path_factory.mktemp("machine_code") / "instances.cubin"
    options = ["-std=c++17", "-fmad=false", "-gencode=arch=compute_90,code=sm_90", "-Xptxas=-v", "-cubin"]
    assert NVCC is not None
    run = subprocess.run([NVCC, *options, source, "-o", cubin], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return cubin, run.stdout + run.stderr


def test_registers_suffice_and_nothing_is_spilled(compiled: tuple[Path, str]):
    used = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", compiled[1], re.DOTALL)
    assert len(used) == KERNELS
    for name, registers in used:  # of 65 536: for 5 blocks of 128 threads, or 4 with the widest chunks; for one of 512
        roomy = "finish_kernel" in name or "Li16E" in name
        assert int(registers) <= (128 if roomy else 96), name
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled[1])
    assert spills == [("0", "0", "0")] * KERNELS


@pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump: on the PATH, named by CUOBJDUMP, or as pip installs it")
def test_all_loads_are_under_way_before_the_first_is_used(compiled: tuple[Path, str]):
    code = kernels(compiled[0])
    assert len(code) == KERNELS
    for name, instructions in code.items():
        orders = loop_orders(instructions)
        if "pooled_kernel" in name:
            assert orders == LOOPS, name
        else:
            assert orders, name
            assert all(order.startswith("LLLLLL") for order in orders), name
