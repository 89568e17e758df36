"""Which versions of a series exist, and their manifests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from embedding_store.errors import MissingFileError, VersionExpiredError, VersionNotFoundError
from embedding_store.format.manifest import MANIFESTS, Manifest, read_manifest
from embedding_store.history.tombstones import TOMBSTONES, exists, gone
from embedding_store.storage.base import Storage


def versions(storage: Storage) -> list[int]:
    """Versions that exist in a series' storage, ascending."""
    return _listed(storage)[0]


def newest(storage: Storage) -> tuple[Manifest | None, int]:
    """The manifest of the newest version, None if there is none, and the least number above all that were ever used."""
    before: list[int] = []
    while True:
        found, free = _listed(storage)
        if not found:
            return None, free
        try:
            return read_manifest(storage, found[-1]), free
        except MissingFileError:  # it went since it was listed
            if found == before:
                raise
            before = found


def _listed(storage: Storage) -> tuple[list[int], int]:
    """Versions that exist, ascending, and the least number above all that were ever used."""
    before: list[int] = []
    while True:
        # In this order: a manifest that was gone before they were listed has had its tombstone before.
        numbers, buried = MANIFESTS.numbers(storage), TOMBSTONES.numbers(storage)
        doubtful = set(buried)  # few are in both: those that a run is just deleting, or died over
        found = [version for version in numbers if version not in doubtful or exists(storage, version)]
        if (
            found == numbers or numbers == before
        ):  # else some went, and newer ones may have come, since they were listed
            return found, 1 + max([*numbers, *buried], default=0)
        before = numbers


class Versions:
    """The versions of one series, by name of the series for messages; manifests are kept, as they never change."""

    def __init__(self, storage: Storage, series: str) -> None:
        self.storage = storage
        """Of the series."""
        self._series = series
        self._manifests: dict[int, Manifest] = {}

    def numbers(self) -> list[int]:
        """Versions that exist, ascending."""
        return versions(self.storage)

    def history(self, numbers: Sequence[int] | None = None) -> list[Manifest]:
        """Manifests of all versions that exist, oldest first, or of those that were listed before."""
        found = []
        for version in self.numbers() if numbers is None else numbers:
            with suppress(VersionExpiredError):  # since it was listed
                found.append(self.listed(version))
        return found

    def find(self, version: int) -> Manifest:
        """The manifest of a version; raises what Series.version raises."""
        found = self.numbers()
        if version in found:
            return self.listed(version)
        if isinstance(version, int) and version > 0 and (tombstone := gone(self.storage, version)):
            raise tombstone.error(f"; versions: {spans(found)}")
        raise VersionNotFoundError(f"series {self._series!r} has no version {version!r}; versions: {spans(found)}")

    def listed(self, version: int) -> Manifest:
        """The manifest of a version that was listed. Raises VersionExpiredError if it went since."""
        if version not in self._manifests:
            try:
                self._manifests[version] = read_manifest(self.storage, version)
            except MissingFileError:
                if tombstone := gone(self.storage, version):
                    raise tombstone.error() from None
                raise
        return self._manifests[version]


def spans(found: list[int]) -> str:
    """`1-4, 6`: versions for a message."""
    if not found:
        return "none yet"
    starts = [v for i, v in enumerate(found) if i == 0 or found[i - 1] != v - 1]
    stops = [v for i, v in enumerate(found) if i == len(found) - 1 or found[i + 1] != v + 1]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))
