"""The commit of a snapshot that several processes have written: see fragments.py and pieces.py."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from embedding_store.errors import DuplicateIdsError, FragmentError
from embedding_store.format.files import StoredReader
from embedding_store.format.index import ABSENT, unhash
from embedding_store.format.manifest import MAX_SEGMENTS, ROW_BITS, Manifest
from embedding_store.read.snapshot import Snapshot
from embedding_store.scan.sorter import Pairs
from embedding_store.storage.base import Storage
from embedding_store.write.commit import commit, manifest_of
from embedding_store.write.content import Content, WrittenFiles, base_changes, write_content
from embedding_store.write.fragments import Fragment, SharedDraft, checked, read_entries
from embedding_store.write.index import ONE, Operations, Settled, settle
from embedding_store.write.pieces import IndexPiece, join
from embedding_store.write.sums import Sums


def commit_fragments(
    storage: Storage,
    draft: SharedDraft,
    fragments: Sequence[Fragment],
    pieces: Sequence[IndexPiece],
    base: Manifest | None,
) -> Snapshot:
    """Publish what the fragments hold together; see Series.commit."""
    fragments = checked(draft, fragments)
    written = WrittenFiles(storage, draft.folder, prefix=f"{uuid.uuid4().hex[:12]}-")  # another commit may have died
    files = [file for fragment in fragments for file in fragment.data]
    segments = (0 if base is None else len(base.segments)) + sum(len(file.segments) for file in files)
    if segments > MAX_SEGMENTS:
        raise FragmentError(f"the fragments have {segments} record batches, a snapshot at most {MAX_SEGMENTS}")
    sums = Sums(draft.form)
    for fragment in fragments:
        sums.merge(fragment.sums, fragment.rows)
    if pieces:
        content = _joined(storage, draft, fragments, pieces, written, sums)
    else:
        settled = _settled(storage, fragments, base)
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


def _joined(
    storage: Storage,
    draft: SharedDraft,
    fragments: Sequence[Fragment],
    pieces: Sequence[IndexPiece],
    written: WrittenFiles,
    sums: Sums,
) -> Content:
    """A whole snapshot whose index its writers have written, but for the beginning."""
    index = join(storage, draft, fragments, pieces, f"{written.folder}/{written.prefix}index.hash")
    files = [file for fragment in fragments for file in fragment.data]
    storage.sync(written.folder)
    written.named = (*files, *index.pieces)
    written.check()
    least = min((x.min_id for x in fragments if x.min_id is not None), default=None)
    greatest = max((x.max_id for x in fragments if x.max_id is not None), default=None)
    rows = sum(fragment.count for fragment in fragments)
    return Content(tuple(files), index, None, (), rows, sums.statistics(least, greatest))


def _settled(storage: Storage, fragments: Sequence[Fragment], base: Manifest | None) -> Settled:
    """All their operations, settled with those of the base's overlay.

    Raises:
        DuplicateIdsError: an id is in two fragments.
    """
    first = 0 if base is None else len(base.segments)
    operations, before = Operations(storage.scratch(), first=first << ROW_BITS), 0
    for fragment in fragments:
        deleted = np.uint64(first << ROW_BITS + 1)
        for h, location in _entries_of(storage, fragment):
            upsert = location + np.uint64(before << ROW_BITS) << ONE | ONE
            operations.sorter.add(Pairs(h, np.where(location == ABSENT, deleted, upsert)))
        before += sum(len(file.segments) for file in fragment.data)
    settled = settle(operations, base_changes(storage, base))
    if settled.repeated.count:
        ids = np.unique(np.concatenate([unhash(h) for h, _ in settled.repeated]))
        names = ", ".join(map(str, ids[:5].tolist())) + (", ..." if len(ids) > 5 else "")
        raise DuplicateIdsError(f"{len(ids)} ids are in several fragments ({names}): give each id to one of them")
    return settled


def _entries_of(storage: Storage, fragment: Fragment) -> Iterator[Pairs]:
    if fragment.entries is not None:
        with StoredReader(storage, fragment.entries) as reader:
            yield from read_entries(reader, 0, fragment.count)
