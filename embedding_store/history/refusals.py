"""Versions that were found wanting after they were published: they stay, but readers as of a time leave them out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from embedding_store import times
from embedding_store.errors import InvalidArgumentError, MissingFileError
from embedding_store.format.numbered import NumberedFiles
from embedding_store.storage.base import Storage

REFUSALS = NumberedFiles("refused", "refusal")


def refuse(storage: Storage, version: int, reasons: Sequence[str]) -> None:
    """Refuse a version; one that is refused keeps its first reasons. Raises InvalidArgumentError."""
    given = () if isinstance(reasons, str) else tuple(reasons)
    if not given or not all(isinstance(reason, str) and reason for reason in given):
        raise InvalidArgumentError(f"reasons is {reasons!r}; give at least one, each a text that is not empty")
    with suppress(FileExistsError):
        REFUSALS.put(storage, version, {"reasons": list(given), "refused": times.now()})


def reasons(storage: Storage, version: int) -> tuple[str, ...] | None:
    """Why a version was refused; None if it was not."""
    with suppress(MissingFileError):
        return REFUSALS.read(storage, version).texts("reasons")
    return None
