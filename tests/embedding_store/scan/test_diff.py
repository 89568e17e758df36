"""What changed between two snapshots."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store import (
    ChecksumError,
    EmbeddingStore,
    InvalidArgumentError,
    MissingFileError,
    Series,
    Snapshot,
    VersionExpiredError,
    VersionNotFoundError,
)
from embedding_store.dtypes import DTYPES, decode
from embedding_store.format.files import Rows, StoredReader
from embedding_store.format.manifest import Folded
from embedding_store.native.mapping import BLOCK, MappedFile, Mapping
from embedding_store.scan import diff
from embedding_store.scan.changed import changed_ids
from embedding_store.scan.diff import QUANTILES
from embedding_store.scan.rows import read_rows, row_format
from embedding_store.scan.sorter import NO_PAIRS, Pairs, in_step
from embedding_store.scan.vectors import VectorReader
from embedding_store.write import overlay
from tests.embedding_store.helpers import age, folder, publish


def test_counts_and_quantiles(series: Series):
    publish(series, 1, [1, 2, 3, 4, 5], torch.tensor([[1.0, 0, 0]] * 5))
    vectors = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-3, 0, 0], [5, 0, 0], [9, 9, 9]])
    publish(series, 2, [2, 3, 4, 5, 6], vectors)
    found = series.diff(1, 2)
    assert (found.old, found.new) == (1, 2)
    assert (found.added, found.removed, found.kept, found.moved) == (1, 1, 4, 3)
    assert found.cosine == {q: pytest.approx(v) for q, v in zip(QUANTILES, QUANTILE_VALUES, strict=True)}
    back = series.diff(series.version(2), series.version(1))
    assert (back.added, back.removed, back.kept, back.moved) == (1, 1, 4, 3)
    assert back.cosine == found.cosine
    same = series.diff(2, 2)
    assert (same.added, same.removed, same.kept, same.moved) == (0, 0, 5, 0)
    assert same.cosine == dict.fromkeys(QUANTILES, 1.0)


QUANTILE_VALUES = np.quantile([-1.0, 0.0, 1.0, 1.0], QUANTILES).tolist()


def test_what_cannot_be_compared_is_counted_only(series: Series):
    publish(series, 1, [1, 2], torch.ones(2, 3))
    with series.write(as_of=2, space="ctr-2") as writer:
        writer.append(torch.tensor([2, 3]), torch.ones(2, 3))
    publish(series.evolve(dim=2), 3, [3, 4])
    for old, new in [(1, 2), (2, 3), (3, 1)]:
        found = series.diff(old, new)
        assert (found.moved, found.cosine) == (None, None)
        assert (found.added, found.removed, found.kept) == ((1, 1, 1) if old < 3 else (2, 2, 0))


def test_another_dtype_can_be_compared(series: Series):
    vectors = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    publish(series, 1, list(range(50)), vectors)
    publish(series.evolve(dtype="int8"), 2, list(range(50)), vectors)
    found = series.diff(1, 2)
    assert (found.kept, found.moved) == (50, 50)
    assert found.cosine is not None
    assert 0.99 < found.cosine[0.0] < found.cosine[1.0] <= 1.0


def test_empty_snapshots(series: Series):
    for as_of in (1, 2):
        with series.write(as_of=as_of, space="ctr-1"):
            pass
    publish(series, 3, [1])
    empty = series.diff(1, 2)
    assert (empty.added, empty.removed, empty.kept, empty.moved, empty.cosine) == (0, 0, 0, 0, None)
    assert (series.diff(2, 3).added, series.diff(3, 2).removed) == (1, 1)
    with pytest.raises(VersionNotFoundError, match="has no version 4; versions: 1-3"):
        series.diff(3, 4)


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1.0, 1e38])
def test_cosines_of_extreme_vectors(series: Series, scale: float):
    publish(series, 1, [1, 2], torch.tensor([[3.0, 0, 0], [0, 0, 0]]) * scale)
    publish(series, 2, [1, 2], torch.tensor([[1.0, 1.0, 0], [0, 0, 0]]) * scale)
    cosine = series.diff(1, 2).cosine
    assert cosine is not None
    assert cosine[1.0] == 1.0  # zeros stayed zeros
    assert cosine[0.0] == pytest.approx(0.5**0.5 if scale else 1.0)


def test_a_zero_vector_that_moves_is_at_a_right_angle(series: Series):
    publish(series, 1, [1], torch.zeros(1, 3))
    publish(series, 2, [1], torch.ones(1, 3))
    found = series.diff(1, 2)
    assert (found.moved, found.cosine) == (1, dict.fromkeys(QUANTILES, 0.0))


def test_progress_and_small_steps(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diff, "CHUNK", 4)
    publish(series, 1, list(range(10)), torch.ones(10, 3))
    publish(series, 2, list(range(5, 15)), torch.ones(10, 3))
    steps: list[tuple[int, int]] = []
    found = series.diff(1, 2, progress=lambda done, total: steps.append((done, total)))
    assert (found.added, found.removed, found.kept, found.moved) == (5, 5, 5, 0)
    assert len(steps) > 3
    assert steps == sorted(steps)
    assert steps[-1] == (10, 10)


def test_of_many_rows_a_sample_gives_the_quantiles(series: Series, monkeypatch: pytest.MonkeyPatch):
    angles = torch.linspace(0, torch.pi, 1001)
    publish(series, 1, list(range(1001)), torch.tensor([[1.0, 0, 0]]).expand(1001, 3))
    publish(series, 2, list(range(1001)), torch.stack([angles.cos(), angles.sin(), 0 * angles], 1))
    exact = series.diff(1, 2).cosine
    monkeypatch.setattr(diff, "SAMPLE", 100)
    monkeypatch.setattr(diff, "CHUNK", 17)
    sampled = series.diff(1, 2).cosine
    assert exact is not None
    assert sampled is not None
    assert (sampled[0.0], sampled[1.0]) == (-1.0, 1.0)
    assert sampled != exact
    assert all(abs(sampled[q] - exact[q]) < 0.03 for q in QUANTILES)


def test_a_delta_is_compared_as_if_it_were_whole(series: Series):
    publish(series, 1, [1, 2, 3], torch.eye(3))
    with series.write(as_of=2, space="ctr-1", base=1) as writer:
        writer.append(torch.tensor([3, 4]), torch.eye(3)[:2])
        writer.delete(torch.tensor([1]))
    for old, new in [(1, 2), (2, 1)]:
        found = series.diff(old, new)
        assert (found.added, found.removed, found.kept, found.moved) == (1, 1, 2, 1)
        assert found.cosine is not None
        assert (found.cosine[0.0], found.cosine[1.0]) == (0.0, 1.0)


def test_keys_are_compared_by_their_hashes(store: EmbeddingStore):
    series = store.create("film", dim=1, ids="text")
    for as_of, keys in [(1, ["a", "b"]), (2, ["b", "c", "d"])]:
        with series.write(as_of=as_of, space="s") as writer:
            writer.append(keys, torch.ones(len(keys), 1))
    found = series.diff(1, 2)
    assert (found.added, found.removed, found.kept, found.moved) == (2, 1, 1, 0)


def test_changed_bytes_are_an_error_that_names_the_file(series: Series):
    publish(series, 1, list(range(100)), torch.ones(100, 3))
    publish(series, 2, list(range(100)), torch.ones(100, 3))
    for version in (1, 2):
        file = folder(series) / series.version(version).manifest.data[0].path
        original = file.read_bytes()
        position = series.version(version).manifest.segments[0].vector + 7
        file.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        with pytest.raises(ChecksumError, match=file.name):
            series.diff(1, 2)
        file.write_bytes(original)
    assert series.diff(1, 2).moved == 0


def test_of_a_delta_only_changed_rows_are_read(series: Series, monkeypatch: pytest.MonkeyPatch):
    publish(series, 1, list(range(1000)), torch.randn(1000, 3), rows_per_batch=300)
    for as_of, changed in [(2, [5, 999, 2000]), (3, [5, 301])]:
        with series.write(as_of=as_of, space="ctr-1", base=as_of - 1) as writer:
            writer.append(torch.tensor(changed), torch.zeros(len(changed), 3))
    rows = []
    read = VectorReader.read
    monkeypatch.setattr(VectorReader, "read", lambda self, where: rows.append(len(where)) or read(self, where))
    for old, new, kept, moved, expected in [
        (1, 2, 1000, 2, 2),
        (2, 1, 1000, 2, 2),
        (2, 3, 1001, 1, 2),
        (1, 3, 1000, 3, 3),
    ]:
        rows.clear()
        found = series.diff(old, new)
        assert (found.kept, found.moved, sum(rows)) == (kept, moved, 2 * expected)
    rows.clear()
    assert series.diff(3, 3).cosine == dict.fromkeys(QUANTILES, 1.0)
    assert rows == []


class BlocksRead:
    """Blocks of 64 KiB of stored files that are read from here on: by readers, and in mappings, by whoever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read = 0
        self._mappings: list[tuple[Mapping, int]] = []
        read, open = StoredReader._read, Mapping.open

        def counted(reader: StoredReader, start: int, stop: int) -> np.ndarray:
            self._read += -(-stop // BLOCK) - start // BLOCK if stop > start else 0
            return read(reader, start, stop)

        def opened(files: Sequence[MappedFile], *, copies: bool = False) -> Mapping:
            mapping = open(files, copies=copies, anew=True)  # what others have checked counts too
            self._mappings.append((mapping, mapping.unchecked_blocks))
            return mapping

        monkeypatch.setattr(StoredReader, "_read", counted)
        monkeypatch.setattr(Mapping, "open", staticmethod(opened))

    def take(self) -> int:
        """How many, since the last time."""
        count = self._read + sum(before - mapping.unchecked_blocks for mapping, before in self._mappings)
        self._read, self._mappings = 0, []
        return count


def change(series: Series, number: int) -> Snapshot:
    """A delta of three upserts and a delete on the newest version."""
    with series.write(as_of=number, space="ctr-1", base=series.latest()) as writer:
        writer.append(torch.tensor([number, 1000 + number, -number]), torch.full((3, series.dim), float(number)))
        writer.delete(torch.tensor([2000 + number]))
    return writer.snapshot


@pytest.mark.parametrize("rows", [20_000, 160_000])
def test_what_is_read_is_what_was_changed(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, rows: int):
    """Whatever was folded into an index, or compacted, in between: 12 MB and more are never read for a few rows."""
    series = store.create("large", dim=32)
    publish(series, 0, list(range(rows)), torch.zeros(rows, 32))
    change(series, 1)  # 2: an overlay
    monkeypatch.setattr(overlay, "LEAST", 0)
    monkeypatch.setattr(overlay, "SHARE", rows)
    assert [change(series, number).manifest.overlay for number in (2, 3)] == [None, None]  # 3, 4: folded
    series.compact()  # 5
    change(series, 4)  # 6
    series.compact()  # 7
    change(series, 5)  # 8
    assert series.latest().manifest.folded == Folded(version=6, files=1)
    blocks = BlocksRead(monkeypatch)
    for old, new, deltas in [(2, 3, 1), (1, 4, 3), (4, 5, 0), (4, 6, 1), (1, 8, 5), (8, 3, 3), (8, 8, 0)]:
        found = series.diff(old, new)
        assert (found.added, found.removed, found.moved) == (deltas, deltas, 2 * deltas)
        # A changed id: its bucket in an index and an overlay, of both versions, and two vectors, each in two blocks at
        # most. A version: the headers of its indexes, and the ids that it has upserted and deleted.
        assert blocks.take() <= 4 * deltas * (4 * 2 + 2 * 2) + 2 * 2 + 3 * deltas


def test_across_what_is_gone_all_is_read(series: Series):
    """A version between the two has expired, and with it the files that say what it changed."""
    publish(series, 0, list(range(100)), torch.zeros(100, 3))
    for number in (1, 2):
        change(series, number)
    series.compact()
    change(series, 3)
    expected = replace(series.diff(1, 5), cosine=None)
    series.tag("kept", 1)
    series.expire(keep_last=1, dry_run=False)
    assert replace(series.diff(1, 5), cosine=None) == expected  # its tombstone tells the same
    age(folder(series), 8000)
    series.clean()
    assert changed_ids(series._storage, *(series.version(v).manifest for v in (1, 5))) is None
    assert replace(series.diff(1, 5), cosine=None) == expected
    assert (expected.added, expected.removed, expected.moved) == (6, 0, 3)


def test_deletes_are_checked(series: Series):
    publish(series, 0, list(range(3000)))
    snapshot = change(series, 1)
    (deletes,) = snapshot.manifest.deletes
    path = folder(series) / deletes.path
    assert np.fromfile(path, np.int64).tolist() == [2001]
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    for use in (snapshot.verify, lambda: snapshot.load(verify=True), lambda: series.diff(1, 2)):
        with pytest.raises(ChecksumError, match=r"deletes\.ids"):
            use()
    path.unlink()
    with pytest.raises(MissingFileError, match=r"deletes\.ids"):
        snapshot.verify()
    assert series.diff(1, 2).removed == 1  # told by the indexes
    assert "deletes.ids" in {Path(file.path).name for file in snapshot.manifest.files}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("dim", [1, 3, 20_000])
def test_vectors_by_their_rows(series: Series, store: EmbeddingStore, dtype: str, dim: int):
    other = store.create("other", dim=dim, dtype=dtype)
    publish(other, 1, list(range(9)), torch.randn(9, dim), rows_per_batch=4)
    with other.write(as_of=2, space="ctr-1", base=1) as writer:
        writer.append(torch.tensor([3, 10]), torch.randn(2, dim))
    snapshot = other.latest()
    reader = VectorReader(snapshot._storage, snapshot.manifest, range(len(snapshot.manifest.data)))
    rows = torch.cat([part.encoded.vector for part in _stored(snapshot)])
    assert len(rows) == 11
    expected = torch.cat([decode(part.encoded, dim, DTYPES[dtype]) for part in _stored(snapshot)])
    for positions in ([], [10], [0, 4, 4, 10], [7, 3, 9, 1]):
        assert torch.equal(reader.read(np.array(positions, np.int64)), expected[positions])


def _stored(snapshot: Snapshot) -> Iterator[Rows]:
    return read_rows(snapshot._storage, snapshot.manifest.data, row_format(snapshot.manifest), alive=None)


def test_a_snapshot_of_another_series_is_refused(series: Series, store: EmbeddingStore):
    publish(series, 1, [1])
    other = publish(store.create("other", dim=3), 1, [1])
    with pytest.raises(InvalidArgumentError, match=r"new is Snapshot\('other'.*not a snapshot of series 'user_ctr'"):
        series.diff(1, other)


def test_an_expired_snapshot_is_named(series: Series):
    for as_of in (1, 2):
        publish(series, as_of, [1])
    old = series.version(1)
    series.expire(keep_last=1, dry_run=False)
    shutil.rmtree(folder(series) / old.manifest.index.path.rpartition("/")[0])
    with pytest.raises(VersionExpiredError, match="version 1 of series"):
        series.diff(old, 2)


HASHES = st.lists(st.integers(0, 40), unique=True, max_size=20).map(sorted)


@given(HASHES, HASHES, st.integers(1, 5), st.integers(1, 5))
def test_two_sorted_sources_in_step(a: list[int], b: list[int], size_a: int, size_b: int):
    def chunks(h: list[int], size: int) -> list[Pairs]:
        words = [np.array(h[i : i + size], np.uint64) for i in range(0, len(h), size)]
        return [NO_PAIRS, *(Pairs(x, x + np.uint64(100)) for x in words)]

    found = list(in_step(chunks(a, size_a), chunks(b, size_b)))
    assert np.concatenate([NO_PAIRS.h, *(x.h for x, _ in found)]).tolist() == a
    assert np.concatenate([NO_PAIRS.h, *(y.h for _, y in found)]).tolist() == b
    assert sum(len(set(x.h.tolist()) & set(y.h.tolist())) for x, y in found) == len(set(a) & set(b))


SMALL = st.dictionaries(st.integers(-5, 5), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (3.0, 4.0)]), max_size=8)


@settings(max_examples=20, deadline=None)
@given(SMALL, SMALL, st.booleans())
def test_counts_against_dicts(tmp_path_factory: pytest.TempPathFactory, old: dict, new: dict, delta: bool):
    series = EmbeddingStore(tmp_path_factory.mktemp("store")).create("s", dim=2)
    publish(series, 0, list(old), torch.tensor(list(old.values())).view(-1, 2))
    written = {id: vector for id, vector in new.items() if not delta or old.get(id) != vector}
    with series.write(as_of=1, space="ctr-1", base=1 if delta else None) as writer:
        writer.append(torch.tensor(list(written), dtype=torch.int64), torch.tensor(list(written.values())).view(-1, 2))
        if delta:
            writer.delete(torch.tensor(list(old.keys() - new.keys()), dtype=torch.int64))
    found = series.diff(1, 2)
    kept = old.keys() & new.keys()
    assert (found.added, found.removed) == (len(new.keys() - kept), len(old.keys() - kept))
    assert (found.kept, found.moved) == (len(kept), sum(old[i] != new[i] for i in kept))
