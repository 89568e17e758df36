"""All kernels of the CUDA library that is built, as machine code: see test_machine_code.py, which has some of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import embedding_store
from tests.embedding_store.native.machine_code.sass import CUOBJDUMP, NVCC, kernels, loop_orders

LIBRARY = Path(embedding_store.__file__).parent / "libembedding_store_cuda.so"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(NVCC is None, reason="needs nvcc, which is not on the PATH"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump: on the PATH, named by CUOBJDUMP, or as pip has it"),
    pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA library is not built"),
]

ROWS, BUCKETS = "LLLLLLLLuuuuuuuu", "LLLLuuuu"
BY_STEPS = [BUCKETS, BUCKETS, "LLuu", "Lu"]  # with 32, 16, 8, 4 ids a warp
ORDERS = {
    "lookup_kernel": [ROWS, *BY_STEPS],
    "lookup_tiered_kernel": [ROWS, *BY_STEPS],
    "stage_kernel": [ROWS, *BY_STEPS],
    "locate_kernel": BY_STEPS,
    "versions_kernel": [ROWS, BUCKETS],
    "history_kernel": [ROWS, BUCKETS],
    "pooled_kernel": [ROWS, BUCKETS],
    "finish_kernel": [ROWS, ROWS],
    "copy_repeats_kernel": [BUCKETS],
    "enter_kernel": [],
    "leave_kernel": [],
}
NAME = re.compile(r"\d(" + "|".join(ORDERS) + ")I|" + r"\d(locate_kernel)E")


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Its machine code for a Hopper, or what its PTX for one becomes."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in ("-xelf", "-xptx"):
        assert CUOBJDUMP is not None
        subprocess.run([CUOBJDUMP, kind, "all", LIBRARY], cwd=folder, capture_output=True, timeout=600, check=False)
        if found := sorted(folder.glob("*.sm_90.cubin")):
            return found
    for source in sorted(folder.glob("*.sm_90.ptx")):
        assert NVCC is not None
        command = [NVCC, "-arch=sm_90", "-cubin", source, "-o", source.with_suffix(".cubin")]
        subprocess.run(command, capture_output=True, timeout=600, check=True)
        found.append(source.with_suffix(".cubin"))
    if not found:
        pytest.skip("the CUDA library has no code for compute capability 9.0")
    return found


def test_nothing_is_spilled(cubins: list[Path]):
    assert CUOBJDUMP is not None
    commands = [[CUOBJDUMP, "-res-usage", cubin] for cubin in cubins]
    runs = [subprocess.run(each, capture_output=True, text=True, check=True, timeout=600) for each in commands]
    said = "".join(run.stdout + run.stderr for run in runs)
    stacks = re.findall(r"STACK:(\d+)", said)
    assert len(stacks) > 200
    assert set(stacks) == {"0"}


def test_all_loads_are_under_way_before_the_first_is_used(cubins: list[Path]):
    seen = set()
    for cubin in cubins:
        for name, instructions in kernels(cubin).items():
            kind = NAME.search(name)
            assert kind, name
            seen.add(kind[1] or kind[2])
            assert loop_orders(instructions) == ORDERS[kind[1] or kind[2]], name
    assert seen == set(ORDERS)
