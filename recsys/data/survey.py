"""What events say but for their features, in one pass over the ranks' shares: who is there, when last, how often, and
how often as a positive. What it leaves is as large as the entities are many, and spread over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.data.counts import Counter, Counts
from recsys.data.newest import Newest, Rows, behind, together
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ints, Ranks
from recsys.data.schema import Schema
from recsys.data.shares import Read, read_share
from recsys.dates import UNTIMED

OWNERS = ("user", "item")


@dataclass(frozen=True)
class Surveyed:
    """What all ranks found; each holds the entities whose home it is."""

    files: tuple[Path, ...]
    """That places are in."""
    rows: Mapping[str, Rows]
    """Owner -> the newest row of each entity."""
    positives: Counts
    """Items, and in how many rows each is a positive."""
    newest: int
    """Time of the newest event of all ranks, ms; UNTIMED where there is none."""

    def seen(self, owner: str, ranks: Ranks) -> Ints:
        """The ids of all ranks, int64 [N], ascending, on every one. A collective."""
        (ids,) = ranks.gather([self.rows[owner].ids])
        return np.sort(ids)


class Survey:
    """Collects it; a `Visitor` of a scan.

    Memory: some 80 bytes an entity of this rank's share, and some tens of MB.

    Args:
        files: that are read.
        schema: of the events, with the labels that their batches have.
        labels: a row with any of these is a positive of its item.
        as_of: time up to which outcomes are known, ms; None: all of them are.
    """

    def __init__(
        self, files: Sequence[Path], schema: Schema, labels: Sequence[str] = (), as_of: int | None = None
    ) -> None:
        self.files, self.as_of = tuple(files), as_of
        self._labels = columns_of(schema, labels)
        self._rows = {owner: Newest() for owner in OWNERS}
        self._positives, self._newest = Counter(), UNTIMED

    def add(self, read: Read) -> None:
        """Take in rows."""
        batch, times = read.batch, read.batch.timestamps.numpy()
        for owner, ids in zip(OWNERS, (batch.user_ids, batch.item_ids), strict=True):
            self._rows[owner].add(ids.numpy(), times, read.places)
        self._newest = max(self._newest, int(times.max(initial=UNTIMED)))
        if self._labels:
            labels, mask = batch.labels.numpy()[:, self._labels], batch.label_mask.numpy()[:, self._labels]
            self._positives.add(batch.item_ids.numpy()[((labels == 1) & mask).any(1)])

    def together(self, ranks: Ranks = ALONE) -> Surveyed:
        """What all ranks have collected. A collective."""
        return Surveyed(
            files=self.files,
            rows={owner: together(newest.rows(), ranks) for owner, newest in self._rows.items()},
            positives=self._positives.counts().together(ranks),
            newest=int(ranks.max(np.array([self._newest]))[0]),
        )


def survey(
    files: Sequence[Path],
    schema: Schema,
    labels: Sequence[str] = (),
    skip: Quarantine = NOTHING,
    *,
    as_of: int | None = None,
    ranks: Ranks = ALONE,
) -> Surveyed:
    """Read ids, times and these labels of all rows that are not skipped, each on one rank. A collective.

    Raises:
        DataError: what `read_share` raises.
    """
    facts = schema.select(features=(), labels=tuple(labels))
    found = Survey(files, facts, labels, as_of)
    for read in read_share(files, facts, skip, ranks, as_of):
        found.add(read)
    return found.together(ranks)


def one_after_another(parts: Sequence[Surveyed]) -> Surveyed:
    """What is known of several lists of files, as of one that has them one after another."""
    rows = {owner: behind([(part.rows[owner], len(part.files)) for part in parts]) for owner in OWNERS}
    positives = (np.concatenate(column) for column in zip(*(part.positives for part in parts), strict=True))
    return Surveyed(
        files=tuple(file for part in parts for file in part.files),
        rows=rows,
        positives=Counts.of(*positives),
        newest=max(part.newest for part in parts),
    )


def columns_of(schema: Schema, labels: Sequence[str]) -> list[int]:
    """Where these labels are among those of a schema. Raises SchemaError for one that is not."""
    schema.select(features=(), labels=tuple(labels))
    names = [label.name for label in schema.labels]
    return [names.index(label) for label in labels]
