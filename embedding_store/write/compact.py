"""Folding a delta and all that it rests on into one whole snapshot."""

from __future__ import annotations

from dataclasses import replace

from embedding_store import times
from embedding_store.format.manifest import Folded, Manifest
from embedding_store.read.snapshot import Snapshot
from embedding_store.scan.rows import live_rows, read_rows, row_format
from embedding_store.storage.base import Storage
from embedding_store.write.commit import commit
from embedding_store.write.draft import Draft


def compact(storage: Storage, manifest: Manifest) -> Snapshot:
    """Write the live rows of the newest snapshot as a whole one, with the same `as_of` and space. Memory as a writer's.

    Raises:
        SupersededError: it is not the newest snapshot, or no longer.
        CorruptStoreError: of the class that fits, naming the file.
    """
    form = row_format(manifest)
    draft = Draft(storage, form, base=None, duplicates="error", rows_per_batch=None)
    try:
        for rows in read_rows(storage, manifest.data, form, alive=live_rows(storage, manifest)):
            draft.append(rows)
        content = draft.finish()
        whole = replace(
            manifest,
            created=times.now(),
            base=None,
            rows=content.rows,
            stored_rows=content.rows,
            statistics=content.statistics,
            data=content.data,
            index=content.index,
            overlay=None,
            deletes=(),
            folded=Folded(version=manifest.version, files=len(content.data)),
        )
    except BaseException:
        draft.discard()
        raise
    return commit(storage, whole, draft.written, base=None, only_after=manifest.version)
