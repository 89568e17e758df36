"""Read the store's vectors as features: for each event, only what had been published before it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from embedding_store import (
    EmbeddingStore,
    NativeLibraryError,
    OpenTables,
    PointInTime,
    Series,
    ShardedPointInTime,
    Snapshot,
)
from recsys.data.batch import Batch
from recsys.data.errors import DataError
from recsys.dates import DAY_MS
from recsys.models.series import FEED, SeriesSpec
from recsys.refresh.aggregator import ACTIVITY_DIM, activity_name
from recsys.refresh.relations import read_relations

OWNERS = ("user", "item")
CPU = torch.device("cpu")
GPU_SHARE = 8
"""One part in so many of a GPU's memory is for the vectors that rows are joined with, where nothing else is said."""


@dataclass
class PointInTimeSeries:
    """All versions of one series that were not refused, asked for each id as of its event's time. Versions are opened
    when first needed."""

    series: Series
    publish_delay_ms: int = 0
    """An event sees a snapshot when `as_of + publish_delay_ms <= timestamp`."""
    once: bool = False
    """Read the first snapshot alone, as if nothing had been refreshed since."""
    activity: Series | None = None
    """Its companion, see recsys/refresh/aggregator.py; None: nothing is known of how its vectors were fed."""
    spread: bool = False
    """Whether each rank holds its part of every version; lookups are collectives then."""
    tables: OpenTables | None = None
    """Where versions are opened, and what is looked up is; None: on the CPU."""

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Oldest first, as they were when first asked: a run sees one state of the store."""
        return self._history.snapshots

    @cached_property
    def _history(self) -> PointInTime:
        return self._read(self.series.history(refused=False)[: 1 if self.once else None], self.series.dim)

    @cached_property
    def _fed(self) -> PointInTime | None:
        self._history  # noqa: B018  what the companion knows of a version is published before it
        return None if self.activity is None else self._read(self.activity.history(refused=False), ACTIVITY_DIM)

    def _read(self, snapshots: list[Snapshot], dim: int) -> PointInTime:
        return ShardedPointInTime(snapshots, dim) if self.spread else PointInTime(snapshots, dim, self.tables)

    @property
    def versions(self) -> tuple[Snapshot, ...]:
        """Its snapshots, and those of the companion: all that is opened."""
        return (*self.snapshots, *(() if self._fed is None else self._fed.snapshots))

    @property
    def device_bytes(self) -> int:
        """What all versions take on a device, and those of the companion."""
        return sum(snapshot.device_bytes for snapshot in self.versions)

    @cached_property
    def _as_of(self) -> Tensor:
        """Of each version, int64 [newest + 1]; 0 where there is none."""
        times = torch.zeros(1 + max((x.version for x in self.snapshots), default=0), dtype=torch.int64)
        for snapshot in self.snapshots:
            times[snapshot.version] = snapshot.as_of
        return times

    @cached_property
    def spec(self) -> SeriesSpec:
        """What a ranker must know of the series.

        Raises:
            DataError: the series has no snapshot, or its snapshots lie in several spaces.
        """
        spaces = {snapshot.space for snapshot in self.snapshots}
        if len(spaces) != 1:
            found = f"spaces {sorted(spaces)}: vectors of two spaces cannot be one feature" if spaces else "no snapshot"
            raise DataError(f"series {self.series.name!r} has {found}; refresh its upstream into a store of one space")
        owner = self.series.name.split("_", 1)[0]
        if owner not in OWNERS:
            raise DataError(f"series {self.series.name!r}: name it user_<upstream> or item_<upstream>")
        return SeriesSpec(name=self.series.name, owner=owner, space=spaces.pop(), dim=self.series.dim)

    def lookup(
        self,
        ids: Tensor,  # int64 [B]
        timestamps: Tensor,  # int64 [B], ms
    ) -> tuple[Tensor, Tensor]:  # float32 [B, D], bool [B]
        """Each id's vector in the newest snapshot visible at its event's time; zeros and False where there is none."""
        vectors, found, _ = self._history.lookup(ids, timestamps, self.publish_delay_ms)
        return vectors, found

    def join(
        self,
        ids: Tensor,  # int64 [B]
        timestamps: Tensor,  # int64 [B], ms
    ) -> tuple[Tensor, Tensor, Tensor]:  # float32 [B, D], bool [B], float32 [B, 2]
        """What `lookup` gives, and the vectors' feed: days from the beginning of the entity's last active day to the
        event, not below 0, and how many events the vector is made of; zeros where there is none."""
        vectors, found, _ = self._history.lookup(ids, timestamps, self.publish_delay_ms)
        if self._fed is None:
            return vectors, found, torch.zeros(len(ids), FEED, device=vectors.device)
        # On the CPU, where timestamps are, so that nothing waits for a GPU; as of the vectors' own time.
        versions = self._history.visible(timestamps, self.publish_delay_ms)
        activity, known, _ = self._fed.lookup(ids, self._as_of[versions])
        return vectors, found, feed_of(activity, found & known, sent(timestamps, vectors.device))

    def history(
        self,
        ids: Tensor,  # int64 [B]
        timestamps: Tensor,  # int64 [B], ms
        k: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # float32 [B, k, D], bool [B, k], int64 [B, k]
        """Vectors, mask and ages: of each id in the last k versions that were visible at its event's time, newest
        first."""
        return self._history.lookup_history(ids, timestamps, k, self.publish_delay_ms)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The same on `device`, for what is issued after it. Where that is a GPU nothing waits for it: the values go by way
    of a pinned copy."""
    if device.type == "cpu":
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values).to(device, non_blocking=True)


