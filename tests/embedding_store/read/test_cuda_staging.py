"""Pooled lookups in tiered tables on a GPU: cold rows cross the bus once, and the sums' bits are those of one table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embedding_store.dtypes import DTYPES
from embedding_store.native import ops
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

IDS = [1000 + 37 * i for i in range(3000)]
MISSING = [5, -7, 2**40]
HOT = 500


def questions(count: int, seed: int = 0, ids: list[int] = IDS) -> Tensor:
    """Ids by Zipf's law, and some that are not there, on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor(ids + MISSING)[torch.randperm(len(ids) + len(MISSING), generator=generator)]
    chances = 1.0 / torch.arange(1, len(known) + 1)
    return known[torch.multinomial(chances, count, replacement=True, generator=generator)].cuda()


def offsets_of(count: int, length: int) -> Tensor:
    """Bags of so many ids, the last one of the rest."""
    return torch.tensor([*range(0, count, length), count]).cuda()


def pooled(
    table: SmallTable, ids: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, list[int]]:
    where = (table.storage, table.cold, table.layout, table.dim, table.dtype.name, "mean")
    vectors, found, hits = ops.lookup_pooled_tiered(ids, offsets, weights, *where)
    return vectors, found, hits.tolist()


def cold_rows(table: SmallTable, ids: Tensor, hot: int = HOT) -> int:
    cold = torch.isin(ids, table.ids[hot:].cuda())
    return len(ids[cold].unique())


@pytest.mark.parametrize("index_cold", [False, True])
@pytest.mark.parametrize("name", DTYPES)
def test_the_same_bits_as_of_one_table(name: str, index_cold: bool):
    places = {"segment_rows": [HOT, len(IDS) - HOT], "tiered": True, "index_cold": index_cold}
    for dim in (1, 3, 8, 33, 64, 128, 264, 520):
        in_row = dim != 8
        table = small_table(IDS, dim, name, in_row=in_row, **places)
        tiers, whole = table.to("cuda"), small_table(IDS, dim, name, in_row=in_row).to("cuda")
        for layout in (tiers.layout, table.layout):
            one = replace(tiers, layout=layout)
            for count in (1, 2047, 2048, 5000, 40_000):
                ids, offsets = questions(count, dim), offsets_of(count, 23)
                weights = torch.randn(count, generator=torch.Generator().manual_seed(dim)).cuda()
                got, found, hits = pooled(one, ids, offsets, weights)
                where = (whole.storage, whole.layout, dim, name, "mean")
                expected, expected_found = ops.lookup_pooled(ids, offsets, weights, *where)
                assert torch.equal(got, expected), f"dim {dim}, {count} ids"
                assert torch.equal(found, expected_found)
                for _ in range(3):
                    assert torch.equal(pooled(one, ids, offsets, weights)[0], got)
                cold = int(torch.isin(ids, table.ids[HOT:].cuda()).sum())
                crossed = cold_rows(table, ids) if count >= 2048 else cold
                assert hits == [int(found.sum()) - cold, cold, count - int(found.sum()), crossed]


def test_more_ids_than_one_batch_holds():
    table = small_table(IDS, 2, "float16", segment_rows=[HOT, len(IDS) - HOT], tiered=True)
    tiers, whole, count = table.to("cuda"), small_table(IDS, 2, "float16").to("cuda"), 2**22 + 12_345
    ids = questions(1000)[torch.arange(count, device="cuda") % 1000]
    offsets = offsets_of(count, 100_000)
    got, found, hits = pooled(tiers, ids, offsets)
    expected, expected_found = ops.lookup_pooled(ids, offsets, None, whole.storage, whole.layout, 2, "float16", "mean")
    assert torch.equal(got, expected)
    assert torch.equal(found, expected_found)
    assert hits[3] == 2 * cold_rows(table, ids[:1000])


def test_more_cold_rows_than_there_are_places():
    """Of 64 MiB: 16,384 rows of 4 KiB."""
    stored = list(range(20_000))
    table = small_table(stored, 1024, "float32", segment_rows=[1000, 19_000], tiered=True)
    tiers, whole = table.to("cuda"), small_table(stored, 1024, "float32").to("cuda")
    ids = torch.randperm(40_000, generator=torch.Generator().manual_seed(1)).cuda() % 20_000
    offsets = offsets_of(40_000, 37)
    got, found, hits = pooled(tiers, ids, offsets)
    expected, expected_found = ops.lookup_pooled(
        ids, offsets, None, whole.storage, whole.layout, 1024, "float32", "mean"
    )
    assert torch.equal(got, expected)
    assert torch.equal(found, expected_found)
    assert hits == [2000, 38_000, 0, 16_384 + 2 * (19_000 - 16_384)]


def test_captured_in_a_graph_and_replayed():
    table = small_table(IDS, 64, "int8", segment_rows=[HOT, len(IDS) - HOT], tiered=True)
    tiers, whole = table.to("cuda"), small_table(IDS, 64, "int8").to("cuda")
    ids, offsets = questions(5000), offsets_of(5000, 20)
    where = (tiers.storage, tiers.cold, tiers.layout, 64, "int8", "sum")
    ops.lookup_pooled_tiered(ids, offsets, None, *where)  # loads the kernels: not allowed during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.lookup_pooled_tiered(ids, offsets, None, *where)
    for seed in (5, 6):
        ids.copy_(questions(5000, seed))
        graph.replay()
        torch.cuda.synchronize()
        expected, found = ops.lookup_pooled(ids, offsets, None, whole.storage, whole.layout, 64, "int8", "sum")
        assert torch.equal(got[0], expected)
        assert torch.equal(got[1], found)
        assert int(got[2][:3].sum()) == 5000
        assert int(got[2][3]) == cold_rows(table, ids)


def test_streams_beside_each_other():
    """Each call has claims and places of its own."""
    table = small_table(IDS, 128, "float32", segment_rows=[HOT, len(IDS) - HOT], tiered=True)
    tiers, whole = table.to("cuda"), small_table(IDS, 128, "float32").to("cuda")
    offsets, streams = offsets_of(20_000, 40), [torch.cuda.Stream() for _ in range(4)]
    asked = [questions(20_000, seed) for seed in range(4)]
    torch.cuda.synchronize()
    answers = []
    for turn in range(12):
        with torch.cuda.stream(streams[turn % 4]):
            where = (tiers.storage, tiers.cold, tiers.layout, 128, "float32", "sum")
            answers.append(ops.lookup_pooled_tiered(asked[turn % 4], offsets, None, *where))
    torch.cuda.synchronize()
    for turn, (got, found, hits) in enumerate(answers):
        where = (whole.storage, whole.layout, 128, "float32", "sum")
        expected, expected_found = ops.lookup_pooled(asked[turn % 4], offsets, None, *where)
        assert torch.equal(got, expected)
        assert torch.equal(found, expected_found)
        assert int(hits[3]) == cold_rows(table, asked[turn % 4])
