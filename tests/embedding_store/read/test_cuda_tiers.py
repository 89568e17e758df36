"""Tiered tables on a GPU: rows that cross the bus once, counted accesses, an index in host memory."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from embedding_store import EmbeddingStore, Hits, LiveTable, Snapshot, TieredTable
from embedding_store.dtypes import DTYPES
from embedding_store.native import ops
from tests.embedding_store.helpers import publish
from tests.embedding_store.small_table import SmallTable, small_table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OUTS = (torch.float32, torch.float16, torch.bfloat16)
IDS = [1000 + 37 * i for i in range(3000)]
MISSING = [5, -7, 2**40]
HOT = 500


def tiered(dim: int, name: str, index_cold: bool = False) -> SmallTable:
    return small_table(IDS, dim, name, segment_rows=[HOT, len(IDS) - HOT], tiered=True, index_cold=index_cold)


def questions(count: int, seed: int = 0) -> Tensor:
    """Ids by Zipf's law, and some that are not there, on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor(IDS + MISSING)[torch.randperm(len(IDS) + len(MISSING), generator=generator)]
    chances = 1.0 / torch.arange(1, len(known) + 1)
    return known[torch.multinomial(chances, count, replacement=True, generator=generator)].cuda()


def answered(table: SmallTable, ids: Tensor, out: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    on_gpu, counters = table.to("cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    where = (on_gpu.storage, on_gpu.cold, on_gpu.layout, table.dim, table.dtype.name, out, counters)
    vectors, found = ops.lookup_tiered(ids, *where)
    return vectors.cpu(), found.cpu(), counters.tolist()


@pytest.mark.parametrize("index_cold", [False, True])
@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("name", DTYPES)
def test_the_same_bits_whoever_read_the_row(name: str, out: torch.dtype, index_cold: bool):
    for dim in (1, 2, 3, 6, 33, 64, 128, 264):
        table = tiered(dim, name, index_cold)
        for count in (1, 1000, 5000, 40_000):
            ids = questions(count, dim)
            vectors, found, counters = answered(table, ids, out)
            expected, expected_found = table.answer(ids.cpu(), out)
            assert torch.equal(vectors, expected), f"dim {dim}, {count} ids"
            assert torch.equal(found, expected_found)
            cold = torch.isin(ids.cpu(), table.ids[HOT:])
            crossed = len(ids[cold.cuda()].unique()) if count >= 2048 else int(cold.sum())
            assert counters == [int((found & ~cold).sum()), int(cold.sum()), int((~found).sum()), crossed]


def test_more_ids_than_one_batch_holds():
    table, count = tiered(2, "float16"), 2**22 + 12_345
    ids = questions(1000)[torch.arange(count, device="cuda") % 1000]
    vectors, found, counters = answered(table, ids, torch.float16)
    expected, expected_found = table.answer(ids[:1000].cpu(), torch.float16)
    at = torch.arange(count) % 1000
    assert torch.equal(vectors, expected[at])
    assert torch.equal(found, expected_found[at])
    assert counters[3] == 2 * len(ids[:1000][torch.isin(ids[:1000].cpu(), table.ids[HOT:]).cuda()].unique())


def test_captured_with_repeats_and_replayed():
    table, ids = tiered(64, "float16"), questions(5000)
    on_gpu, counters = table.to("cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    where = (on_gpu.storage, on_gpu.cold, on_gpu.layout, 64, "float16", torch.float32, counters)
    ops.lookup_tiered(ids, *where)  # loads the kernels: not allowed during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.lookup_tiered(ids, *where)
    for seed in (5, 6):
        ids.copy_(questions(5000, seed))
        counters.zero_()
        graph.replay()
        torch.cuda.synchronize()
        expected, found = table.answer(ids.cpu())
        assert torch.equal(got[0].cpu(), expected)
        assert torch.equal(got[1].cpu(), found)
        assert int(counters[:3].sum()) == 5000
        assert int(counters[3]) == len(ids[torch.isin(ids.cpu(), table.ids[HOT:]).cuda()].unique())


@pytest.fixture
def snapshot(store: EmbeddingStore) -> Snapshot:
    vectors = torch.randn(len(IDS), 64, generator=torch.Generator().manual_seed(1))
    return publish(store.create("user", dim=64), 1, IDS, vectors, rows_per_batch=700)


@pytest.mark.parametrize("index_cold", [False, True])
def test_accesses_are_counted_on_the_device(snapshot: Snapshot, index_cold: bool):
    index = int(snapshot.load().layout[2]) * 64
    budget = index // 2 if index_cold else index + 1024 + HOT * 256
    with pytest.warns(UserWarning, match="it lies in host memory") if index_cold else nullcontext():
        table = snapshot.load("cuda", gpu_bytes=budget, hot_ids=torch.tensor(IDS[::7]))
    assert isinstance(table, TieredTable)
    assert table.index_on_host == index_cold
    table.count_accesses(sample=2)
    ids = questions(5000)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(4):
            table.lookup(ids)
        accesses = table.accesses()
    asked, counts = ids[torch.isin(ids.cpu(), torch.tensor(IDS)).cuda()].cpu().unique(return_counts=True)
    ascending, order = accesses.ids.sort()
    assert torch.equal(ascending, asked)
    assert torch.equal(accesses.counts[order], 2 * counts)
    assert table.ids().tolist() == IDS


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.filterwarnings("ignore:gpu_bytes")
@pytest.mark.parametrize("gpu_bytes", [2**15, 2**17])  # the index on the host, and not
def test_a_table_on_another_than_the_current_device(snapshot: Snapshot, gpu_bytes: int):
    ids, offsets = questions(3000), torch.tensor([0, 1000, 3000])
    with torch.cuda.device(0):
        table = snapshot.load("cuda:1", gpu_bytes=gpu_bytes)
        assert isinstance(table, TieredTable)
        table.count_accesses(sample=1)
        vectors, found = table.lookup(ids.to("cuda:1"))
        pooled, _ = table.lookup_pooled(ids.to("cuda:1"), offsets.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    expected, expected_found = snapshot.load().lookup(ids.cpu())
    assert torch.equal(vectors.cpu(), expected)
    assert torch.equal(found.cpu(), expected_found)
    torch.testing.assert_close(pooled.cpu(), snapshot.load().lookup_pooled(ids.cpu(), offsets)[0], rtol=1e-4, atol=1e-4)
    assert int(table.accesses().counts.sum()) == 2 * int(found.sum())


def test_pooled_and_plain_lookups_on_several_streams_lose_no_count(snapshot: Snapshot):
    table = snapshot.load("cuda", gpu_bytes=snapshot.load("cuda").storage.nbytes // 2)
    assert isinstance(table, TieredTable)
    ids, offsets = questions(4096), torch.arange(0, 4097, 16, device="cuda")
    table.lookup(ids)
    once = table.hits()
    table.reset_hits()
    torch.cuda.synchronize()
    for turn, stream in enumerate(torch.cuda.Stream() for _ in range(400)):
        with torch.cuda.stream(stream):
            table.lookup(ids) if turn % 2 else table.lookup_pooled(ids, offsets)
    torch.cuda.synchronize()
    hits = table.hits()
    assert hits.crossed < hits.cold
    assert hits == Hits(*(400 * count for count in (once.hot, once.cold, once.missing, once.crossed)))


def test_hot_rows_follow_the_traffic_from_version_to_version(snapshot: Snapshot, store: EmbeddingStore):
    series, ids = store.series("user"), questions(20_000)
    bytes = int(snapshot.load().layout[2]) * 64 + 1024 + HOT * 256 + 4 * (len(IDS) + 1)
    with LiveTable(series, interval=3600, device="cuda", gpu_bytes=bytes, sample=1) as live:
        rates = []
        for version in (2, 3):
            live.lookup(ids)
            rates.append(live.tables()["user"].hits().rate)
            publish(series, version, IDS[::-1])
            assert live.refresh().version == version
        assert rates[1] > 1.5 * rates[0]


def test_pinned_memory_is_given_back(snapshot: Snapshot):
    table = snapshot.load("cuda", gpu_bytes=int(snapshot.load().layout[2]) * 64 + 1024)
    assert isinstance(table, TieredTable)
    assert table.cold.is_pinned()
    shared = table.cold[:100]
    vectors, _ = table.lookup(torch.tensor(IDS, device="cuda"))
    del table  # while the kernel may still be reading
    gc.collect()
    assert torch.equal(vectors.cpu(), snapshot.load().lookup(torch.tensor(IDS))[0])
    assert shared.is_pinned()
    for _ in range(20):  # an address that is registered still cannot be registered again
        assert snapshot.load("cuda", gpu_bytes=2**17).lookup(torch.tensor(IDS, device="cuda"))[1].all()
