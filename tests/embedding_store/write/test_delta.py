"""Deltas: changes on an earlier snapshot, read as if it were whole, and folded by compaction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embedding_store import (
    AsOfDecreasedError,
    ChecksumError,
    DuplicateIdsError,
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIdsError,
    SchemaChangedError,
    Series,
    Snapshot,
    SupersededError,
    VersionExpiredError,
)
from embedding_store.scan import sorter
from embedding_store.write import commit as commits
from embedding_store.write import compact
from tests.embedding_store.helpers import files, named_files, publish

MIN, MAX = -(2**63), 2**63 - 1


def change(
    series: Series, base: int | Snapshot, upserts: dict[int, float], deletes: list[int], as_of: int = 9, **options
) -> Snapshot:
    """Write a delta; a vector holds its value three times."""
    with series.write(as_of=as_of, space="ctr-1", base=base, **options) as writer:
        if upserts:
            vectors = torch.tensor(list(upserts.values()))[:, None].expand(-1, 3)
            writer.append(torch.tensor(list(upserts)), vectors)
        if deletes:
            writer.delete(torch.tensor(deletes))
    return writer.snapshot


def content(snapshot: Snapshot) -> dict[int, float]:
    """id -> value, by lookup, and the same by reading in stored order."""
    table = snapshot.load()
    ids = table.ids()
    vectors, found = table.lookup(ids)
    assert bool(found.all())
    assert len(table) == snapshot.rows == len(ids)
    looked_up = dict(zip(ids.tolist(), vectors[:, 0].tolist(), strict=True))
    read: dict[int, float] = {}
    for part in snapshot.batches(2):
        read |= zip(part.ids.tolist(), part.vectors[:, 0].tolist(), strict=True)
    assert read == looked_up
    snapshot.verify()
    return looked_up


@pytest.fixture(params=[None, 2])
def base(series: Series, request: pytest.FixtureRequest) -> Snapshot:
    return publish(series, 1, [MIN, -1, 0, 5, MAX], rows_per_batch=request.param)


def test_a_delta_reads_as_if_it_were_whole(series: Series, base: Snapshot):
    before = files(series)
    delta = change(series, base, {5: 50.0, 7: 70.0, MAX: 80.0}, [MIN, 12345], rows_per_batch=2)
    assert content(delta) == {-1: 1.0, 0: 2.0, 5: 50.0, 7: 70.0, MAX: 80.0}
    assert content(base) == {MIN: 0.0, -1: 1.0, 0: 2.0, 5: 3.0, MAX: 4.0}
    manifest = delta.manifest
    assert (manifest.base, manifest.rows, manifest.stored_rows) == (1, 5, 8)
    assert manifest.data[: len(base.manifest.data)] == base.manifest.data
    assert (delta.statistics.min_id, delta.statistics.max_id) == (-1, MAX)
    assert delta.statistics.rows == 3
    assert delta.statistics.mean[0] == pytest.approx(200 / 3)
    assert before < files(series) == named_files(series)


def test_deltas_on_deltas_and_compaction(series: Series, base: Snapshot):
    second = change(series, base, {5: 50.0, 6: 60.0}, [0])
    third = change(series, second.version, {0: 1.5, 5: 55.0}, [6, -1])
    branch = change(series, base, {8: 80.0}, [])
    assert content(third) == {MIN: 0.0, 0: 1.5, 5: 55.0, MAX: 4.0}
    assert content(branch) == {MIN: 0.0, -1: 1.0, 0: 2.0, 5: 3.0, MAX: 4.0, 8: 80.0}
    assert third.manifest.stored_rows == 9
    whole = series.compact()
    assert (whole.version, whole.as_of, whole.space) == (5, branch.as_of, branch.space)
    assert content(whole) == content(branch)
    assert (whole.manifest.base, whole.manifest.stored_rows) == (None, 6)
    assert {f.path for f in whole.manifest.files}.isdisjoint({f.path for f in branch.manifest.files})
    assert whole.statistics.mean == pytest.approx((15.0,) * 3)
    assert series.compact().version == 5  # whole already
    assert content(change(series, whole, {}, [8]))[5] == 3.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_compaction_keeps_stored_vectors_exactly(store: EmbeddingStore, dtype: str):
    series = store.create("items", dim=5, dtype=dtype)
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    base = publish(series, 1, list(range(40)), vectors, rows_per_batch=16)
    with series.write(as_of=2, space="ctr-1", base=base) as writer:
        writer.append(torch.arange(10, 20), vectors[:10])
        writer.delete(torch.arange(30, 35))
    before, found = writer.snapshot.load().lookup(torch.arange(40))
    after, found_after = series.compact().load().lookup(torch.arange(40))
    assert torch.equal(before, after)
    assert torch.equal(found, found_after)


def test_an_empty_delta_and_one_that_deletes_all(series: Series, base: Snapshot):
    same = change(series, base, {}, [])
    assert content(same) == content(base)
    assert same.statistics.rows == 0
    assert same.manifest.index == base.manifest.index
    assert same.manifest.overlay is not None, "a snapshot is known by an index or overlay of its own"
    assert (same.manifest.overlay.entries, same.manifest.overlay.index_entries) == (0, 5)
    assert base.statistics.min_id == same.statistics.min_id == MIN
    empty = change(series, same, {}, [MIN, -1, 0, 5, MAX])
    assert content(empty) == {}
    assert empty.statistics.min_id is None
    assert content(series.compact()) == {}
    assert content(change(series, 4, {1: 1.0}, [])) == {1: 1.0}


def test_an_empty_delta_hands_no_damage_on(series: Series, base: Snapshot, tmp_path: Path):
    (index,) = (path for path in tmp_path.rglob("*.hash"))
    damaged = bytearray(index.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    index.write_bytes(damaged)
    with pytest.raises(ChecksumError, match=r"index\.hash"):
        change(series, base, {}, [])
    assert series.versions() == [1]


def test_duplicates_in_a_delta(series: Series, base: Snapshot):
    def write(duplicates: str) -> None:
        with series.write(as_of=2, space="ctr-1", base=base, duplicates=duplicates, rows_per_batch=2) as writer:
            writer.append(torch.tensor([5, 6, 7]), torch.full((3, 3), 1.0))
            writer.delete(torch.tensor([5, 0, 8]))
            writer.append(torch.tensor([6, 0]), torch.full((2, 3), 2.0))
            writer.delete(torch.tensor([-1, -1]))
            writer.append(torch.tensor([9]), torch.full((1, 3), 3.0))
            writer.delete(torch.tensor([9]))

    with pytest.raises(DuplicateIdsError, match=r"4 ids were appended more than once \(0, 5, 6, 9\)"):
        write("error")
    assert series.versions() == [1]
    write("last")
    assert content(series.latest()) == {MIN: 0.0, 0: 2.0, 6: 2.0, 7: 1.0, MAX: 4.0}
    assert series.latest().manifest.stored_rows == 8  # what lost within the delta is not stored
    assert files(series) == named_files(series)


def test_deleting_twice_is_harmless(series: Series, base: Snapshot):
    with series.write(as_of=2, space="ctr-1", base=base) as writer:
        writer.delete(torch.tensor([5, 5]))
        writer.delete(torch.tensor([5]))
    assert 5 not in content(writer.snapshot)


def test_what_a_delta_may_not_be(series: Series, base: Snapshot):
    with pytest.raises(InvalidArgumentError, match="space is 'ctr-2', but the base, version 1, is in space 'ctr-1'"):
        series.write(as_of=2, space="ctr-2", base=base)
    with pytest.raises(AsOfDecreasedError):
        series.write(as_of=0, space="ctr-1", base=base)
    with series.write(as_of=1, space="ctr-1") as writer:
        with pytest.raises(InvalidArgumentError, match="a whole snapshot has nothing to delete: write with base="):
            writer.delete(torch.tensor([1]))
        writer.append(torch.tensor([1]), torch.ones(1, 3))
    with series.write(as_of=1, space="ctr-1", base=base) as writer, pytest.raises(InvalidIdsError, match="float32"):
        writer.delete(torch.tensor([1.0]))
    newer = series.evolve(dim=4)
    with pytest.raises(SchemaChangedError, match="the base, version 1, has schema 1, the series has 2 now"):
        newer.write(as_of=1, space="ctr-1", base=1)


def test_a_schema_that_changed_meanwhile_is_not_gone_back_from(series: Series, base: Snapshot):
    def write() -> None:
        with series.write(as_of=1, space="ctr-1", base=base):
            newer = series.evolve(dim=4)
            publish(newer, 1, [1])

    with pytest.raises(SchemaChangedError, match="schema is 1, but version 2 of 'user_ctr' has 2"):
        write()
    assert [(s.version, s.schema, s.dim) for s in series.history()] == [(1, 1, 3), (2, 2, 4)]
    assert files(series) == named_files(series) | {"schemas/00000002.json"}


def test_a_base_that_expires_meanwhile(series: Series, base: Snapshot, monkeypatch: pytest.MonkeyPatch):
    def write() -> Snapshot:
        with series.write(as_of=2, space="ctr-1", base=base) as writer:
            writer.append(torch.tensor([77]), torch.full((1, 3), 7.0))
            if base.version in series.versions():
                publish(series, 2, [1])
                series.expire(keep_last=1, dry_run=False)
        return writer.snapshot

    assert content(write())[77] == 7.0  # its data are there for an hour
    monkeypatch.setattr(commits, "BASE_GRACE", -1)
    with pytest.raises(VersionExpiredError, match="version 1 of 'user_ctr', the delta's base, is gone"):
        write()


def test_a_compaction_never_hides_a_newer_snapshot(series: Series, base: Snapshot, monkeypatch: pytest.MonkeyPatch):
    change(series, base, {5: 50.0}, [])
    read_rows = compact.read_rows

    def overtaken(*arguments, **options):
        yield from read_rows(*arguments, **options)
        publish(series, 9, [42])

    monkeypatch.setattr(compact, "read_rows", overtaken)
    with pytest.raises(SupersededError, match="version 3 of 'user_ctr' is the newest now, version 2 was being"):
        series.compact()
    assert content(series.latest()) == {42: 0.0}
    assert files(series) == named_files(series)


def test_many_changes_in_many_runs(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sorter, "RUN", 50)
    monkeypatch.setattr(sorter, "SPILL_BYTES", 128)
    base = publish(series, 1, list(range(600)), rows_per_batch=70)
    upserts = {id: float(-id) for id in range(500, 900, 2)}
    deletes = [id for id in range(0, 600, 3) if id not in upserts]
    delta = change(series, base, upserts, deletes, rows_per_batch=30)
    expected = {id: float(id) for id in range(600) if id not in deletes} | upserts
    assert content(delta) == expected
    assert content(series.compact()) == expected


def test_a_delta_costs_what_it_changes(series: Series):
    base = publish(series, 1, list(range(3000)))
    delta = change(series, base, {1: 1.0}, [2])
    own = [file for file in delta.manifest.data if file not in base.manifest.data]
    assert [file.rows for file in own] == [1]
    assert own[0].bytes < base.manifest.data[0].bytes / 20
