"""Files of one folder that are named by a number, `00000012.json`, each put if absent: of two that put the same number
one is told that it was not the first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from embedding_store.format import documents
from embedding_store.format.documents import Fields
from embedding_store.storage.base import Storage

_NAME = re.compile(r"(\d{8,})\.json")


@dataclass(frozen=True)
class NumberedFiles:
    """The numbered files of a series that are of one kind."""

    folder: str
    """Relative to the series."""
    kind: str
    """Of the documents: `manifest`, `schema`, ..."""

    def path(self, number: int) -> str:
        """Where a number lies, relative to the series."""
        return f"{self.folder}/{number:08d}.json"

    def numbers(self, storage: Storage) -> list[int]:
        """The numbers that are there, ascending. Files of other names do not count."""
        return sorted(int(match[1]) for name in storage.names(self.folder) if (match := _NAME.fullmatch(name)))

    def read(self, storage: Storage, number: int) -> Fields:
        """The keys of a file. Raises MissingFileError, or what documents.decode raises."""
        path = self.path(number)
        return documents.decode(storage.read(path), self.kind, storage.locate(path))

    def put(self, storage: Storage, number: int, fields: dict[str, Any]) -> None:
        """Put a file. Raises FileExistsError if there is one of its number."""
        storage.put_new(self.path(number), documents.encode(self.kind, fields))
