"""An index that several processes write is the very file that one writes, cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import (
    DuplicateIdsError,
    EmbeddingStore,
    FileFormatError,
    FragmentError,
    IndexPiece,
    InvalidIdsError,
    Series,
    SharedDraft,
    Snapshot,
)
from embedding_store.format.index import hash_ids, home_buckets, unhash
from embedding_store.format.manifest import Manifest
from embedding_store.write import pieces
from tests.embedding_store.helpers import age, files, folder, named_files

COUNT = 15_000  # in three pieces of some blocks each


@pytest.fixture
def series(store: EmbeddingStore) -> Series:
    return store.create("user_ctr", dim=1, dtype="float16")


def fragments_of(series: Series, draft: SharedDraft, ids: np.ndarray) -> list:
    """Every part's ids at random."""
    parts = np.random.default_rng(1).integers(0, draft.parts, len(ids))
    written = []
    for part in range(draft.parts):
        mine = torch.from_numpy(ids[parts == part])
        with series.fragment(draft, part, rows_per_batch=2000) as writer:
            writer.append(mine, value_of(mine))
        written.append(writer.fragment)
    return written


def value_of(ids: torch.Tensor) -> torch.Tensor:
    return (ids % 1013).to(torch.float16)[:, None]


def written_together(series: Series, ids: np.ndarray, parts: int, as_of: int = 1) -> tuple[Snapshot, list[IndexPiece]]:
    draft = series.draft(parts=parts, as_of=as_of, space="ctr-1")
    written = fragments_of(series, draft, ids)
    made = [series.index_piece(draft, written, part) for part in range(parts)]
    return series.commit(draft, written, made[::-1]), [piece for piece in made if piece is not None]


def written_alone(series: Series, ids: np.ndarray, parts: int) -> Snapshot:
    draft = series.draft(parts=parts, as_of=1, space="ctr-1")
    return series.commit(draft, fragments_of(series, draft, ids))


def index_bytes(series: Series, snapshot: Snapshot) -> bytes:
    return b"".join((folder(series) / piece.path).read_bytes() for piece in snapshot.manifest.index.pieces)


def check_same(series: Series, ids: np.ndarray, parts: int) -> Snapshot:
    snapshot, made = written_together(series, ids, parts)
    assert len(made) == len(snapshot.manifest.index.continued) == parts
    alone = written_alone(series, ids, parts)
    assert not alone.manifest.index.continued
    assert index_bytes(series, snapshot) == index_bytes(series, alone)
    assert replace(snapshot.manifest.statistics) == alone.manifest.statistics
    snapshot.verify()
    return snapshot


def random_ids(count: int) -> np.ndarray:
    ids = np.random.default_rng(count).integers(-(2**63), 2**63, count, dtype=np.int64)
    ids[:4] = [-(2**63), 2**63 - 1, 0, -1]
    return ids


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_pieces_are_the_index_of_one_writer(series: Series, parts: int):
    ids = random_ids(COUNT)
    snapshot = check_same(series, ids, parts)
    asked = torch.from_numpy(np.append(ids, [5, 6]))
    for table in (snapshot.load(), Snapshot(series._storage, Manifest.decode(snapshot.manifest.encode(), "")).load()):
        vectors, found = table.lookup(asked)
        assert found.tolist() == [True] * COUNT + [False, False]
        assert torch.equal(vectors[:-2], value_of(asked[:-2]).float())


