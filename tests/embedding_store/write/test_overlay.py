"""The overlay of a delta: what it holds, when it is folded, and that a delta reads nothing but what it changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch

from embedding_store import (
    EmbeddingStore,
    HashCollisionError,
    InvalidIndexError,
    Series,
    Snapshot,
    VersionExpiredError,
)
from embedding_store.format.index import ABSENT, unhash
from embedding_store.format.manifest import MANIFESTS
from embedding_store.scan import index as index_scan
from embedding_store.scan.index import overlay_entries
from embedding_store.scan.locations import Locations
from embedding_store.write import overlay
from tests.embedding_store.format.forging import rewrite_file
from tests.embedding_store.helpers import age, files, folder, named_files, publish, settle
from tests.embedding_store.write.test_delta import change, content

MIN, MAX = -(2**63), 2**63 - 1


def entries(snapshot: Snapshot) -> dict[int, int]:
    """What the overlay has: id -> location."""
    pairs = overlay_entries(snapshot._storage, snapshot.manifest)
    return {id: at for h, location in pairs for id, at in zip(unhash(h).tolist(), location.tolist(), strict=True)}


def test_an_overlay_has_what_changed_since_the_index_and_no_more(series: Series):
    base = publish(series, 1, [MIN, 0, 1, 2, MAX])
    first = change(series, base, {1: 10.0, 7: 70.0}, [0, 12345])
    assert entries(first) == {1: 1 << 40, 7: 1 << 40 | 1, 0: ABSENT}  # 12345 was never there
    second = change(series, first, {0: 5.0}, [7, MIN])
    assert entries(second) == {1: 1 << 40, 0: 2 << 40, MIN: ABSENT}  # nor is 7 in the index
    assert second.manifest.index == first.manifest.index == base.manifest.index
    assert (second.manifest.overlay.entries, second.manifest.overlay.index_entries) == (3, 5)
    assert content(second) == {0: 5.0, 1: 10.0, 2: 3.0, MAX: 4.0}
    assert [path.rpartition("/")[2] for path in sorted(files(series)) if "overlay" in path] == [
        "overlay.hash",
        "overlay.hash.crc",
    ] * 2


@pytest.mark.parametrize(("least", "share", "folded"), [(4, 10, False), (3, 10, True), (0, 5, False), (0, 6, True)])
def test_an_overlay_that_grows_too_large_is_folded(
    series: Series, least: int, share: int, folded: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(overlay, "LEAST", least)
    monkeypatch.setattr(overlay, "SHARE", share)
    base = publish(series, 1, list(range(20)))
    delta = change(series, base, {1: 1.5, 30: 3.0, 31: 3.5}, [5])
    assert (delta.manifest.overlay is None) == folded
    assert delta.manifest.index_entries == (21 if folded else 20)
    expected = {id: float(id) for id in range(20) if id != 5} | {1: 1.5, 30: 3.0, 31: 3.5}
    assert content(delta) == expected
    after = change(series, delta, {}, [0])
    assert after.manifest.index == delta.manifest.index or not folded
    assert content(after) == {id: value for id, value in expected.items() if id}


@pytest.mark.parametrize(
    ("upserts", "deletes", "ends"),
    [
        ({5: 1.0}, [0], (MIN, MAX)),
        ({}, [MIN], (-3, MAX)),
        ({}, [MAX], (MIN, 9)),
        ({}, [MIN, MAX, 9], (-3, 0)),
        ({-9: 1.0}, [MIN, -3], (-9, MAX)),
        ({}, [MIN, -3, 0, 9], (MAX, MAX)),
        ({}, [MIN, -3, 0, 9, MAX], (None, None)),
        ({1: 1.0}, [MIN, -3, 0, 9, MAX], (1, 1)),
    ],
)
def test_the_least_and_the_greatest_id(series: Series, upserts: dict, deletes: list[int], ends: tuple):
    base = publish(series, 1, [MIN, -3, 0, 9, MAX])
    for number in range(2):  # on an index, and on an overlay
        delta = change(series, base, upserts, deletes)
        assert (delta.statistics.min_id, delta.statistics.max_id) == ends
        base = change(series, base, {9: 5.0 + number}, [])


def test_a_delta_walks_through_no_index_of_its_base(series: Series, monkeypatch: pytest.MonkeyPatch):
    base = publish(series, 1, list(range(3000)))
    first = change(series, base, {7: 1.0}, [8])
    walked = []
    entries_of = index_scan.IndexReader.entries

    def noted(self: index_scan.IndexReader, *arguments: int):
        walked.append(self._reader.bytes)
        return entries_of(self, *arguments)

    monkeypatch.setattr(index_scan.IndexReader, "entries", noted)
    second = change(series, first, {9: 2.0, 5000: 3.0}, [10])
    assert walked == [first.manifest.overlay.bytes]
    difference = series.diff(base, second)
    assert (difference.added, difference.removed, difference.kept, difference.moved) == (1, 2, 2998, 2)
    assert base.manifest.index.bytes not in walked
    assert sum(file.bytes for file in second.manifest.files if file not in first.manifest.files) < 5000


def test_blocks_that_no_changed_id_lies_in_are_not_read(series: Series):
    base = publish(series, 1, list(range(50_000)))
    located = Locations(series._storage, base.manifest)
    located.find(np.array([1, 70_000]))
    mapping = located._opened.mapping
    blocks = -(-base.manifest.index.bytes // 65536)
    assert blocks - 3 <= mapping.unchecked_blocks <= blocks - 1


def test_a_table_of_a_delta_takes_over_what_its_base_has_checked(series: Series):
    base = publish(series, 1, list(range(30_000)))
    settle()  # nothing is taken over of files mapped within the tick of the clock that they were written in
    table = base.load()
    table.mapping.check()
    delta = change(series, base, {7: 1.0}, [8])
    fresh = delta.load()
    assert fresh.mapping.unchecked_blocks == 2  # the delta's data file and its overlay
    assert torch.equal(fresh.lookup(torch.tensor([6, 9]))[0], table.lookup(torch.tensor([6, 9]))[0])


def test_a_shared_index_stays_while_a_delta_names_it(series: Series):
    base = publish(series, 1, [1, 2, 3])
    delta = change(series, base, {2: 20.0}, [], as_of=1)
    publish(series, 2, [9])
    series.tag("prod", delta.version)
    assert [snapshot.version for snapshot in series.expire(keep_last=1, dry_run=False)] == [1]
    age(folder(series), 8000)
    expired = series._storage.root / "expired" / "00000001.json"
    assert expired.exists()
    series.clean(timedelta(hours=1))
    assert named_files(series) <= files(series)
    assert content(series.version(2)) == {1: 0.0, 2: 20.0, 3: 2.0}


def test_two_deltas_of_one_index_are_two_snapshots(series: Series):
    """Of a retracted delta the tombstone stays; the next one, on the same index, does not go with it."""
    base = publish(series, 1, [1, 2, 3])
    change(series, base, {2: 20.0}, [])
    series.retract(2)
    again = change(series, base, {2: 21.0}, [])
    assert (again.version, series.versions()) == (3, [1, 3])
    assert content(again)[2] == 21.0


def test_a_delta_put_under_the_number_of_one_that_is_gone_does_not_count(series: Series):
    """As a writer leaves it that stalls before it puts its manifest, and dies after it: though both share an index."""
    base = publish(series, 1, [1, 2, 3])
    change(series, base, {2: 20.0}, [])
    stalled = change(series, base, {2: 21.0}, [])
    series.retract(3)
    series.retract(2)
    MANIFESTS.put(series._storage, 2, replace(stalled.manifest, version=2).fields())
    assert series.versions() == [1]
    with pytest.raises(VersionExpiredError):
        series.version(2)
    assert change(series, base, {}, [1]).version == 4


def test_an_overlay_whose_entries_do_not_add_up_is_an_error(series: Series):
    base = publish(series, 1, list(range(20)))
    delta = change(series, base, {7: 1.0}, [8])
    other = change(series, base, {7: 1.0}, [])
    own, others = (folder(series) / one.manifest.overlay.path for one in (delta, other))
    forged = rewrite_file(series, delta, "overlay", others.read_bytes())
    assert own.read_bytes() == others.read_bytes()
    with pytest.raises(InvalidIndexError, match=r"overlay\.hash: leaves 20 ids, its manifest says 19 rows"):
        forged.verify()


def test_keys_of_a_base_are_compared_wherever_they_lie(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch):
    series = store.create("people", dim=3, ids="text")
    names = [f"{i}" + "é" * (i % 50) for i in range(400)]
    with series.write(as_of=1, space="s", rows_per_batch=90) as writer:
        writer.append(names, torch.arange(400.0)[:, None].expand(-1, 3))
    with series.write(as_of=2, space="s", base=1) as writer:
        writer.append([names[399], "new", names[3]], torch.full((3, 3), -1.0))
        writer.delete([names[200], names[0]])
    with series.write(as_of=3, space="s", base=2) as writer:
        writer.append([names[200], "new"], torch.full((2, 3), -2.0))
    table = writer.snapshot.load()
    vectors, found = table.lookup_keys([*names[:4], names[200], names[399], "new"])
    assert found.tolist() == [False, True, True, True, True, True, True]
    assert vectors[:, 0].tolist() == [0.0, 1.0, 2.0, -1.0, -2.0, -1.0, -2.0]
    writer.snapshot.verify()
    real = "embedding_store.write.writer.hash_array"
    monkeypatch.setattr(real, lambda keys: torch.zeros(len(keys), dtype=torch.int64) + int(table.ids()[5]))
    with (
        pytest.raises(HashCollisionError, match="have the same 64-bit hash"),
        series.write(as_of=4, space="s", base=3) as writer,
    ):
        writer.append(["somebody else"], torch.zeros(1, 3))
