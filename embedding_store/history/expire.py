"""Letting old snapshots go: which ones, how much room that makes, and how it is done without a reader noticing.

That versions go is settled in the series' state (state.py), where tags are moved too: so a tagged version is never
among them. Then each gets its tombstone, and its manifest is deleted. A run that dies in between leaves versions that
still exist; a later run whose rules let them go ends its work. The data stay for an hour: `clean` deletes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from embedding_store import times
from embedding_store.errors import InvalidArgumentError
from embedding_store.format.manifest import Manifest
from embedding_store.history import state as states
from embedding_store.history.refusals import REFUSALS
from embedding_store.history.state import State
from embedding_store.history.tags import pointed_in
from embedding_store.history.tombstones import bury
from embedding_store.history.versions import Versions


def expire(versions: Versions, *, keep_last: int | None, before: int | None, dry_run: bool) -> list[Manifest]:
    """See Series.expire; `before`: what was published at that time (ms since the epoch) or later stays."""
    storage, chosen = versions.storage, list[Manifest]()

    def decide(state: State) -> State | None:
        history = versions.history()
        refused = REFUSALS.numbers(storage)
        tagged = pointed_in(state, [manifest.version for manifest in history]).values()
        numbers = candidates(history, tagged=tagged, refused=refused, keep_last=keep_last, before=before)
        chosen[:] = [manifest for manifest in history if manifest.version in numbers]
        return None if dry_run else _going(state, history, numbers, retracted=False)

    settled = states.change(storage, decide)
    if not dry_run:
        for manifest in chosen:
            bury(storage, manifest, retracted=settled.going[manifest.version])
    return chosen


def retract(versions: Versions, version: int) -> None:
    """See Series.retract."""
    manifest = versions.find(version)

    def decide(state: State) -> State | None:
        history = versions.history()
        existing = [manifest.version for manifest in history]
        if version not in existing:
            versions.find(version)  # says what became of it
        if version != existing[-1]:
            newest = f"version {existing[-1]} is the newest"
            raise InvalidArgumentError(f"version is {version}, but {newest}: only that can be retracted, expire others")
        if tags := [name for name, at in pointed_in(state, existing).items() if at == version]:
            raise InvalidArgumentError(f"version is {version}, to which {', '.join(tags)} points: move the tag first")
        return _going(state, history, [version], retracted=True)

    settled = states.change(versions.storage, decide)
    bury(versions.storage, manifest, retracted=settled.going[version])


def _going(state: State, history: Sequence[Manifest], numbers: Collection[int], *, retracted: bool) -> State | None:
    """The state when these versions go too; None if that is settled. Those that are gone are forgotten."""
    if all(version in state.going for version in numbers):
        return None
    existing = {manifest.version for manifest in history}
    before = {version: why for version, why in state.going.items() if version in existing}
    return state._replace(going=dict.fromkeys(numbers, retracted) | before)


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
    refused: Collection[int],
    keep_last: int | None,
    before: int | None,
) -> list[int]:
    """Versions to expire, ascending.

    Args:
        history: manifests of all versions, ascending. The newest stays, and the newest that is not refused.
        tagged: versions that a tag points to: they stay.
        refused: versions that were refused.
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
    accepted = [manifest.version for manifest in history if manifest.version not in refused]
    return sorted((beyond & old) - set(accepted[-1:]) - set(tagged))


def freed_bytes(history: Sequence[Manifest], expired: Collection[int]) -> int:
    """Bytes that will be deleted once these versions are expired: each file once, and none that another one names."""
    files = {file.path: file.bytes for m in history if m.version in expired for file in m.files}
    kept = {file.path for m in history if m.version not in expired for file in m.files}
    return sum(size for path, size in files.items() if path not in kept)