@settings(deadline=None, max_examples=15)
@given(
    crowds=st.lists(st.tuples(st.integers(1, 2), st.integers(-120, 40), st.integers(1, 30)), max_size=3),
    gap=st.booleans(),
)
def test_what_crosses_a_cut_is_in_its_place(tmp_path_factory: pytest.TempPathFactory, crowds: list, gap: bool):
    """Ids whose home buckets are the last ones before a cut, or about it: they overflow into the next piece."""
    series = EmbeddingStore(tmp_path_factory.mktemp("store")).create("user_ctr", dim=1, dtype="float16")
    buckets = home_buckets(COUNT)
    starts = pieces.cuts(COUNT, 3)
    assert starts is not None
    made = [np.empty(0, np.uint64)]
    for cut, before, size in crowds:
        h = -(-(starts[cut] << 64) // buckets) + before * (2**64 // buckets // 4)
        made.append(np.arange(h, h + size, dtype=np.uint64))
    special = unhash(np.unique(np.concatenate(made)))
    ids = np.setdiff1d(random_ids(COUNT), special)
    if gap:  # nothing but these about the cuts
        home = (hash_ids(ids) >> np.uint64(32)).astype(np.float64) * buckets / 2**32
        ids = ids[~((np.abs(home - starts[1]) < 700) | (np.abs(home - starts[2]) < 700))]
        ids = np.append(
            ids, np.setdiff1d(np.arange(COUNT, dtype=np.int64) << 20, ids)[: COUNT - len(ids) - len(special)]
        )
        ids = np.setdiff1d(ids, special)
    ids = np.append(ids[: COUNT - len(special)], special)
    assert len(np.unique(ids)) == len(ids)
    check_same(series, ids, 3)


def test_looking_back_goes_as_far_as_it_must(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pieces, "BACK", 1)
    check_same(series, random_ids(COUNT), 3)


@pytest.mark.parametrize(("count", "unit"), [(200_000, 65_536), (400_000, 2 << 20)])
def test_pieces_beyond_the_size_of_a_huge_page_are_read(series: Series, count: int, unit: int):
    ids = np.random.default_rng(4).integers(-(2**63), 2**63, count, dtype=np.int64)
    snapshot, made = written_together(series, ids, 2)
    assert all(piece.file.bytes > 2 << 20 for piece in made)
    assert [piece.bytes % unit for piece in snapshot.manifest.index.pieces[:-1]] == [0, 0]
    assert index_bytes(series, snapshot) == index_bytes(series, written_alone(series, ids, 2))
    asked = torch.from_numpy(ids[::100].copy())
    vectors, found = snapshot.load().lookup(asked)
    assert found.all()
    assert torch.equal(vectors, value_of(asked).float())
    snapshot.verify()


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_few_ids_are_left_to_the_commit(series: Series, count: int):
    ids = np.arange(count, dtype=np.int64)
    snapshot, made = written_together(series, ids, 3)
    assert made == []
    assert snapshot.rows == count
    snapshot.verify()


def test_deltas_folds_diffs_and_uploads_rest_on_them(series: Series):
    ids = random_ids(COUNT)
    whole, _ = written_together(series, ids, 3)
    with series.write(as_of=2, space="ctr-1", base=whole) as writer:
        writer.append(torch.tensor([5, int(ids[9])]), torch.full((2, 1), 7.0))
        writer.delete(torch.from_numpy(ids[:2]))
    delta = writer.snapshot
    assert delta.manifest.index == whole.manifest.index
    assert Manifest.decode(delta.manifest.encode(), "") == delta.manifest
    delta.verify()
    change = series.diff(1, 2)
    assert (change.added, change.removed, change.moved) == (1, 2, 1)
    assert delta.manifest.statistics.min_id == int(np.sort(ids)[1])
    folded = series.compact()
    assert series.diff(2, 3).kept == COUNT - 1
    asked = torch.from_numpy(np.append(ids[:20], 5))
    for table in (delta.load(), folded.load(), series.latest().load(verify=True)):
        assert table.lookup(asked)[1].tolist() == [False] * 2 + [True] * 19
    series.expire(keep_last=1, dry_run=False)
    age(folder(series), 7300)
    series.clean()
    assert {path for path in files(series) if path.startswith("data/")} == data_of(series)


def data_of(series: Series) -> set[str]:
    return {path for path in named_files(series) if path.startswith("data/")}


def test_pieces_that_do_not_fit_are_refused(series: Series):
    draft = series.draft(parts=3, as_of=1, space="ctr-1")
    written = fragments_of(series, draft, random_ids(COUNT))
    made = [series.index_piece(draft, written, part) for part in range(3)]
    with pytest.raises(FragmentError, match=r"pieces are of parts \[0, 1\]: give one of each part, 0 \.\. 2"):
        series.commit(draft, written, made[:2])
    with pytest.raises(FragmentError, match=r"pieces are of parts \[0, 1, 1, 2\]"):
        series.commit(draft, written, [*made, made[1]])
    again = fragments_of(series, draft, random_ids(COUNT + 1))
    with pytest.raises(FragmentError, match=r"the pieces of parts \[0, 1, 2\] were made of other fragments"):
        series.commit(draft, again, made)
    assert series.versions() == []
    assert series.commit(draft, written, made).rows == COUNT


def test_an_id_in_two_fragments_is_found_by_the_piece_that_it_falls_into(series: Series):
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    ids = torch.arange(COUNT)
    written = []
    for part in range(2):
        with series.fragment(draft, part) as writer:
            writer.append(torch.cat([ids[part::2], torch.tensor([-5])]), torch.zeros(COUNT // 2 + 1, 1))
        written.append(writer.fragment)
    told = []
    for part in range(2):
        try:
            series.index_piece(draft, written, part)
        except DuplicateIdsError as error:
            told.append(str(error))
    assert len(told) == 1
    assert "1 ids are in several fragments (-5)" in told[0]


def made_in_first_half(ids: np.ndarray) -> bool:
    return bool((hash_ids(ids) < np.uint64(2**63)).all())


def test_ids_that_were_made_to_collide_are_for_one_writer(series: Series):
    draft = series.draft(parts=2, as_of=1, space="ctr-1")
    made = unhash(np.arange(300, dtype=np.uint64) + np.uint64(2**62))
    written = fragments_of(series, draft, np.append(random_ids(COUNT), made))
    with pytest.raises(InvalidIdsError, match=r"Write the snapshot with `Series\.write`"):
        series.index_piece(draft, written, 0 if made_in_first_half(made) else 1)
    assert series.commit(draft, written).rows == COUNT + 300  # alone it takes another seed


def test_a_manifest_whose_pieces_leave_gaps_is_refused(series: Series):
    snapshot, _ = written_together(series, random_ids(COUNT), 3)
    index = snapshot.manifest.index
    torn = replace(snapshot.manifest, index=replace(index, bytes=index.bytes - 64))
    with pytest.raises(FileFormatError, match="not at multiples of 65536"):
        Manifest.decode(torn.encode(), "m")


def test_pieces_on_an_object_store(url: str, tmp_path: Path):
    series = EmbeddingStore(url, cache=tmp_path / "cache").create("user_ctr", dim=1, dtype="float16")
    ids: Sequence[int] = random_ids(COUNT)
    snapshot, made = written_together(series, np.asarray(ids), 3)
    assert len(made) == 3
    other = EmbeddingStore(url, cache=tmp_path / "other").series("user_ctr").latest()
    other.verify()
    assert bool(other.load().lookup(torch.tensor(ids))[1].all())
    assert snapshot.rows == COUNT
