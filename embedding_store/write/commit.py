"""Publishing: the manifest is put under the next free version, the moment at which a snapshot comes to exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from embedding_store import times
from embedding_store.errors import (
    AsOfDecreasedError,
    MissingFileError,
    SchemaChangedError,
    SupersededError,
    VersionExpiredError,
)
from embedding_store.format.manifest import Manifest, latest_manifest, manifest_path
from embedding_store.history.tombstones import expired_at, read_tombstone
from embedding_store.read.snapshot import Snapshot
from embedding_store.storage.base import Storage

BASE_GRACE = 30 * 60_000  # ms for which a delta may be published on an expired base: well below what `clean` waits


def check_follows(
    storage: Storage, *, series: str, schema: int, as_of: int, latest: Manifest | None, base: Manifest | None
) -> None:
    """Raise unless a snapshot of this schema and `as_of` may come after `latest`.

    Raises:
        AsOfDecreasedError: naming both times.
        SchemaChangedError: the series has got a later schema.
        VersionExpiredError: the delta's base is gone.
    """
    if latest is not None and as_of < latest.as_of:
        raise AsOfDecreasedError(
            f"as_of is {as_of} ({times.to_text(as_of)}), but version {latest.version} of "
            f"{series!r} is as of {latest.as_of} ({times.to_text(latest.as_of)}): as_of never decreases "
            f"within a series, write a backfill to a series of its own"
        )
    if latest is not None and schema < latest.schema:
        message = f"schema is {schema}, but version {latest.version} of {series!r} has {latest.schema}"
        raise SchemaChangedError(f"{message}: get the series anew and write under its present schema")
    if base is not None and not storage.exists(manifest_path(base.version)):
        expired = expired_at(storage, base.version)
        if expired is None or times.now() - expired > BASE_GRACE:
            message = f"version {base.version} of {base.series!r}, the delta's base, is gone: write on a later version"
            raise VersionExpiredError(message)


def commit(
    storage: Storage,
    draft: Manifest,  # its version does not count
    *,
    base: Manifest | None,
    only_after: int | None = None,
    abandon: Callable[[], None],
) -> Snapshot:
    """Publish under the newest version + 1; `only_after`: only if that is the newest one.

    Of several callers at once each gets a version of its own. `abandon` is called before an error that leaves nothing
    published. If putting the manifest fails, whether the snapshot exists is not known: its files stay, `clean` decides.

    Raises:
        as check_follows; SupersededError: there is a version after `only_after`.
    """
    while True:
        try:
            latest = latest_manifest(storage)
            check_follows(
                storage, series=draft.series, schema=draft.schema, as_of=draft.as_of, latest=latest, base=base
            )
            if only_after is not None and (latest is None or latest.version != only_after):
                newest = "no version" if latest is None else f"version {latest.version}"
                message = f"{newest} of {draft.series!r} is the newest now, version {only_after} was being compacted"
                raise SupersededError(f"{message}: compact again")
        except BaseException:
            abandon()
            raise
        manifest = replace(draft, version=1 if latest is None else latest.version + 1)
        path = manifest_path(manifest.version)
        try:
            storage.put_new(path, manifest.encode())
        except FileExistsError:  # another writer was faster: the next version, if it may still follow
            continue
        if not _was_expired(storage, manifest):
            return Snapshot(storage, manifest)
        storage.delete(path)  # while this writer stalled, others published this version and expired it: never reuse it


def _was_expired(storage: Storage, manifest: Manifest) -> bool:
    """Whether there has been another snapshot of this version."""
    try:
        return read_tombstone(storage, manifest.version).manifest.index.path != manifest.index.path
    except MissingFileError:
        return False
