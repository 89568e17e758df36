"""Movable names for versions. A tag's file is the one kind that is replaced, as a whole."""

from __future__ import annotations

import re
from contextlib import suppress

from embedding_store import documents, times
from embedding_store.errors import InvalidArgumentError, MissingFileError, TagNotFoundError
from embedding_store.storage import LocalStorage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_name(name: str, what: str) -> None:
    """Raise InvalidArgumentError unless `name` can be a file name on every disk and object store."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "1 to 128 letters, digits, '_', '-' and '.', the first a letter or digit"
        raise InvalidArgumentError(f"{what} is {name!r}; use {allowed}")


class Tags:
    """The tags of one series. Two processes that move one tag at once: the later move stays."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage

    def all(self) -> dict[str, int]:
        """Tag -> version, by name."""
        found = {}
        for name in self._names():
            with suppress(TagNotFoundError):  # removed since it was listed
                found[name] = self._read(name)[0]
        return found

    def version(self, name: str) -> int:
        """The version it points to. Raises TagNotFoundError naming the tags that exist."""
        return self._read(name)[0]

    def move(self, name: str, version: int) -> None:
        """Point a tag, new or not, to a version."""
        check_name(name, "tag")
        try:
            present, previous = self._read(name)
        except TagNotFoundError:
            self._write(name, version, ())
        else:
            self._write(name, version, (*previous, present))

    def roll_back(self, name: str, version: int | None = None) -> int:
        """Point a tag to an earlier version: to `version`, or to the one it named last before. Returns that version.

        Raises:
            TagNotFoundError: no such tag, or it has named no earlier version.
            InvalidArgumentError: `version` is not earlier than the present one.
        """
        present, previous = self._read(name)
        if version is None:
            earlier = [candidate for candidate in previous if candidate < present]
            if not earlier:
                message = f"tag {name!r} is at version {present} and has named no earlier one: say which version"
                raise TagNotFoundError(message)
            version = earlier[-1]
        elif version >= present:
            message = (
                f"version is {version}, tag {name!r} is at {present}: a rollback goes to an earlier one, or use tag"
            )
            raise InvalidArgumentError(message)
        self._write(name, version, tuple(candidate for candidate in previous if candidate < version))
        return version

    def remove(self, name: str) -> None:
        """Forget a tag. Raises TagNotFoundError naming the tags that exist."""
        self._read(name)
        self._storage.delete(_path(name))

    def _names(self) -> list[str]:
        names = [name.removesuffix(".json") for name in self._storage.names("tags") if name.endswith(".json")]
        return [name for name in names if _NAME.fullmatch(name)]

    def _read(self, name: str) -> tuple[int, tuple[int, ...]]:
        check_name(name, "tag")
        try:
            data = self._storage.read(_path(name))
        except MissingFileError:
            raise TagNotFoundError(f"no tag {name!r}; tags: {', '.join(self._names()) or 'none'}") from None
        fields = documents.decode(data, "tag", self._storage.locate(_path(name)))
        return fields.integer("version", least=1), fields.integers("previous", least=1)

    def _write(self, name: str, version: int, previous: tuple[int, ...]) -> None:
        fields = {"version": version, "moved": times.now(), "previous": previous}
        self._storage.replace(_path(name), documents.encode("tag", fields))


def _path(name: str) -> str:
    return f"tags/{name}.json"
