"""The vectors that a bundle reads: those of the pinned versions, for every row, whatever its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from embedding_store import (
    DeviceMemoryError,
    EmbeddingStore,
    OpenTables,
    PointInTime,
    Snapshot,
    StoreError,
    Table,
)
from recsys.bundle.manifest import BundleError, Pin
from recsys.data.batch import Batch
from recsys.downstream.features import FEED, POOLED, feed_of, with_vectors
from recsys.refresh.aggregator import activity_name

_REMEDY = "`recsys repin BUNDLE` moves it to a newer version of the same spaces"


def pin(store: EmbeddingStore, names: Sequence[str], history: int = 0) -> tuple[Pin, ...]:
    """The newest versions that were not refused, of series that a ranker is to read. All of one space are as of one
    time, so that users and items were published together. `history`: versions that are read too.

    Raises:
        BundleError: there is no time at which all series of a space have a version.
        KeyError: no such series.
    """
    histories = {name: store.series(name).history(refused=False) for name in names}
    for name, versions in histories.items():
        if not versions:
            raise BundleError(f"series {name!r} has no version that was not refused: publish one first")
    chosen: dict[str, Snapshot] = {}
    for space in dict.fromkeys(versions[-1].space for versions in histories.values()):
        members = [name for name, versions in histories.items() if versions[-1].space == space]
        times = [{x.as_of for x in histories[name] if x.space == space} for name in members]
        common = set.intersection(*times)
        if not common:
            raise BundleError(f"series {members} have no version of one time in space {space!r}: publish them together")
        for name in members:
            chosen[name] = [x for x in histories[name] if x.as_of == max(common) and x.space == space][-1]
    return tuple(_pin(store, name, chosen[name], histories[name], history) for name in names)


def _pin(store: EmbeddingStore, name: str, snapshot: Snapshot, versions: Sequence[Snapshot], history: int) -> Pin:
    earlier = {x.as_of: x.version for x in versions if x.version <= snapshot.version}  # of equal times the last counts
    companion = activity_name(name)
    activity = 0
    if companion in set(store.list()):
        known = [x for x in store.series(companion).history(refused=False) if x.as_of <= snapshot.as_of]
        activity = known[-1].version if known else 0
    return Pin(
        series=name,
        owner=name.split("_", 1)[0],
        version=snapshot.version,
        as_of=snapshot.as_of,
        space=snapshot.space,
        dim=snapshot.dim,
        activity=activity,
        history=tuple(list(earlier.values())[-history:]) if history else (),
    )


class Pinned(NamedTuple):
    """What a pin names."""

    vectors: Snapshot
    activity: Snapshot | None
    history: list[Snapshot]


def pinned(store: EmbeddingStore, pins: Iterable[Pin]) -> list[Pinned]:
    """The snapshots that the pins name.

    Raises:
        BundleError: one is gone, or is of another space or dimension; all such are named.
    """
    found, problems = [], []
    for wanted in pins:
        try:
            series = store.series(wanted.series)
            snapshot, history = series.version(wanted.version), [series.version(x) for x in wanted.history]
            activity = store.series(activity_name(wanted.series)).version(wanted.activity) if wanted.activity else None
        except (StoreError, KeyError) as error:
            problems.append(str(error.args[0] if error.args else error))
            continue
        if (snapshot.space, snapshot.dim) != (wanted.space, wanted.dim):
            problems.append(
                f"version {wanted.version} of series {wanted.series!r} has space {snapshot.space!r} and dim "
                f"{snapshot.dim}, the ranker has learned from {wanted.space!r} and {wanted.dim}"
            )
        found.append(Pinned(snapshot, activity, history))
    if problems:
        raise BundleError(f"the store {store.location} lacks what the bundle reads: {'; '.join(problems)}. {_REMEDY}")
    return found


class PinnedFeatures:
    """Adds `vectors`, `found` and `feed` to batches, as `StoreFeatures` does in training, but of one version each.

    Args:
        store: the store.
        pins: the versions, in the order in which the ranker reads them.
        history: versions of each series that are read too; 0: none.
        pooling: how these are pooled, `mean` or `attention`.
        device: where the tables lie and the answers are given.
        go_on: of copies to a GPU what it is of `check`, which ends with an error where it says False.

    Raises:
        BundleError: see `pinned`.
        StoreError: a table cannot be loaded; the device has no memory for it.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        pins: Sequence[Pin],
        history: int,
        pooling: str,
        device: torch.device,
        go_on: Callable[[], bool] | None = None,
    ) -> None:
        self.pins = tuple(pins)
        self.history, self.pooling = history, pooling
        self._device = device
        found = pinned(store, pins)
        self._opened = [OpenTables(device) for _ in found]  # of a history the newest version is the one that is pinned
        self._holding = ExitStack()
        load = partial(OpenTables.get, progress=_asking(go_on), background=go_on is not None)
        self._tables = [
            (load(tables, each.vectors), None if each.activity is None else load(tables, each.activity))
            for each, tables in zip(found, self._opened, strict=True)
        ]
        self._histories = [
            PointInTime(each.history, wanted.dim, tables)
            for each, wanted, tables in zip(found, self.pins, self._opened, strict=True)
            if history
        ]

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `vectors` float32 [B, V], `found` bool [B, P] and `feed` float32 [B, P, 2]."""
        if not self.pins:
            return replace(
                batch,
                vectors=torch.zeros(len(batch), 0, device=self._device),
                found=torch.zeros(len(batch), 0, dtype=torch.bool, device=self._device),
                feed=torch.zeros(len(batch), 0, FEED, device=self._device),
            )
        parts = [
            self._join(number, batch.user_ids if pin.owner == "user" else batch.item_ids, batch.timestamps)
            for number, pin in enumerate(self.pins)
        ]
        parts += [self._history(batch, *each) for each in zip(self._histories, self.pins, strict=False)]
        return with_vectors(batch, parts)

    def check(self, go_on: Callable[[], bool] | None = None) -> None:
        """Read all vectors now, so that no lookup finds changed bytes, waits for a disk, or misses a version of a
        history that has expired meanwhile.

        Args:
            go_on: asked now and then; False ends the check early. With it one thread reads, of the lowest priority and
                not faster than lookups beside it bear; without, all of torch's threads.

        Raises:
            StoreError: bytes are not those that were written; names the file. Or the GPU has no memory for all versions
                of a history at once.
        """
        tables = self._mapped()
        for versions, opened in zip(self._histories, self._opened, strict=False):
            tables += self._kept(versions.snapshots, opened, go_on)
        for table in tables:
            if table.mapping is not None:
                table.mapping.check(_asking(go_on), background=go_on is not None)

    def _kept(self, snapshots: Sequence[Snapshot], opened: OpenTables, go_on: Callable[[], bool] | None) -> list[Table]:
        """The versions of a history, which are open from here on. On a full GPU none makes room either: a request would
        wait for it to be copied again, or find that it has expired."""
        falling = snapshots[::-1]  # the newest is there
        holding = opened.held(falling, _asking(go_on), background=go_on is not None)
        tables = self._holding.enter_context(holding)
        if len(tables) < len(falling):
            lacking = falling[len(tables)]
            raise DeviceMemoryError(
                f"version {lacking.version} of series {lacking.series!r}, of the history that the ranker reads, takes "
                f"{lacking.device_bytes} bytes of {self._device}, which are not free beside the others: free some, or "
                "leave the vectors in the host's memory (vectors='cpu')"
            )
        return tables

    def release_pages(self) -> None:
        """Give most of the memory back, without the GIL, before the last reader lets go; lookups still work."""
        for table in self._mapped():
            if table.mapping is not None:
                table.mapping.release_pages()

    def _mapped(self) -> list[Table]:
        return [table for each in self._tables for table in each if table is not None]

    def _join(self, number: int, ids: Tensor, timestamps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        table, fed = self._tables[number]
        ids = ids.to(self._device)
        vectors, found = table.lookup(ids)
        if fed is None:
            return vectors, found, torch.zeros(len(ids), FEED, device=self._device)
        activity, known = fed.lookup(ids)
        return vectors, found, feed_of(activity, found & known, timestamps.to(self._device))

    def _history(self, batch: Batch, versions: PointInTime, wanted: Pin) -> tuple[Tensor, Tensor, Tensor]:
        """Of all pinned versions, for an event that is earlier than the newest of them too."""
        ids = batch.user_ids if wanted.owner == "user" else batch.item_ids
        times = batch.timestamps.clamp(min=wanted.as_of)
        return POOLED[self.pooling](*versions.lookup_history(ids, times, self.history))


def _asking(go_on: Callable[[], bool] | None) -> Callable[[int, int], bool] | None:
    """As the store asks."""
    return None if go_on is None else lambda *_: go_on()