def mean_of(
    vectors: Tensor,  # float32 [B, k, D]
    mask: Tensor,  # bool [B, k]
    ages: Tensor,  # int64 [B, k], ms
) -> tuple[Tensor, Tensor, Tensor]:  # float32 [B, D], bool [B], float32 [B, 2]
    """The mean of an entity's vectors in several versions, whether there is any, and as feed how many days old these
    versions are, on average, and how many hold it."""
    count = mask.sum(1)
    some = count.clamp(min=1)
    days = ages.double().sum(1).float() / DAY_MS / some
    return vectors.sum(1) / some.unsqueeze(1), count > 0, torch.stack([days, count.float()], dim=1)


def places_of(
    vectors: Tensor,  # float32 [B, k, D]
    mask: Tensor,  # bool [B, k]
    ages: Tensor,  # int64 [B, k], ms
) -> tuple[Tensor, Tensor, Tensor]:  # float32 [B, k, D], bool [B, k], float32 [B, k, 2]
    """The same for a ranker that attends to them. As feed each has its own age in days, and is one version."""
    days = (ages.double() / DAY_MS).float()
    return vectors, mask, torch.stack([days, mask.float()], dim=2)


POOLED = {"mean": mean_of, "attention": places_of}
"""What a batch holds of a history that is pooled so: of a mean the mean, else all of it."""


def history_spec(spec: SeriesSpec, k: int, pooling: str) -> SeriesSpec:
    """Of what `POOLED[pooling]` gives, which is multiplied with its like alone."""
    if pooling == "mean":
        return replace(spec, name=f"{spec.name} last {k}", space=f"{spec.space} last {k}")
    return replace(spec, name=f"{spec.name} last {k} attended", space=f"{spec.space} last {k} attended", versions=k)


