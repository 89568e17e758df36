"""Letting old snapshots go: which ones, how much room that makes, and how it is done without a reader noticing.

A snapshot is expired in two steps: its tombstone is put, its manifest deleted. Between them the tags are read again,
and who moves a tag looks for the tombstone afterwards; so of the two at least one sees the other, and a tagged snapshot
never goes. A run that dies between the steps leaves a version that still exists; the next run finishes it. The data
stay for an hour: `clean` deletes them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from embedding_store import times
from embedding_store.errors import InvalidArgumentError
from embedding_store.format.manifest import Manifest, manifest_path
from embedding_store.history.tags import Tags
from embedding_store.history.tombstones import expired_at, put_tombstone, tombstone_path, tombstones
from embedding_store.storage.base import Storage

DEAD_AFTER = timedelta(minutes=10)
"""Of a run that put a tombstone so long ago and did not delete the manifest."""


def published_before(older_than: timedelta | datetime | int | None) -> int | None:
    """The rule's limit in ms since the epoch. Raises InvalidArgumentError or InvalidTimeError."""
    if isinstance(older_than, timedelta):
        if older_than < timedelta(0):
            raise InvalidArgumentError(f"older_than is {older_than}; use a timedelta that is not negative")
        return times.now() - older_than // timedelta(milliseconds=1)
    return None if older_than is None else times.to_milliseconds(older_than, "older_than")


def candidates(
    history: Sequence[Manifest],
    *,
    tagged: Collection[int],
    unfinished: Collection[int],
    keep_last: int | None,
    before: int | None,
) -> list[int]:
    """Versions to expire, ascending.

    Args:
        history: manifests of all versions, ascending.
        tagged: versions that a tag points to: they stay, as the newest does.
        unfinished: versions that a run that died was about to expire: they go whatever the rules say.
        keep_last: so many of the newest stay.
        before: what was published at that time (ms since the epoch) or later stays.

    Raises:
        InvalidArgumentError: no rule, or `keep_last` below 1.
    """
    if keep_last is None and before is None:
        raise InvalidArgumentError("keep_last and older_than are None; give one or both")
    if keep_last is not None and (not isinstance(keep_last, int) or isinstance(keep_last, bool) or keep_last < 1):
        raise InvalidArgumentError(f"keep_last is {keep_last!r}; use 1 or more: the newest snapshot always stays")
    beyond = {manifest.version for manifest in history[: -(keep_last or 1)]}
    old = {manifest.version for manifest in history if before is None or manifest.created < before}
    newest = {manifest.version for manifest in history[-1:]}
    return sorted((beyond & old | set(unfinished)) - newest - set(tagged))


def unfinished(storage: Storage, existing: Collection[int]) -> set[int]:
    """Versions that exist and have a tombstone."""
    return set(tombstones(storage)) & set(existing)


def carry_out(storage: Storage, manifests: Sequence[Manifest], existing: Collection[int]) -> list[Manifest]:
    """Expire the snapshots of `manifests`; returns those that went: one that was tagged meanwhile stays."""
    for version in unfinished(storage, existing):
        at = expired_at(storage, version)
        if at is not None and times.now() - at > DEAD_AFTER // timedelta(milliseconds=1):
            storage.delete(tombstone_path(version))  # what it promised to readers is over: it gets a new one, or stays
    return [manifest for manifest in manifests if _expire(storage, manifest)]


def freed_bytes(history: Sequence[Manifest], expired: Collection[int]) -> int:
    """Bytes that will be deleted once these versions are expired: each file once, and none that another one names."""
    files = {file.path: file.bytes for m in history if m.version in expired for file in m.files}
    kept = {file.path for m in history if m.version not in expired for file in m.files}
    return sum(size for path, size in files.items() if path not in kept)


def _expire(storage: Storage, manifest: Manifest) -> bool:
    started = time.monotonic()
    with suppress(FileExistsError):  # of another run: both go on, each step may be done twice
        put_tombstone(storage, manifest)
    if manifest.version in Tags(storage).all().values():
        return False
    if time.monotonic() - started > DEAD_AFTER.total_seconds() / 2:  # another run may be taking the tombstone away
        return False
    storage.delete(manifest_path(manifest.version))
    return True
