"""Snapshots that several writers make: the same as one writer's, whole or not at all, for every reader."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import (
    AsOfDecreasedError,
    ChecksumError,
    DuplicateIdsError,
    EmbeddingStore,
    Fragment,
    FragmentError,
    InvalidArgumentError,
    LiveTable,
    MissingFileError,
    SchemaChangedError,
    Series,
    SharedDraft,
    Snapshot,
    StorageAccessError,
    WriterClosedError,
)
from embedding_store.write import overlay
from embedding_store.write.content import WrittenFiles
from tests.embedding_store.helpers import age, files, folder, named_files, publish

Vectors = Mapping[int, float]
INT64 = st.integers(-(2**63), 2**63 - 1)
PART = st.integers(0, 2)


def fragment(series: Series, draft: SharedDraft, part: int, upserts: Vectors, deletes: Sequence[int] = ()) -> Fragment:
    with series.fragment(draft, part, rows_per_batch=3) as writer:
        if upserts:
            writer.append(torch.tensor(list(upserts)), vectors_of(upserts, series.dim))
        if deletes:
            writer.delete(torch.tensor(deletes))
    return pickle.loads(pickle.dumps(writer.fragment))


def vectors_of(values: Vectors, dim: int) -> torch.Tensor:
    return torch.tensor(list(values.values()))[:, None] * torch.linspace(1, 2, dim)


def together(
    series: Series, as_of: int, parts: Sequence[Vectors], deletes: Sequence[Sequence[int]] = (), base: Any = None
) -> Snapshot:
    draft = series.draft(parts=len(parts), as_of=as_of, space="ctr-1", base=base)
    gone = deletes or [()] * len(parts)
    written = [fragment(series, draft, part, parts[part], gone[part]) for part in range(len(parts))]
    return series.commit(draft, written[::-1])


def content(snapshot: Snapshot) -> dict[int, tuple[float, ...]]:
    return {
        id: tuple(vector)
        for batch in snapshot.batches(1000)
        for id, vector in zip(batch.ids.tolist(), batch.vectors.tolist(), strict=True)
    }


def expected(values: Vectors, dim: int = 3) -> dict[int, tuple[float, ...]]:
    return dict(zip(values, map(tuple, vectors_of(values, dim).tolist()), strict=True)) if values else {}


PARTS = [{1: 1.0, -(2**63): 2.0, 7: 3.0, 9: 4.0}, {}, {2**63 - 1: 5.0, 0: 6.0}]
ALL = {id: value for part in PARTS for id, value in part.items()}


def test_nothing_is_visible_before_the_commit_and_then_all_is(series: Series):
    draft = series.draft(parts=3, as_of=1, space="ctr-1")
    written = [fragment(series, draft, part, rows) for part, rows in enumerate(PARTS)]
    assert series.versions() == []
    assert [one.rows for one in written] == [4, 0, 2]
    snapshot = series.commit(draft, written)
    assert (snapshot.version, snapshot.rows, series.versions()) == (1, 6, [1])
    assert content(snapshot) == expected(ALL)
    assert files(series) == named_files(series)
    snapshot.verify()


@settings(deadline=None, max_examples=30)
@given(
    rows=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1), st.tuples(st.integers(0, 2), st.integers(-9, 9)), max_size=40
    ),
    changes=st.dictionaries(
        st.integers(0, 60), st.tuples(st.integers(0, 2), st.none() | st.integers(-9, 9)), max_size=30
    ),
    folded=st.booleans(),
)
def test_parts_make_what_one_writer_makes(tmp_path_factory: Any, rows: dict, changes: dict, folded: bool):
    store = EmbeddingStore(tmp_path_factory.mktemp("store"))
    many, one = store.create("many", dim=3), store.create("one", dim=3)
    parts = [{id: float(value) for id, (part, value) in rows.items() if part == number} for number in range(3)]
    whole = {id: value for part in parts for id, value in part.items()}
    known = list(whole)
    changed = {known[i % len(known)] if known and i % 3 else i: change for i, change in changes.items()}
    upserts = [{id: float(v) for id, (p, v) in changed.items() if p == n and v is not None} for n in range(3)]
    deletes = [[id for id, (p, v) in changed.items() if p == n and v is None] for n in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "LEAST", -1 if folded else 4096)
        first, second = together(many, 1, parts), together(many, 2, upserts, deletes, base=1)
        with one.write(as_of=1, space="ctr-1") as writer:
            writer.append(torch.tensor(list(whole), dtype=torch.int64), vectors_of(whole, 3).view(-1, 3))
        with one.write(as_of=2, space="ctr-1", base=1) as delta:
            new = {id: value for part in upserts for id, value in part.items()}
            delta.append(torch.tensor(list(new), dtype=torch.int64), vectors_of(new, 3).view(-1, 3))
            delta.delete(torch.tensor([id for part in deletes for id in part], dtype=torch.int64))
    for ours, theirs in ((first, writer.snapshot), (second, delta.snapshot)):
        assert content(ours) == content(theirs)
        ours.verify()
        same = ("rows", "stored_rows", "as_of", "space", "dim", "dtype", "base", "schema")
        assert [getattr(ours.manifest, name) for name in same] == [getattr(theirs.manifest, name) for name in same]
        a, b = ours.manifest.statistics, theirs.manifest.statistics
        assert (a.rows, a.min_id, a.max_id) == (b.rows, b.min_id, b.max_id)
        assert np.allclose([a.mean_norm, *a.mean], [b.mean_norm, *b.mean], rtol=1e-12)
        assert (ours.manifest.overlay is None) == (theirs.manifest.overlay is None)
        table = ours.load()
        ids = torch.tensor([*whole, *changed, 5], dtype=torch.int64)
        for found, wanted in zip(table.lookup(ids), theirs.load().lookup(ids), strict=True):
            assert torch.equal(found, wanted)
    ours_diff, theirs_diff = many.diff(1, 2), one.diff(1, 2)
    assert ours_diff == theirs_diff


def test_one_part_has_the_very_index_of_one_writer(series: Series, store: EmbeddingStore):
    other = store.create("other", dim=3)
    snapshot = together(series, 1, [ALL])
    with other.write(as_of=1, space="ctr-1", rows_per_batch=3) as writer:
        writer.append(torch.tensor(list(ALL)), vectors_of(ALL, 3))
    ours, theirs = (
        (folder(s) / x.manifest.index.path).read_bytes() for s, x in ((series, snapshot), (other, writer.snapshot))
    )
    assert ours == theirs


def test_every_reader_reads_them(series: Series):
    snapshot = together(series, 1, PARTS)
    with LiveTable(series, interval=3600.0) as live:
        delta = together(series, 2, [{7: 9.0}, {100: 1.0}], [[1], [0]], base=snapshot)
        live.refresh()
        assert live.lookup(torch.tensor([7, 1, 100]))[1].tolist() == [True, False, True]
    now = {**ALL, 7: 9.0, 100: 1.0}
    del now[1], now[0]
    assert content(delta) == expected(now)
    ids, times = torch.tensor([7, 7, 1, 100]), torch.tensor([1, 2, 2, 1])
    vectors, known, versions = series.lookup_as_of(ids, times)
    assert known.tolist() == [True, True, False, False]
    assert versions.tolist()[:2] == [1, 2]
    assert vectors[:2, 0].tolist() == [3.0, 9.0]
    change = series.diff(1, 2)
    assert (change.added, change.removed, change.kept, change.moved) == (1, 2, 4, 1)
    whole = series.compact()
    assert whole.manifest.base is None
    assert content(whole) == content(delta)
    gone = series.expire(keep_last=1, dry_run=False)
    assert [one.version for one in gone] == [1, 2]
    age(folder(series), 7300)
    series.clean(timedelta(hours=1))
    assert content(series.latest()) == expected(now)
    whole.verify()


def test_the_upload_copies_them(series: Series):
    table = together(series, 1, PARTS).load("cpu")
    ids = torch.tensor([*ALL, 5])
    vectors, found = table.lookup(ids)
    assert found.tolist() == [True] * 6 + [False]
    assert torch.equal(vectors[:6], vectors_of(ALL, 3))


def test_text_keys_too(store: EmbeddingStore):
    series = store.create("names", dim=2, ids="text")
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    written = []
    for part, keys in enumerate((["anna", "björn"], ["cleo"])):
        with series.fragment(draft, part) as writer:
            writer.append(keys, torch.full((len(keys), 2), float(part)))
        written.append(writer.fragment)
    table = series.commit(draft, written).load()
    assert table.lookup_keys(["cleo", "anna", "dan"])[1].tolist() == [True, True, False]


@pytest.mark.parametrize("kind", ["missing", "twice", "draft", "series", "as_of"])
def test_fragments_that_make_no_snapshot_are_refused_by_name(series: Series, store: EmbeddingStore, kind: str):
    draft = series.draft(parts=3, as_of=1, space="ctr-1")
    written = [fragment(series, draft, part, rows) for part, rows in enumerate(PARTS)]
    other = store.create("item_ctr", dim=4)
    bad: dict[str, tuple[Callable[[], list[Fragment]], str]] = {
        "missing": (lambda: written[:1], "2 of 3 fragments are missing, of part 1, 2: commit when all are written"),
        "twice": (lambda: [*written, fragment(series, draft, 1, {4: 1.0})], "part 1 is there twice"),
        "draft": (
            lambda: [*written[:2], fragment(series, series.draft(parts=3, as_of=1, space="ctr-1"), 2, {})],
            "part 2 is of another draft: its folder is",
        ),
        "series": (
            lambda: [*written[:2], fragment(other, other.draft(parts=3, as_of=1, space="ctr-1"), 2, {})],
            "its series is 'item_ctr', the draft's 'user_ctr'",
        ),
        "as_of": (
            lambda: [*written[:2], replace(written[2], draft=replace(draft, as_of=9))],
            "its as_of is 9, the draft's 1",
        ),
    }
    fragments, message = bad[kind]
    with pytest.raises(FragmentError, match=message):
        series.commit(draft, fragments())
    assert series.versions() == []
    assert series.commit(draft, written).rows == 6  # they are still there


def test_an_id_in_two_fragments_is_refused(series: Series):
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    written = [fragment(series, draft, part, {part: 1.0, 5: 1.0}) for part in range(2)]
    with pytest.raises(DuplicateIdsError, match=r"1 ids are in several fragments \(5\)"):
        series.commit(draft, written)
    mended = fragment(series, draft, 1, {6: 1.0})  # a part may be written again
    snapshot = series.commit(draft, [written[0], mended])
    assert sorted(content(snapshot)) == [0, 5, 6]
    age(folder(series), 7300)
    series.clean()
    assert files(series) == named_files(series)


def test_one_part_upserts_what_another_deletes(series: Series):
    together(series, 1, PARTS)
    draft = series.draft(parts=2, as_of=2, space="ctr-1", base=1)
    clash = [fragment(series, draft, 0, {7: 1.0}), fragment(series, draft, 1, {}, [7])]
    with pytest.raises(DuplicateIdsError, match="in several fragments"):
        series.commit(draft, clash)
    twice = [fragment(series, draft, part, {}, [7]) for part in range(2)]  # harmless
    assert 7 not in content(series.commit(draft, twice))


def test_arguments_that_cannot_work_are_refused_before_any_work(series: Series, store: EmbeddingStore):
    with pytest.raises(InvalidArgumentError, match="parts is 0"):
        series.draft(parts=0, as_of=1, space="ctr-1")
    with pytest.raises(InvalidArgumentError, match="space is ''"):
        series.draft(parts=1, as_of=1, space="")
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    with pytest.raises(InvalidArgumentError, match=r"part is 2: the draft has parts 0 \.\. 1"):
        series.fragment(draft, 2)
    with pytest.raises(FragmentError, match="the draft is of series 'user_ctr', this one is 'item_ctr'"):
        store.create("item_ctr", dim=3).fragment(draft, 0)
    publish(series, 5, [1])
    with pytest.raises(AsOfDecreasedError):
        series.draft(parts=2, as_of=4, space="ctr-1")
    written = [fragment(series, draft, part, rows) for part, rows in enumerate(PARTS[:2])]
    with pytest.raises(AsOfDecreasedError):
        series.commit(draft, written)
    assert files(series) == named_files(series)  # of no use any more
    late = series.draft(parts=1, as_of=6, space="ctr-1")
    series.evolve(dim=5)
    with pytest.raises(SchemaChangedError):
        series.fragment(late, 0)


def test_a_writer_that_fails_leaves_the_others(series: Series):
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    first = fragment(series, draft, 0, {1: 1.0})
    before = files(series)
    writer = series.fragment(draft, 1, rows_per_batch=2)
    with pytest.raises(DuplicateIdsError), writer:
        writer.append(torch.arange(10) // 2, torch.ones(10, 3))
    with pytest.raises(WriterClosedError, match="nothing is written yet"):
        _ = writer.fragment
    assert files(series) == before
    snapshot = series.commit(draft, [first, fragment(series, draft, 1, {2: 1.0})])
    assert snapshot.rows == 2


def test_a_fragment_that_is_gone_or_changed_is_noticed(series: Series):
    draft = series.draft(parts=1, as_of=1, space="ctr-1")
    written = fragment(series, draft, 0, ALL)
    assert written.entries is not None
    entries, data = (folder(series) / path for path in (written.entries.path, written.data[0].path))
    good = entries.read_bytes()
    entries.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(ChecksumError):
        series.commit(draft, [written])
    entries.write_bytes(good)
    Path(data).unlink()
    with pytest.raises(MissingFileError):
        series.commit(draft, [written])
    assert series.versions() == []


def test_a_commit_that_is_tried_again_never_deletes_what_the_first_has_published(
    series: Series, monkeypatch: pytest.MonkeyPatch
):
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    written = [fragment(series, draft, part, {part: 1.0}) for part in range(2)]

    checked = WrittenFiles.check

    def check(files: WrittenFiles) -> None:
        checked(files)
        if series.versions():
            raise StorageAccessError("the store does not answer any more")

    monkeypatch.setattr(WrittenFiles, "check", check)
    with pytest.raises(StorageAccessError):
        series.commit(draft, written)  # its manifest is there
    monkeypatch.undo()
    assert series.versions() == [1]
    publish(series, 2, [5])
    with pytest.raises(AsOfDecreasedError):
        series.commit(draft, written)
    assert content(series.version(1)) == expected({0: 1.0, 1: 1.0}, series.dim)


def test_drafts_that_nobody_commits_are_cleaned_when_all_their_writers_are_silent(series: Series):
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    fragment(series, draft, 0, {1: 1.0})
    age(folder(series), 7300)
    second = fragment(series, draft, 1, {2: 1.0})  # one writer lives: so does the draft
    assert series.clean() == []
    assert second.rows == 1
    age(folder(series), 7300)
    assert series.clean() == [draft.folder]


def test_fragments_on_an_object_store(url: str, tmp_path: Path):
    series = EmbeddingStore(url, cache=tmp_path / "cache").create("user_ctr", dim=3)
    together(series, 1, PARTS)
    delta = together(series, 2, [{7: 9.0}, {}], [[], [1]], base=1)
    other = EmbeddingStore(url, cache=tmp_path / "other").series("user_ctr").latest()
    now = {id: 9.0 if id == 7 else value for id, value in ALL.items() if id != 1}
    assert content(other) == expected(now)
    delta.verify()
    draft = series.draft(parts=2, as_of=3, space="ctr-1")
    with pytest.raises(FragmentError, match="1 of 2 fragments are missing"):
        series.commit(draft, [fragment(series, draft, 0, ALL)])
