"""A table in two places, on the CPU: hot ids, hit counters, counted accesses, pooling."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from embedding_store import Accesses, EmbeddingStore, Hits, InvalidArgumentError, Series, Snapshot, TieredTable
from embedding_store.read import tiered as tiered_module
from tests.embedding_store.fake_gpu import DEVICE, FakeGpu
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
    table = snapshot.load(gpu_bytes=index_bytes + hot_rows * row_bytes, hot_ids=hot_ids)
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


def test_a_budget_of_what_a_copy_takes_holds_all_of_it(snapshot: Snapshot):
    for made in (snapshot, delta(snapshot)):
        table, whole = made.load(gpu_bytes=made.device_bytes), made.load()
        assert isinstance(table, TieredTable)
        ids = torch.tensor([*IDS, 1])
        assert torch.equal(table.lookup(ids)[0], whole.lookup(ids)[0])
        assert (table.hits().hot, table.hits().cold, len(table.storage)) == (made.rows, 0, made.device_bytes)
        less = made.load(gpu_bytes=made.device_bytes - 1)
        assert isinstance(less, TieredTable)
        less.lookup(ids)
        assert (less.hits().hot, less.hits().cold) == (made.rows - 1, 1)


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
    assert hits.crossed == hits.cold  # of the CPU there is no bus
    assert (hits.hot, hits.cold, hits.missing) == (3 * min(hot_rows, 300), 3 * max(300 - hot_rows, 0), 9)
    assert (len(table.cold) == 0) == (hot_rows >= 300)
    assert table.ids().tolist() == IDS


def test_counters_add_up_and_start_again(snapshot: Snapshot):
    table = tiered(snapshot, 100)
    assert table.hits() == Hits(0, 0, 0, 0)
    assert table.hits().rate == 0
    for _ in range(3):
        table.lookup(torch.tensor([IDS[0], IDS[299], IDS[299], 1]))
    assert table.hits() == Hits(3, 6, 3, 6)
    assert table.hits().rate == pytest.approx(1 / 3)
    table.lookup_pooled(torch.tensor([IDS[0], IDS[299], 1]), torch.tensor([0, 2, 3]))
    assert table.hits() == Hits(4, 7, 4, 7)
    table.reset_hits()
    assert table.hits() == Hits(0, 0, 0, 0)


@pytest.mark.parametrize("deltas", [False, True])
def test_pooled_lookups_are_counted_as_others_are(snapshot: Snapshot, deltas: bool):
    table = tiered(delta(snapshot) if deltas else snapshot, 100)
    ids = torch.tensor([*IDS[::7], *IDS[-20:], *IDS[3:9], 1, 2, 10**12]).repeat(3)
    counted = []
    for lookup in (table.lookup, lambda ids: table.lookup_pooled(ids, torch.tensor([0, 0, 50, len(ids)]))):
        table.reset_hits()
        table.count_accesses(sample=1)
        lookup(ids)
        accesses = table.accesses()
        counted.append((table.hits(), accesses.ids.tolist(), accesses.counts.tolist()))
    assert counted[0] == counted[1]
    hits = counted[0][0]
    assert min(hits.hot, hits.cold, hits.missing) > 0


def test_pooled_lookups_count_by_what_a_gpu_does_atomically(snapshot: Snapshot):
    """Lookups on several streams count at the same time."""
    table, writes = tiered(snapshot, 100), list[str]()

    class Writes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.is_mutable and args[0] is table._counters:
                writes.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Writes():
        table.lookup_pooled(torch.tensor(IDS), torch.tensor([0, len(IDS)]))
    assert writes == ["aten::index_add_"]
    assert table.hits() == Hits(100, 200, 0, 200)


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


@pytest.mark.parametrize("hot_rows", [0, 40, 300])
@pytest.mark.parametrize("deltas", [False, True])
def test_an_index_beyond_the_budget_lies_with_the_cold_rows(snapshot: Snapshot, hot_rows: int, deltas: bool):
    if deltas:
        snapshot = delta(snapshot)
    budget = hot_rows * 16
    with pytest.warns(UserWarning, match=rf"gpu_bytes is {budget}, and the index takes \d+: it lies in host memory"):
        table = snapshot.load(gpu_bytes=budget, hot_ids=torch.tensor(IDS[::2]))
    assert isinstance(table, TieredTable)
    assert table.index_on_host
    assert len(table.storage) <= budget
    whole, ids = snapshot.load(), torch.tensor([*IDS, 1, 10**12])
    for given, expected in zip(table.lookup(ids), whole.lookup(ids), strict=True):
        assert torch.equal(given, expected)
    assert table.hits().hot == min(hot_rows, len(table))
    assert table.ids().tolist() == whole.ids().tolist()
    table.count_accesses(sample=1)
    table.lookup(torch.tensor([IDS[3], IDS[3], 1]))
    accesses = table.accesses()
    assert (accesses.ids.tolist(), accesses.counts.tolist()) == ([IDS[3]], [2])


def test_a_budget_of_nothing_leaves_all_on_the_host(snapshot: Snapshot):
    with pytest.warns(UserWarning, match="gpu_bytes is 0, and the index takes"):
        table = snapshot.load(gpu_bytes=0)
    assert isinstance(table, TieredTable)
    assert table.lookup(torch.tensor(IDS))[1].all()
    assert table.hits() == Hits(0, 300, 0, 300)


def delta(snapshot: Snapshot) -> Snapshot:
    """The next version: ten other vectors, ten ids less."""
    series = Series(snapshot._storage, snapshot.series)
    with series.write(as_of=2, space="ctr-1", base=1) as writer:
        writer.append(torch.tensor(IDS[:10]), torch.ones(10, 4))
        writer.delete(torch.tensor(IDS[-10:]))
    return writer.snapshot


@pytest.mark.parametrize("deltas", [False, True])
def test_accesses_are_those_of_every_nth_lookup(snapshot: Snapshot, deltas: bool):
    table = tiered(delta(snapshot) if deltas else snapshot, 100, torch.tensor(IDS[50:]))
    with pytest.raises(InvalidArgumentError, match=r"no accesses are counted: call count_accesses\(\) first"):
        table.accesses()
    table.lookup(torch.tensor(IDS))  # before it is asked for
    table.count_accesses(sample=3)
    assert len(table.accesses()) == 0
    for lookup in range(7):  # 0, 3 and 6 count
        table.lookup(torch.tensor([[IDS[lookup], IDS[200]], [IDS[200], 1]]))
    accesses = table.accesses()
    assert accesses.counts.tolist() == [6, 1, 1, 1]
    assert accesses.ids[0] == IDS[200]
    assert set(accesses.ids.tolist()) == {IDS[200], IDS[0], IDS[3], IDS[6]}
    with pytest.raises(InvalidArgumentError, match="sample is 0; use 1 or more"):
        table.count_accesses(sample=0)


def test_pooled_lookups_count_and_ids_that_are_not_there_do_not(snapshot: Snapshot):
    table = tiered(snapshot, 10)
    table.count_accesses(sample=1)
    table.lookup_pooled(torch.tensor([IDS[5], 1, IDS[5], IDS[250]]), torch.tensor([0, 1, 4]))
    table.lookup(torch.empty(0, dtype=torch.int64))
    accesses = table.accesses()
    assert (accesses.ids.tolist(), accesses.counts.tolist()) == ([IDS[5], IDS[250]], [2, 1])


def test_half_of_the_past_is_where_counts_begin(snapshot: Snapshot):
    table = tiered(snapshot, 10)
    past = Accesses(torch.tensor([IDS[7], 10**15, IDS[290], IDS[8]]), torch.tensor([2**40, 9, 5, 1]))
    table.count_accesses(sample=1, past=past)
    table.lookup(torch.tensor([IDS[290], IDS[1]]))
    accesses = table.accesses()
    assert accesses.ids[:2].tolist() == [IDS[7], IDS[290]]
    assert accesses.counts.tolist() == [2**28, 4, 1, 1]


def test_counts_are_halved_before_they_overflow(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiered_module, "_COUNTED", 100)
    table = tiered(snapshot, 10)
    table.count_accesses(sample=1)
    for _ in range(3):
        table.lookup(torch.full((40,), IDS[4]))
    assert table.accesses().counts.tolist() == [80 // 2 + 40]


def test_of_one_row_alone_counts_do_not_overflow():
    count, most = 0, tiered_module._COUNTED  # of ids between two halvings, and of what a version begins with
    for _ in range(100):
        count = count // 2 + most + 2**24  # a batch comes after each halving, too
    assert count < 2**31


def test_loaded_and_counted_in_inference_mode_it_is_of_use_outside(snapshot: Snapshot):
    with torch.inference_mode():
        table = tiered(snapshot, 10)
        table.count_accesses(sample=1)
    ids, weights = torch.tensor([IDS[40], 1]), torch.ones(2, requires_grad=True)
    table.lookup(ids)
    pooled, _ = table.lookup_pooled(ids, torch.tensor([0, 2]), weights)
    pooled.sum().backward()
    assert table.accesses().counts.tolist() == [2]
    assert (table.hits().cold, table.hits().missing) == (2, 2)


def test_what_lookups_write_to_is_given_back_as_tables_are(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch):
    fake, stream = FakeGpu(monkeypatch), SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(TieredTable, "device", DEVICE)
    table = tiered(snapshot, 10)
    assert fake.live == 2 * 4 * 8  # hits, and where each kind is counted
    table.count_accesses()
    assert fake.live == 2 * 4 * 8 + 4 * 301
    del table
    assert fake.live == 0


def test_a_compiled_lookup_is_not_counted_and_not_compiled_anew(snapshot: Snapshot):
    table = tiered(snapshot, 10)
    table.count_accesses(sample=1)
    compiled = torch.compile(lambda ids: table.lookup(ids)[0], backend="eager", fullgraph=True)
    ids = torch.tensor([IDS[0], 1])
    compiled(ids)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            assert torch.equal(compiled(ids), table.lookup(ids)[0])
    assert table.accesses().counts.tolist() == [3]