def with_vectors(batch: Batch, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    """The batch with the vectors [B, ...], found [B] or [B, k] and feed [B, 2] or [B, k, 2] of several series, side by
    side."""
    vectors, found, feed = zip(*parts, strict=True)
    return replace(
        batch,
        vectors=torch.cat([x.flatten(1) for x in vectors], dim=1),
        found=torch.column_stack(found),
        feed=torch.cat([x.flatten(1) for x in feed], dim=1).unflatten(1, (-1, FEED)),
    )


def feed_of(
    activity: Tensor,  # float32 [B, 3], rows of the companion series
    known: Tensor,  # bool [B]
    timestamps: Tensor,  # int64 [B], ms
) -> Tensor:  # float32 [B, 2]
    """Days from the beginning of the entity's last active day to the event, not below 0, and events that its vector is
    made of; zeros where nothing is known."""
    age = (timestamps.double() / DAY_MS - activity[:, 0]).clamp(min=0).float()
    return torch.stack([age, activity[:, 2]], dim=1) * known.unsqueeze(1)


def _relations(store: EmbeddingStore, spec: SeriesSpec) -> tuple[Tensor, Tensor]:
    """Of the graph that a series is of. Raises DataError if it is of none, or its relations are of another width."""
    name = f"relation_{spec.name.split('_', 1)[1]}"
    if name not in store.list():
        raise DataError(f"series {spec.name!r} is no graph's: the store has no {name!r} to attend to; use fine_tuned")
    series = store.series(name)
    if series.dim != spec.dim:
        raise DataError(
            f"series {name!r} has {series.dim} dimensions, {spec.name!r} {spec.dim}: to attend to them leave "
            "graph.relation_dim out, so that they are as wide"
        )
    return read_relations(series.history(refused=False)[0], spec.dim)


def _on_device(series: Sequence[PointInTimeSeries], device: torch.device, gpu_bytes: int) -> OpenTables | None:
    """Where a GPU holds the versions of all series; None where it does not, and the host's memory serves better.

    Raises DataError where `gpu_bytes` are more than the GPU has, or less than a version takes: no row could be joined.
    """
    if device.type == "cpu" or not series:
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    if gpu_bytes:
        if gpu_bytes > total:
            raise DataError(f"gpu_bytes is {gpu_bytes}, but {device} has {total}: give fewer, or 0")
        largest = max((one for each in series for one in each.versions), key=lambda one: one.device_bytes, default=None)
        if largest is not None and largest.device_bytes > gpu_bytes:
            which = f"version {largest.version} of series {largest.series!r} takes {largest.device_bytes}"
            raise DataError(f"gpu_bytes is {gpu_bytes}, but {which} of {device}: give as many, or 0")
        return OpenTables(device, gpu_bytes)
    room = total // GPU_SHARE
    if sum(each.device_bytes for each in series) > room:
        return None
    try:
        return OpenTables(device, room)
    except NativeLibraryError as error:  # nobody has asked for it
        warnings.warn(f"rows are joined with vectors on the CPU: {error}", stacklevel=2)
        return None


class StoreFeatures:
    """Adds `vectors`, `found` and `feed` of several series to batches; used as the `transform` of an `EventStream`.

    Args:
        store: The embedding store.
        names: Series names, `user_<upstream>` or `item_<upstream>`, in the order in which their vectors are laid out.
        publish_delay_ms: An event sees a snapshot when `as_of + publish_delay_ms <= timestamp`.
        once: Read each series' first snapshot alone, as if nothing had been refreshed since.
        history: Behind all of them add, of each series, the vectors of so many versions; 0: none.
        pooling: How these are pooled, `mean` or `attention`.
        tables: What the ranker learns in place of each, see `SeriesSpec.table`; empty: of none.
        spread: Let each rank hold its part of every version. Batches are joined by all ranks together then, in the
            thread that trains, see `SpreadStream`.
        device: That the ranker is on. On a GPU vectors are looked up there, on its default stream, on which the ranker
            trains, and batches have them there from the beginning. Spread ones are looked up on the CPU.
        gpu_bytes: Of its memory for the versions that are open at a time. 0: an eighth of it, if all versions fit into
            that; if not, or where the store's lookups do not run on it, they are looked up on the CPU.

    Raises:
        KeyError: no such series; the message names those that exist.
        DataError: a series without snapshots or with several spaces; `gpu_bytes` are more than the GPU has, or less
            than a version takes.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        names: Sequence[str],
        publish_delay_ms: int = 0,
        *,
        once: bool = False,
        history: int = 0,
        pooling: str = "mean",
        tables: Sequence[str] = (),
        spread: bool = False,
        device: torch.device = CPU,
        gpu_bytes: int = 0,
    ) -> None:
        self.spread = spread
        known = set(store.list())
        self.series = [
            PointInTimeSeries(
                store.series(name),
                publish_delay_ms,
                once,
                store.series(activity_name(name)) if activity_name(name) in known else None,
                spread,
            )
            for name in names
        ]
        opened = None if spread else _on_device(self.series, device, gpu_bytes)
        if opened is not None:
            self.series = [replace(each, tables=opened) for each in self.series]
        self._device = CPU if opened is None else opened.device
        held = sum(each.device_bytes for each in self.series) if opened is not None else 0
        self.device_bytes = held if opened is None or opened.gpu_bytes is None else min(held, opened.gpu_bytes)
        """What versions may take of the GPU's memory, which tables cannot have."""
        self._versions, self._pooled = history, POOLED[pooling]
        newest = tuple(series.spec for series in self.series)
        self.relations = {
            spec.name: _relations(store, spec)
            for spec, table in zip(newest, tables, strict=False)
            if table == "attention"
        }
        """Series -> A and b of the relations that a candidate attends to, see `recsys.refresh.relations`; those of the
        first snapshot, which no row can be earlier than."""
        made = tables or ("",) * len(newest)
        told = tuple(
            replace(spec, table=table, relations=len(self.relations[spec.name][1]) if table == "attention" else 0)
            for spec, table in zip(newest, made, strict=True)
        )
        self.specs = (*told, *(history_spec(spec, history, pooling) for spec in newest if history))

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `vectors` float32 [B, V], `found` bool [B, P] and `feed` float32 [B, P, 2], series side by
        side."""
        if not self.series:
            return batch
        ids = {"user": sent(batch.user_ids, self._device), "item": sent(batch.item_ids, self._device)}
        asked = [(series, ids[series.spec.owner]) for series in self.series]
        results = [series.join(ids, batch.timestamps) for series, ids in asked]
        if self._versions:
            histories = (series.history(ids, batch.timestamps, self._versions) for series, ids in asked)
            results += [self._pooled(*history) for history in histories]
        return with_vectors(batch, results)

    def idle(self) -> None:
        """Join in with the other ranks' batch, where they are spread and this rank has none."""
        nothing = torch.empty(0, dtype=torch.int64)
        for series in self.series:
            series.join(nothing, nothing)
