"""A snapshot that several processes write: each a fragment, data files and the sorted entries of their ids, and one of
them the commit, which lists them all. Nothing is visible before that.

All files of a draft lie in one folder, so that none of its writers is taken for dead while another one writes. Of a
part that was written again, say after its process was killed, only the fragment that is committed counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields

import numpy as np

from embedding_store.arguments import integer
from embedding_store.dtypes import DTYPES
from embedding_store.errors import DuplicateIdsError, FragmentError
from embedding_store.format.files import CheckedSink, RowFormat, StoredReader, create_checked
from embedding_store.format.index import ABSENT, unhash
from embedding_store.format.manifest import MAX_SEGMENTS, ROW_BITS, DataFile, Manifest, StoredFile
from embedding_store.read.snapshot import Snapshot
from embedding_store.scan.sorter import PairFile, Pairs
from embedding_store.storage.base import Storage
from embedding_store.write.commit import commit, manifest_of
from embedding_store.write.content import WrittenFiles, base_changes, write_content
from embedding_store.write.draft import Draft
from embedding_store.write.index import ONE, Operations, Settled, settle
from embedding_store.write.sums import Sums

CHUNK = 1 << 18  # entries read at once
ENTRY_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class SharedDraft:
    """What the writers of one snapshot must agree on, made by `Series.draft`. Small: send it to each of them."""

    series: str
    """Name."""
    schema: int
    dim: int
    dtype: str
    ids: str
    as_of: int
    """ms."""
    space: str
    base: int | None
    """Version that it is a delta on; None: a whole snapshot."""
    parts: int
    """How many fragments it is made of: parts 0 .. parts - 1."""
    folder: str
    """Where their files lie, relative to the series."""

    @property
    def form(self) -> RowFormat:
        """What its rows look like."""
        return RowFormat(dim=self.dim, dtype=DTYPES[self.dtype], ids=self.ids)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A part that is on the disk: what `Series.commit` wants of it. Small, but for the sums, D + 1 numbers."""

    draft: SharedDraft
    part: int
    """Which of them."""
    data: tuple[DataFile, ...]
    """Its rows."""
    entries: StoredFile | None
    """The ids that it upserts and deletes, by hash, each with its location in `data`; None: of nothing."""
    count: int
    """How many ids these are."""
    sums: tuple[float, ...]
    """[1 + D]: the sum of the rows' L2 norms, and of the rows."""

    @property
    def rows(self) -> int:
        """Rows in its data files."""
        return sum(file.rows for file in self.data)


def new_draft(
    form: RowFormat, *, parts: int, series: str, schema: int, as_of: int, space: str, base: Manifest | None
) -> SharedDraft:
    """A draft with a folder of its own. Raises InvalidArgumentError: `parts` is not 1 or more."""
    return SharedDraft(
        series=series,
        schema=schema,
        dim=form.dim,
        dtype=form.dtype.name,
        ids=form.ids,
        as_of=as_of,
        space=space,
        base=None if base is None else base.version,
        parts=integer(parts, "parts", least=1, why=": how many fragments make the snapshot"),
        folder=f"data/{uuid.uuid4().hex}",
    )


def write_fragment(storage: Storage, shared: SharedDraft, part: int, prefix: str, draft: Draft) -> Fragment:
    """What a draft has taken, as a fragment; all is durable then. Raises what `Draft.settle` raises."""
    files, settled = draft.settle()
    entries = None
    if settled.entries.count:
        with create_checked(storage, f"{prefix}entries.pairs") as new:
            _write_entries(new.sink, settled.entries)
        entries = new.stored
    if files or entries:
        storage.sync(shared.folder)
    count, sums = settled.entries.count, draft.sums.numbers()
    return Fragment(draft=shared, part=part, data=tuple(files), entries=entries, count=count, sums=sums)


