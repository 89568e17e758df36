"""Publishing: the manifest is put under the next free version, the moment at which a snapshot comes to exist."""

from __future__ import annotations

from dataclasses import replace

from embedding_store import times
from embedding_store.errors import (
    AsOfDecreasedError,
    FileSizeError,
    InvalidArgumentError,
    MissingFileError,
    SchemaChangedError,
    SupersededError,
    VersionExpiredError,
)
from embedding_store.format.files import RowFormat
from embedding_store.format.manifest import MANIFESTS, Manifest, manifest_path
from embedding_store.history.tombstones import bury, gone, same
from embedding_store.history.versions import newest
from embedding_store.read.snapshot import Snapshot
from embedding_store.storage.base import Storage
from embedding_store.write.content import Content, WrittenFiles

BASE_GRACE = 30 * 60_000  # ms for which a delta may be published on an expired base: well below what `clean` waits


def check_follows(
    storage: Storage, *, series: str, schema: int, as_of: int, latest: Manifest | None, base: Manifest | None
) -> None:
    """Raise unless a snapshot of this schema and `as_of` may come after `latest`.

    Raises:
        AsOfDecreasedError: naming both times.
        SchemaChangedError: the series has got a later schema.
        VersionExpiredError: the delta's base is gone for long, or was retracted.
    """
    if latest is not None and as_of < latest.as_of:
        raise AsOfDecreasedError(
            f"as_of is {as_of} ({times.event_text(as_of)}), but version {latest.version} of "
            f"{series!r} is as of {latest.as_of} ({times.event_text(latest.as_of)}): as_of never decreases "
            f"within a series, write a backfill to a series of its own"
        )
    if latest is not None and schema < latest.schema:
        message = f"schema is {schema}, but version {latest.version} of {series!r} has {latest.schema}"
        raise SchemaChangedError(f"{message}: get the series anew and write under its present schema")
    if base is not None:
        _check_base(storage, base)


def check_planned(storage: Storage, *, series: str, schema: int, as_of: int, space: str, base: Manifest | None) -> None:
    """Raise unless a snapshot like this can be published as things are: before any work is lost.

    Raises:
        InvalidArgumentError: `space` is no name, or not the base's; else as check_follows.
    """
    if not isinstance(space, str) or not space:
        raise InvalidArgumentError(f"space is {space!r}: name the vector space, say 'ctr-1'")
    if base is not None and base.space != space:
        message = f"space is {space!r}, but the base, version {base.version}, is in space {base.space!r}"
        raise InvalidArgumentError(f"{message}: write a whole snapshot when the space changes")
    if base is not None and base.schema != schema:
        message = f"the base, version {base.version}, has schema {base.schema}, the series has {schema} now"
        raise SchemaChangedError(f"{message}: write a whole snapshot under the new schema")
    check_follows(storage, series=series, schema=schema, as_of=as_of, latest=newest(storage)[0], base=base)


def manifest_of(
    content: Content, form: RowFormat, *, series: str, schema: int, as_of: int, space: str, base: Manifest | None
) -> Manifest:
    """What is to be published, under no version yet."""
    return Manifest(
        series=series,
        version=1,  # until it is published
        schema=schema,
        as_of=as_of,
        space=space,
        created=times.now(),
        dim=form.dim,
        dtype=form.dtype.name,
        ids=form.ids,
        base=None if base is None else base.version,
        rows=content.rows,
        stored_rows=sum(file.rows for file in content.data),
        statistics=content.statistics,
        data=content.data,
        index=content.index,
        overlay=content.overlay,
        deletes=content.deletes,
        folded=None if base is None else base.folded,
    )


def commit(
    storage: Storage,
    draft: Manifest,  # its version does not count
    files: WrittenFiles,
    *,
    base: Manifest | None,
    only_after: int | None = None,
) -> Snapshot:
    """Publish under the least number above all that were ever used; `only_after`: only if that is the newest version.

    Of several callers at once each gets a version of its own. The files are discarded before an error that leaves
    nothing published. If putting the manifest fails, whether the snapshot exists is not known: its files stay, `clean`
    decides.

    Raises:
        as check_follows; SupersededError: there is a version after `only_after`.
        MissingFileError, FileSizeError: a writer that was silent for long was cleaned away.
    """
    while True:
        try:
            latest, number = newest(storage)
            check_follows(
                storage, series=draft.series, schema=draft.schema, as_of=draft.as_of, latest=latest, base=base
            )
            if only_after is not None and (latest is None or latest.version != only_after):
                found = "no version" if latest is None else f"version {latest.version}"
                message = f"{found} of {draft.series!r} is the newest now, version {only_after} was being compacted"
                raise SupersededError(f"{message}: compact again")
        except BaseException:
            files.discard()
            raise
        manifest = replace(draft, version=number)
        try:
            MANIFESTS.put(storage, number, manifest.fields())
        except FileExistsError:  # another writer was faster: the next version, if it may still follow
            continue
        tombstone = gone(storage, number)
        if tombstone is not None and not same(tombstone.manifest, manifest):
            # While this writer stalled, others published this version and let it go.
            storage.delete(manifest_path(number))
            continue
        try:
            files.check()
            if base is not None:
                _check_base(storage, base)
        except (MissingFileError, FileSizeError, VersionExpiredError):  # it stalled until it was cleaned away
            bury(storage, manifest, retracted=True)
            files.discard()
            raise
        return Snapshot(storage, manifest)


def _check_base(storage: Storage, base: Manifest) -> None:
    """Raise VersionExpiredError unless the files of a delta's base will stay until the delta is published."""
    if storage.exists(manifest_path(base.version)):
        return
    tombstone = gone(storage, base.version)
    if tombstone is None or tombstone.retracted or times.now() - tombstone.expired > BASE_GRACE:
        message = f"version {base.version} of {base.series!r}, the delta's base, is gone: write on a later version"
        raise VersionExpiredError(message)
