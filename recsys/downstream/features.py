"""Read the store's vectors as features: for each event, only what had been published before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from embedding_store import EmbeddingStore, PointInTime, Series, Snapshot
from recsys.data.batch import Batch
from recsys.data.errors import DataError
from recsys.models.dlrm import SeriesSpec

OWNERS = ("user", "item")


@dataclass
class PointInTimeSeries:
    """All versions of one series but the refused ones, asked for each id as of its event's time.

    Versions are opened when first needed.
    """

    series: Series
    publish_delay_ms: int = 0
    """An event sees a snapshot when `as_of + publish_delay_ms <= timestamp`."""
    once: bool = False
    """Read the first snapshot alone, as if nothing had been refreshed since."""

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Oldest first, as they were when first asked: a run sees one state of the store."""
        return self._history.snapshots

    @cached_property
    def _history(self) -> PointInTime:
        return PointInTime(self.series.history(refused=False)[: 1 if self.once else None], self.series.dim)

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


class StoreFeatures:
    """Adds `vectors` and `found` of several series to batches; used as the `transform` of an `EventStream`.

    Args:
        store: The embedding store.
        names: Series names, `user_<upstream>` or `item_<upstream>`, in the order in which their vectors are laid out.
        publish_delay_ms: An event sees a snapshot when `as_of + publish_delay_ms <= timestamp`.
        once: Read each series' first snapshot alone, as if nothing had been refreshed since.

    Raises:
        KeyError: no such series; the message names those that exist.
        DataError: a series without snapshots or with several spaces.
    """

    def __init__(
        self, store: EmbeddingStore, names: Sequence[str], publish_delay_ms: int = 0, *, once: bool = False
    ) -> None:
        self.series = [PointInTimeSeries(store.series(name), publish_delay_ms, once) for name in names]
        self.specs = tuple(series.spec for series in self.series)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `vectors` float32 [B, V] and `found` bool [B, S], series side by side."""
        if not self.series:
            return batch
        results = [
            series.lookup(batch.user_ids if spec.owner == "user" else batch.item_ids, batch.timestamps)
            for series, spec in zip(self.series, self.specs, strict=True)
        ]
        vectors = torch.cat([vectors for vectors, _ in results], dim=1)
        return replace(batch, vectors=vectors, found=torch.stack([found for _, found in results], dim=1))