def commit_fragments(
    storage: Storage, draft: SharedDraft, fragments: Sequence[Fragment], base: Manifest | None
) -> Snapshot:
    """Publish what the fragments hold together; see Series.commit."""
    fragments = checked(draft, fragments)
    written = WrittenFiles(storage, draft.folder, prefix=f"{uuid.uuid4().hex[:12]}-")  # another commit may have died
    files = [file for fragment in fragments for file in fragment.data]
    segments = (0 if base is None else len(base.segments)) + sum(len(file.segments) for file in files)
    if segments > MAX_SEGMENTS:
        raise FragmentError(f"the fragments have {segments} record batches, a snapshot at most {MAX_SEGMENTS}")
    settled = _settled(storage, fragments, base)
    sums = Sums(draft.form)
    for fragment in fragments:
        sums.merge(fragment.sums, fragment.rows)
    content = write_content(storage, written, files, settled, sums, base, storage.scratch())
    manifest = manifest_of(
        content,
        draft.form,
        series=draft.series,
        schema=draft.schema,
        as_of=draft.as_of,
        space=draft.space,
        base=base,
    )
    snapshot = commit(storage, manifest, written, base=base)
    for fragment in fragments:
        if fragment.entries is not None:
            with suppress(Exception):  # the snapshot is there; `clean` takes what stays
                storage.delete(fragment.entries.path)
                storage.delete(fragment.entries.crc_path)
    return snapshot


def checked(draft: SharedDraft, fragments: Sequence[Fragment]) -> list[Fragment]:
    """The fragments by their parts. Raises FragmentError unless they are all of this draft, and each part once."""
    parts: dict[int, Fragment] = {}
    for fragment in fragments:
        theirs, name = fragment.draft, f"the fragment of part {fragment.part}"
        for field in fields(SharedDraft):
            if (has := getattr(theirs, field.name)) != (wants := getattr(draft, field.name)):
                message = f"{name} is of another draft: its {field.name} is {has!r}, the draft's {wants!r}"
                raise FragmentError(f"{message}; commit the fragments of one `draft` together")
        if parts.setdefault(fragment.part, fragment) is not fragment:
            raise FragmentError(f"part {fragment.part} is there twice: give one fragment of each part")
    if missing := sorted(set(range(draft.parts)) - set(parts)):
        names = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        remedy = "commit when all are written, one without rows too"
        raise FragmentError(f"{len(missing)} of {draft.parts} fragments are missing, of part {names}: {remedy}")
    return [parts[part] for part in range(draft.parts)]


def _settled(storage: Storage, fragments: Sequence[Fragment], base: Manifest | None) -> Settled:
    """All their operations, settled with those of the base's overlay.

    Raises:
        DuplicateIdsError: an id is in two fragments.
    """
    first = 0 if base is None else len(base.segments)
    operations, before = Operations(storage.scratch(), first=first << ROW_BITS), 0
    for fragment in fragments:
        deleted = np.uint64(first << ROW_BITS + 1)
        for h, location in _read_entries(storage, fragment):
            upsert = location + np.uint64(before << ROW_BITS) << ONE | ONE
            operations.sorter.add(Pairs(h, np.where(location == ABSENT, deleted, upsert)))
        before += sum(len(file.segments) for file in fragment.data)
    settled = settle(operations, base_changes(storage, base))
    if settled.repeated.count:
        ids = np.unique(np.concatenate([unhash(h) for h, _ in settled.repeated]))
        names = ", ".join(map(str, ids[:5].tolist())) + (", ..." if len(ids) > 5 else "")
        raise DuplicateIdsError(f"{len(ids)} ids are in several fragments ({names}): give each id to one of them")
    return settled


def _write_entries(sink: CheckedSink, entries: PairFile) -> None:
    """(hash of seed 0, location or ABSENT), 16 bytes each, by hash."""
    for pairs in entries:
        sink.write(np.stack(pairs, axis=1).view(np.uint8).data)
        sink.flush()


def _read_entries(storage: Storage, fragment: Fragment) -> Iterator[Pairs]:
    """Raises CorruptStoreError of the class that fits."""
    if fragment.entries is None:
        return
    with StoredReader(storage, fragment.entries) as reader:
        for start in range(0, fragment.count, CHUNK):
            stop = min(start + CHUNK, fragment.count)
            words = reader.read(ENTRY_BYTES * start, ENTRY_BYTES * stop).view(np.uint64).reshape(-1, 2)
            yield Pairs(words[:, 0].copy(), words[:, 1].copy())
