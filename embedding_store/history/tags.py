"""Movable names for versions. A tag is a folder of moves, numbered 1, 2, 3, ..., each put if absent: the last counts.

So two that move a tag at once are put in an order, no move is lost, and a rollback knows where the tag was before.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NamedTuple

from embedding_store import times
from embedding_store.errors import InvalidArgumentError, MissingFileError, TagMovedError, TagNotFoundError
from embedding_store.format import documents
from embedding_store.storage.base import Storage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MOVE = re.compile(r"(\d{8,})\.json")
KEPT_MOVES = 100
"""Moves of a tag that `clean` keeps: a rollback needs some, and people look at them."""
ANY: Any = object()
"""As `expected`: wherever the tag points to."""


def check_name(name: str, what: str) -> None:
    """Raise InvalidArgumentError unless `name` can be a file name on every disk and object store."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "1 to 128 letters, digits, '_', '-' and '.', the first a letter or digit"
        raise InvalidArgumentError(f"{what} is {name!r}; use {allowed}")


class Move(NamedTuple):
    """One move of a tag."""

    number: int
    """1, 2, 3, ..."""
    version: int | None
    """Where it points to since; None: removed."""
    moved: int
    """When, ms since the epoch."""


class Tags:
    """The tags of one series. They are not checked against the versions that exist: Series does that."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def all(self) -> dict[str, int]:
        """Tag -> version, by name."""
        newest = {name: self._newest(name) for name in self._names()}
        return {name: move.version for name, move in newest.items() if move is not None and move.version is not None}

    def version(self, name: str) -> int:
        """The version it points to. Raises TagNotFoundError naming the tags that exist."""
        check_name(name, "tag")
        newest = self._newest(name)
        if newest is None or newest.version is None:
            raise TagNotFoundError(f"no tag {name!r}; tags: {', '.join(self.all()) or 'none'}")
        return newest.version

    def moves(self, name: str) -> list[Move]:
        """The moves of a tag, oldest first, a removed tag's too. Raises TagNotFoundError if it never existed."""
        check_name(name, "tag")
        found = []
        for number in self._numbers(name):
            with suppress(MissingFileError):  # cleaned away since it was listed
                found.append(self._read(name, number))
        if not found:
            raise TagNotFoundError(f"there was never a tag {name!r}; tags: {', '.join(self.all()) or 'none'}")
        return found

    def move(self, name: str, version: int | None, *, expected: int | None = ANY) -> int | None:
        """Point a tag, new or not, to a version, or with None remove it; returns where it pointed to, None if nowhere.

        Raises:
            TagMovedError: it does not point to `expected` (None: it exists), or no longer.
        """
        check_name(name, "tag")
        while True:
            newest = self._newest(name)
            present = None if newest is None else newest.version
            if expected is not ANY and present != expected:
                raise TagMovedError(f"tag {name!r} {_at(present)}, expected was that it {_at(expected)}: look again")
            number = 1 if newest is None else newest.number + 1
            document = documents.encode("tag", {"version": version, "moved": times.now()})
            with suppress(FileExistsError):  # somebody else's move came first
                self._storage.put_new(_path(name, number), document)
                return present

    def earlier(self, name: str, existing: Collection[int]) -> tuple[int, int]:
        """Where a tag points to, and the version in `existing` that it named last before and that is earlier.

        Raises:
            TagNotFoundError: no such tag, or it has named no earlier one since it was last made.
        """
        present = self.version(name)
        for number in reversed(self._numbers(name)):
            try:
                version = self._read(name, number).version
            except MissingFileError:  # cleaned away since it was listed
                break
            if version is None:
                break
            if version < present and version in existing:
                return present, version
        raise TagNotFoundError(f"tag {name!r} is at version {present} and has named no earlier one: say which version")

    def prune(self) -> list[str]:
        """Delete all but the newest KEPT_MOVES moves of each tag; returns their paths."""
        pruned = [_path(name, number) for name in self._names() for number in self._numbers(name)[:-KEPT_MOVES]]
        for path in pruned:
            self._storage.delete(path)
        return pruned

    def _names(self) -> list[str]:
        return [name for name in self._storage.names("tags") if _NAME.fullmatch(name)]

    def _numbers(self, name: str) -> list[int]:
        """Numbers of the moves that are stored, ascending."""
        return sorted(int(match[1]) for file in self._storage.names(f"tags/{name}") if (match := _MOVE.fullmatch(file)))

    def _newest(self, name: str) -> Move | None:
        numbers = self._numbers(name)
        return self._read(name, numbers[-1]) if numbers else None

    def _read(self, name: str, number: int) -> Move:
        path = _path(name, number)
        fields = documents.decode(self._storage.read(path), "tag", self._storage.locate(path))
        return Move(number, fields.optional_integer("version", least=1), fields.integer("moved"))


def _path(name: str, number: int) -> str:
    return f"tags/{name}/{number:08d}.json"


def _at(version: int | None) -> str:
    return "does not exist" if version is None else f"points to version {version}"
