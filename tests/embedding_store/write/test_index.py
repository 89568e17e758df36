"""The index: its hash and addresses, the external sort that builds it, and the search that FORMAT.md describes."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import InvalidIdsError, Series, Snapshot
from embedding_store.format.index import EMPTY, hash_ids, home, home_buckets, unhash
from embedding_store.scan import sorter
from embedding_store.scan.index import IndexReader, hashed_entries
from embedding_store.scan.locations import Locations
from embedding_store.scan.sorter import Pairs, Sorter
from embedding_store.write import index
from tests.embedding_store.helpers import folder, publish

INT64 = st.integers(-(2**63), 2**63 - 1)
EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**31, 2**32, 2**63 - 1]
MASK = 2**64 - 1


def documented_hash(id: int, seed: int) -> int:
    """h(id) as FORMAT.md has it, in Python's own integers."""
    x = (id + seed * 0x9E3779B97F4A7C15) & MASK
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & MASK
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & MASK
    return x ^ x >> 33


def documented_search(data: bytes, id: int) -> tuple[int | None, int]:
    """The location of an id in an index file, as FORMAT.md says it is found, and the buckets visited."""
    magic, buckets, total, _, _, seed, *zeros = struct.unpack("<8s7q", data[:64])
    assert (magic, zeros, len(data)) == (b"ESINDEX2", [0, 0], 64 + 64 * total)
    first = documented_hash(id, seed) * buckets >> 64
    for visited, bucket in enumerate(range(first, total), 1):
        entries = list(struct.iter_unpack("<qQ", data[64 + 64 * bucket : 128 + 64 * bucket]))
        for stored, location in entries:
            if stored == id and location != EMPTY:
                return location, visited
        if any(location == EMPTY for _, location in entries):
            return None, visited
    raise AssertionError("the last bucket has no empty slot")


def index_bytes(series: Series, snapshot: Snapshot) -> bytes:
    return (folder(series) / snapshot.manifest.index.path).read_bytes()


@given(st.lists(INT64, max_size=20), st.integers(0, 7))
def test_the_hash_is_the_documented_bijection(ids: list[int], seed: int):
    array = np.array([*ids, *EXTREMES], np.int64)
    h = hash_ids(array, seed)
    assert h.tolist() == [documented_hash(id, seed) for id in array.tolist()]
    assert unhash(h, seed).tolist() == array.tolist()


@given(st.lists(st.integers(0, MASK), min_size=1, max_size=20), st.integers(1, 2**45))
def test_the_home_bucket_is_the_high_word_of_the_product(h: list[int], buckets: int):
    expected = [x * buckets >> 64 for x in h]
    assert home(np.array(h, np.uint64), buckets).tolist() == expected


@pytest.mark.parametrize("entries", [0, 1, 2, 3, 24, 25, 2**31 + 1, 10**13])
def test_at_most_six_tenths_of_the_slots_are_used(entries: int):
    buckets = home_buckets(entries)
    assert buckets >= 1
    assert entries * 10 <= buckets * 4 * 6
    assert buckets == 1 or entries * 10 > (buckets - 1) * 4 * 6


@settings(deadline=None)
@given(
    batches=st.lists(st.lists(st.tuples(st.integers(0, MASK), st.integers(0, 9)), max_size=12), max_size=6),
    others=st.lists(st.tuples(st.integers(0, MASK), st.integers(0, 9)), max_size=20),
    run=st.integers(1, 30),
)
def test_the_sorter_agrees_with_sorted(tmp_path_factory, batches: list, others: list, run: int):
    scratch = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorter, "RUN", run)
        patch.setattr(sorter, "SPILL_BYTES", 64)
        one = Sorter(scratch)
        for batch in batches:
            one.add(pairs_of(batch))
        ordered = sorted(others)
        chunks = (pairs_of(ordered[i : i + 3]) for i in range(0, len(ordered), 3))
        merged = list(one.merged(chunks, len(others)))
    found = [pair for h, value in merged for pair in zip(h.tolist(), value.tolist(), strict=True)]
    assert found == sorted([pair for batch in batches for pair in batch] + others)
    ends = [(h[0], h[-1]) for h, _ in merged if len(h)]
    assert all(last[1] < following[0] for last, following in itertools.pairwise(ends))


