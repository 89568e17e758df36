"""A table in two places, on the CPU: hot ids, hit counters, pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedding_store import EmbeddingStore, InvalidIdsError, Snapshot
from embedding_store.read.tiered import Hits, TieredTable
from tests.embedding_store.helpers import publish

IDS = [3 * i - 100 for i in range(300)]


@pytest.fixture(params=["float32", "int8"])
def snapshot(request: pytest.FixtureRequest, store: EmbeddingStore) -> Snapshot:
    series = store.create("item", dim=4, dtype=request.param)
    vectors = torch.randn(len(IDS), 4, generator=torch.Generator().manual_seed(1))
    return publish(series, 1, IDS, vectors, rows_per_batch=100)


def tiered(snapshot: Snapshot, hot_rows: int, hot_ids: Tensor | None = None) -> TieredTable:
    row_bytes = 16  # of four float32, or of scale, offset and four bytes, padded
    index_bytes = -(-int(snapshot.load().layout[2]) * 64 // 256) * 256
    table = snapshot.load(gpu_bytes=index_bytes + 256 + hot_rows * row_bytes, hot_ids=hot_ids)
    assert isinstance(table, TieredTable)
    return table


def hot(table: TieredTable, ids: list[int]) -> list[bool]:
    """Which ids' rows are hot, by the counters."""
    answers = []
    for id in ids:
        table.reset_hits()
        table.lookup(torch.tensor([id]))
        answers.append(table.hits().hot == 1)
    return answers


def test_hot_ids_come_first_and_the_rest_fills_up_in_stored_order(snapshot: Snapshot):
    wanted = torch.tensor([IDS[250], 10**15, IDS[7], IDS[250], IDS[130]])
    table = tiered(snapshot, 5, wanted)
    assert hot(table, IDS) == [i in (0, 1, 7, 130, 250) for i in range(300)]
    assert hot(tiered(snapshot, 2, wanted), IDS) == [i in (7, 250) for i in range(300)]
    assert hot(tiered(snapshot, 3), IDS) == [i < 3 for i in range(300)]


@pytest.mark.parametrize("hot_rows", [0, 1, 299, 300, 1000])
def test_any_split_answers_as_the_whole_table(snapshot: Snapshot, hot_rows: int):
    table, whole = tiered(snapshot, hot_rows, torch.tensor(IDS[::-3])), snapshot.load()
    ids = torch.tensor([*IDS, 1, 3, 10**12]).view(3, -1)
    for out in (torch.float32, torch.float16, torch.bfloat16):
        vectors, found = table.lookup(ids, out)
        expected, expected_found = whole.lookup(ids, out)
        assert torch.equal(vectors, expected)
        assert torch.equal(found, expected_found)
    hits = table.hits()
    assert (hits.hot, hits.cold, hits.missing) == (3 * min(hot_rows, 300), 3 * max(300 - hot_rows, 0), 9)
    assert (len(table.cold) == 0) == (hot_rows >= 300)
    assert table.ids().tolist() == IDS


def test_counters_add_up_and_start_again(snapshot: Snapshot):
    table = tiered(snapshot, 100)
    assert table.hits() == Hits(0, 0, 0)
    assert table.hits().rate == 0
    for _ in range(3):
        table.lookup(torch.tensor([IDS[0], IDS[299], IDS[299], 1]))
    assert table.hits() == Hits(3, 6, 3)
    assert table.hits().rate == pytest.approx(1 / 3)
    table.lookup_pooled(torch.tensor([IDS[0], IDS[299], 1]), torch.tensor([0, 2, 3]))
    assert table.hits() == Hits(4, 7, 4)
    table.reset_hits()
    assert table.hits() == Hits(0, 0, 0)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_pooling_agrees_with_the_whole_table(snapshot: Snapshot, mode: str):
    table, whole = tiered(snapshot, 40), snapshot.load()
    ids = torch.tensor([IDS[0], 1, IDS[299], IDS[5], 2, IDS[5]])
    offsets = torch.tensor([0, 0, 3, 4, 5, 6])
    weights = torch.tensor([0.5, torch.inf, -2.0, 1.0, 3.0, 4.0], requires_grad=True)
    for given in (None, weights):
        pooled, found = table.lookup_pooled(ids, offsets, given, mode)
        expected, expected_found = whole.lookup_pooled(ids, offsets, given, mode)
        torch.testing.assert_close(pooled, expected)
        assert torch.equal(found, expected_found)
    [gradient] = torch.autograd.grad(table.lookup_pooled(ids, offsets, weights, mode)[0].sum(), weights)
    [expected] = torch.autograd.grad(whole.lookup_pooled(ids, offsets, weights, mode)[0].sum(), weights)
    torch.testing.assert_close(gradient, expected)
    assert table.lookup_pooled(ids, offsets, None, mode, torch.float16)[0].dtype == torch.float16
    empty, _ = table.lookup_pooled(ids[:0], torch.tensor([0, 0]), None, mode)
    assert torch.equal(empty, torch.zeros(1, 4))


def test_wrong_hot_ids_are_refused(snapshot: Snapshot):
    with pytest.raises(InvalidIdsError, match=r"hot_ids are torch.float32 \[2\]: give int64"):
        snapshot.load(gpu_bytes=2**20, hot_ids=torch.tensor([1.0, 2.0]))
