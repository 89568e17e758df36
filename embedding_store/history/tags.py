"""Movable names for versions. A tag is a list of moves; the last one counts.

No move is lost, and a rollback knows where the tag was before. Where the version of the last move is gone, which only
happens to files that were deleted by hand, the tag points to where the move before it led.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from embedding_store import times
from embedding_store.errors import InvalidArgumentError, TagMovedError, TagNotFoundError
from embedding_store.history import state as states
from embedding_store.history.state import Move, State
from embedding_store.history.tombstones import bury, read_tombstone
from embedding_store.history.versions import Versions, versions
from embedding_store.storage.base import Storage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
ANY: Any = object()
"""As `expected`: wherever the tag points to."""


def check_name(name: str, what: str) -> None:
    """Raise InvalidArgumentError unless `name` can be a file name on every disk and object store."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "1 to 128 letters, digits, '_', '-' and '.', the first a letter or digit"
        raise InvalidArgumentError(f"{what} is {name!r}; use {allowed}")


def pointed(storage: Storage) -> dict[str, int]:
    """Tag -> version that it points to, by name."""
    while True:
        state, number = states.read(storage)
        existing = versions(storage) if state.tags else []
        missing = {moves[-1].version for moves in state.tags.values()} - {None, *existing}
        if not missing or states.read(storage)[1] == number:  # else a tag was moved, and then the version expired
            return pointed_in(state, existing)


def pointed_in(state: State, existing: Collection[int]) -> dict[str, int]:
    """As `pointed`, of a state that was read before `existing` was listed."""
    found = {name: _place(moves, existing) for name, moves in sorted(state.tags.items())}
    return {name: version for name, version in found.items() if version is not None}


class Tags:
    """The tags of one series."""

    def __init__(self, versions: Versions) -> None:
        self._storage, self._versions = versions.storage, versions

    def version(self, name: str) -> int:
        """The version it points to. Raises TagNotFoundError naming the tags that exist."""
        check_name(name, "tag")
        found = pointed(self._storage)
        if name not in found:
            raise TagNotFoundError(f"no tag {name!r}; tags: {', '.join(found) or 'none'}")
        return found[name]

    def moves(self, name: str) -> list[Move]:
        """The moves of a tag, oldest first, a removed tag's too. Raises TagNotFoundError if it never existed."""
        check_name(name, "tag")
        state, _ = states.read(self._storage)
        if name not in state.tags:
            known = ", ".join(pointed(self._storage)) or "none"
            raise TagNotFoundError(f"there was never a tag {name!r}; tags: {known}")
        return list(state.tags[name])

    def move(self, name: str, version: int | None, *, expected: int | None = ANY) -> None:
        """Point a tag, new or not, to a version, or with None remove it.

        Raises:
            VersionNotFoundError: naming those that exist; VersionExpiredError if it is gone.
            TagMovedError: it does not point to `expected` (None: it exists).
        """
        check_name(name, "tag")

        def decide(state: State) -> State:
            if version is not None:
                self._check(version, state)
            present = pointed_in(state, self._versions.numbers()).get(name)
            if expected is not ANY and present != expected:
                raise TagMovedError(f"tag {name!r} {_at(present)}, expected was that it {_at(expected)}: look again")
            moves = state.tags.get(name, ())
            move = Move(moves[-1].number + 1 if moves else 1, version, times.now())
            return state._replace(tags={**state.tags, name: (*moves, move)})

        states.change(self._storage, decide)

    def earlier(self, name: str) -> tuple[int, int]:
        """Where a tag points to, and the version that it named last before, that exists, and that is earlier.

        Raises:
            TagNotFoundError: no such tag, or it has named no earlier one since it was last made.
        """
        present = self.version(name)
        state, _ = states.read(self._storage)
        staying = [version for version in self._versions.numbers() if version < present and version not in state.going]
        version = _place(state.tags[name], staying)
        if version is None:
            message = f"tag {name!r} is at version {present} and has named no earlier one: say which version"
            raise TagNotFoundError(message)
        return present, version

    def _check(self, version: int, state: State) -> None:
        """Raise unless the version exists and stays."""
        manifest = self._versions.find(version)
        if version in state.going:  # the run that wanted it gone is about to delete it, or has died: end its work
            bury(self._storage, manifest, retracted=state.going[version])
            raise read_tombstone(self._storage, version).error()


def _place(moves: Sequence[Move], existing: Collection[int]) -> int | None:
    """The last version in `existing` that a tag named since it was last made."""
    for move in reversed(moves):
        if move.version is None:
            break
        if move.version in existing:
            return move.version
    return None


def _at(version: int | None) -> str:
    return "does not exist" if version is None else f"points to version {version}"