def pairs_of(pairs: list[tuple[int, int]]) -> Pairs:
    return Pairs(*(np.array([pair[i] for pair in pairs], np.uint64) for i in (0, 1)))


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several runs and partitions for some hundred ids, and files for them."""
    monkeypatch.setattr(sorter, "RUN", 64)
    monkeypatch.setattr(sorter, "SPILL_BYTES", 256)


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize("count", [0, 1, 4, 5, 700])
def test_every_id_is_found_as_documented(series: Series, count: int):
    generator = np.random.default_rng(count)
    ids = generator.integers(-(2**63), 2**63, count, dtype=np.int64)
    ids[: min(count, 4)] = [-(2**63), 2**63 - 1, 0, -1][:count]
    snapshot = publish(series, 1, ids.tolist(), rows_per_batch=100)
    data, visits = index_bytes(series, snapshot), [0]
    for row, id in enumerate(ids.tolist()):
        location, visited = documented_search(data, id)
        assert location == row // 100 << 40 | row % 100
        visits.append(visited)
    _, buckets, _, entries, max_probe, *_ = struct.unpack("<8s7q", data[:64])
    assert (entries, max_probe, buckets) == (count, max(visits), home_buckets(count))
    for id in generator.integers(-(2**63), 2**63, 100, dtype=np.int64).tolist():
        assert (documented_search(data, id)[0] is not None) == (id in ids)


@pytest.mark.usefixtures("small_runs")
def test_find_and_entries_agree_with_the_file(series: Series):
    ids = np.random.default_rng(0).permutation(np.arange(-500, 500)) * 2**40
    snapshot = publish(series, 1, ids.tolist(), rows_per_batch=300)
    asked = np.concatenate([ids[::3], np.arange(1, 50), ids[:5]])
    located = Locations(series._storage, snapshot.manifest)
    found = located.find(asked)
    assert located.find(np.empty(0, np.int64)).tolist() == []
    with IndexReader(series._storage, snapshot.manifest.index, 1000) as reader:
        pairs = list(reader.entries(chunk=100))
    where = {id: row // 300 << 40 | row % 300 for row, id in enumerate(ids.tolist())}
    assert found.tolist() == [where.get(id, EMPTY) for id in asked.tolist()]
    assert len(pairs) > 5
    listed = [pair for h, location in pairs for pair in zip(unhash(h).tolist(), location.tolist(), strict=True)]
    assert dict(listed) == where
    assert len(listed) == 1000


def colliding(count: int, seed: int) -> list[int]:
    """Ids that share one home bucket under a seed, whatever the number of buckets."""
    return unhash(np.arange(count, dtype=np.uint64) + np.uint64(7), seed).tolist()


def test_ids_made_to_collide_get_another_seed(series: Series, small_runs: None):
    ids = [*colliding(300, 0), *range(20)]
    snapshot = publish(series, 1, ids)
    data = index_bytes(series, snapshot)
    assert struct.unpack("<8s7q", data[:64])[5] == 1
    for row, id in enumerate(ids):
        assert documented_search(data, id)[0] == row
    snapshot.verify()
    table = snapshot.load()
    assert bool(table.lookup(torch.tensor(ids))[1].all())
    assert table.ids().tolist() == sorted(ids)
    h = np.concatenate([h for h, _ in hashed_entries(series._storage, snapshot.manifest)])
    assert np.array_equal(h, np.sort(hash_ids(np.array(ids))))
    with series.write(as_of=2, space="ctr-1", base=snapshot) as writer:  # a base of another seed is sorted anew
        writer.append(torch.tensor([ids[0], 99]), torch.full((2, 3), 5.0))
        writer.delete(torch.tensor([ids[1]]))
    writer.snapshot.verify()
    vectors, found = writer.snapshot.load().lookup(torch.tensor([ids[0], ids[1], ids[2], 99]))
    assert (vectors[:, 0].tolist(), found.tolist()) == ([5.0, 0.0, 2.0, 5.0], [True, False, True, True])


def test_ids_that_collide_under_every_seed_are_refused(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "SEEDS", 1)
    with pytest.raises(InvalidIdsError, match="these 200 ids collide under each of 1 hash seeds"):
        publish(series, 1, colliding(200, 0))
    assert series.versions() == []
    assert not list(Path(folder(series), "data").iterdir())
