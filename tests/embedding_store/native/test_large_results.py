"""The memory of large results: kept for the next ones, never shared while they live."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from embedding_store.native import ops, reference
from tests.embedding_store.small_table import small_table


def test_large_results_share_no_memory_while_they_live():
    table = small_table(list(range(64)), 128, "float32")
    asked = torch.arange(20_000) % 65  # 64 is missing
    expected, _ = reference.lookup(asked, table.storage, table.layout, 128, "float32")
    for _ in range(3):  # later rounds get the memory of earlier ones, dirty
        alive = [ops.lookup(ids, table.storage, table.layout, 128, "float32")[0] for ids in (asked, asked.flip(0))]
        assert len({vectors.data_ptr() for vectors in alive}) == 2
        assert torch.equal(alive[0], expected)
        assert torch.equal(alive[1], expected.flip(0))
        for vectors in alive:
            vectors.fill_(float("nan"))
        del vectors


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_of_large_results_is_kept_within_a_bound():
    table = small_table(list(range(64)), 128, "float32")
    asked = torch.arange(100_000) % 64  # 51 MB of vectors
    alive = [ops.lookup(asked, table.storage, table.layout, 128, "float32")[0] for _ in range(10)]
    places, with_them = {vectors.data_ptr() for vectors in alive}, resident_bytes()
    del alive
    assert with_them - resident_bytes() > 512e6 - 128 * 2**20 - 60e6  # 60 MB: other tests run in this process
    assert ops.lookup(asked, table.storage, table.layout, 128, "float32")[0].data_ptr() in places


def test_what_there_is_no_memory_for_is_said():
    """A GPU, too, has no memory for an answer now and then; of torch's own words only that it failed comes through."""
    table, ids = small_table([1], 4, "float32"), torch.zeros(1, dtype=torch.int64).expand(2**45)
    with pytest.raises(
        MemoryError, match=f"^{2**48} bytes cannot be had for a lookup: free some memory, or ask for fewer"
    ):
        ops.locate(ids, table.storage, table.layout)
    with pytest.raises(MemoryError, match=f"^{2**48} bytes cannot be had for a lookup"):
        ops.lookup_pooled(ids, torch.tensor([0, 2**45]), None, table.storage, table.layout, 4, "float32")
