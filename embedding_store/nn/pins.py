"""What a checkpoint says of the snapshots it was made with, and how they are found again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedding_store.errors import (
    MissingFileError,
    NotFoundError,
    PinMismatchError,
    SeriesNotFoundError,
    StoreError,
    VersionNotFoundError,
)
from embedding_store.read.series_reader import DESCRIPTION
from embedding_store.read.snapshot import Snapshot
from embedding_store.series import Series
from embedding_store.store import EmbeddingStore


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One snapshot, by name and by content."""

    store: str
    """Path or URI of its store."""
    series: str
    """Name of its series."""
    version: int
    """Its version."""
    as_of: int
    """Its event time, ms since the epoch."""
    space: str
    """Its vector space."""
    dim: int
    """D."""
    dtype: str
    """How its vectors are stored."""
    content: str
    """What tells it from another snapshot of the same version number: Manifest.content."""

    @staticmethod
    def of(snapshot: Snapshot) -> Pin:
        """The pin of a snapshot."""
        return Pin(
            store=_store_of(snapshot),
            series=snapshot.series,
            version=snapshot.version,
            as_of=snapshot.as_of,
            space=snapshot.space,
            dim=snapshot.dim,
            dtype=snapshot.dtype,
            content=snapshot.manifest.content,
        )

    def to_dict(self) -> dict[str, Any]:
        """The pin as strings and integers, for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Pin:
        """The pin of `to_dict`. Raises PinMismatchError for anything else."""
        try:
            return Pin(**fields)
        except TypeError as error:
            raise PinMismatchError(
                f"{fields!r} is not a pin ({error}): is the checkpoint of a later package?"
            ) from None

    def differences(self, snapshot: Snapshot) -> list[str]:
        """How the snapshot is not the pinned one: `space is 'ctr-2', was 'ctr-1'`. The store may be another."""
        found, wanted = Pin.of(snapshot).to_dict(), self.to_dict()
        return [
            f"{key} is {found[key]!r}, was {wanted[key]!r}"
            for key in wanted
            if key != "store" and found[key] != wanted[key]
        ]


def reopen(pins: Sequence[Pin], present: Sequence[Snapshot] = ()) -> list[Snapshot]:
    """The very snapshots that were pinned.

    Args:
        present: snapshots of the same series, in the same order, whose stores are asked first: the pinned one may have
            been moved or copied there.

    Raises:
        PinMismatchError: a version exists, but is another snapshot.
        NotFoundError: of the class that fits, VersionExpiredError for one; every version that is gone is named.
    """
    found: list[Snapshot] = []
    gone: list[StoreError] = []
    for pin, near in itertools.zip_longest(pins, present):
        snapshot = _reopen(pin, near)
        if isinstance(snapshot, Snapshot):
            found.append(snapshot)
        else:
            gone.append(snapshot)
    if gone:
        raise type(gone[0])("; ".join(map(str, gone)))
    return found


def _reopen(pin: Pin, near: Snapshot | None) -> Snapshot | StoreError:
    """The snapshot, or what is wrong in the store that comes nearest to having it."""
    stores: dict[str, Callable[[], Series]] = {pin.store: lambda: EmbeddingStore(pin.store).series(pin.series)}
    if near is not None:
        stores = {_store_of(near): lambda: Series(near._storage, pin.series), **stores}  # with its cache
    errors: list[StoreError] = []
    for store, open_series in stores.items():
        what = f"the checkpoint's {pin.series} version {pin.version} in {store}"
        try:
            snapshot = open_series().version(pin.version)
        except NotFoundError as error:
            errors.append(type(error)(f"{what}: {error}"))
            continue
        except MissingFileError as error:
            errors.append(SeriesNotFoundError(f"{what}: {error}"))
            continue
        differences = pin.differences(snapshot)
        if not differences:
            return snapshot
        errors.append(PinMismatchError(f"{what} is another snapshot: {', '.join(differences)}"))
    # A store that has another snapshot of that number says more than one that has none, or not even the series.
    order = (PinMismatchError, VersionNotFoundError, StoreError)
    return min(errors, key=lambda error: next(i for i, kind in enumerate(order) if isinstance(error, kind)))


def _store_of(snapshot: Snapshot) -> str:
    """Path or URL of the store that a snapshot is in."""
    series = snapshot._storage.locate(DESCRIPTION).removesuffix(f"/{DESCRIPTION}")
    return series.rpartition("/")[0] if "://" in series else str(Path(series).absolute().parent)
