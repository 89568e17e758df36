"""One class per broken invariant, so that a caller can tell a typo from a torn disk.

Wrong arguments are also `ValueError`s, names that do not exist also `KeyError`s. What is wrong with stored bytes is a
`CorruptStoreError` and carries the file's path.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidArgumentError(StoreError, ValueError):
    """An argument that cannot work: a dimension below 1, an unknown dtype, a bad name, an empty space."""


class InvalidTimeError(StoreError, ValueError):
    """A time that is neither int milliseconds nor an aware datetime, or is beyond int64."""


class InvalidIdsError(StoreError, ValueError):
    """Ids that are not int64, have a wrong shape or lie on another device than the table."""


class InvalidVectorsError(StoreError, ValueError):
    """Vectors of a wrong shape or type, or with a value beyond the dtype: NaN, infinity, too large."""


class DuplicateIdsError(StoreError, ValueError):
    """One id was appended twice to a snapshot whose writer did not ask for `duplicates="last"`."""


class AsOfDecreasedError(StoreError, ValueError):
    """A snapshot would be older in event time than the newest one of its series."""


class SeriesExistsError(StoreError, ValueError):
    """The series to create is already there."""


class WriterClosedError(StoreError, ValueError):
    """A writer used outside its `with` block, or after an append that failed half-way."""


class NotFoundError(StoreError, KeyError):
    """A series, version or tag that does not exist; the message names those that do."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message's repr


class SeriesNotFoundError(NotFoundError):
    """No series of that name."""


class VersionNotFoundError(NotFoundError):
    """No such version, none as old as asked for, or none at all."""


class TagNotFoundError(NotFoundError):
    """No tag of that name, or none that it could be rolled back to."""


class CorruptStoreError(StoreError):
    """A stored file breaks the format. `path` is the file."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class MissingFileError(CorruptStoreError):
    """A file that a manifest names is not there."""


class FileSizeError(CorruptStoreError):
    """A file is shorter or longer than its manifest says: truncated, or overwritten."""


class FileFormatError(CorruptStoreError):
    """A file is not what its name says: wrong magic, wrong columns, a key missing or of the wrong type."""


class NewerFormatError(CorruptStoreError):
    """A file written by a later version of this package."""


class ChecksumError(CorruptStoreError):
    """A file's bytes are not those that were written."""


class InvalidIndexError(CorruptStoreError):
    """An index that is out of order, points past its rows, or disagrees with the data files about an id."""
