"""Events that are held out of a training, to choose the number of passes by.

Whether one is held out is a function of its user, its item and its time alone: equal on every rank, after a restart and
for an event that is there twice, and no file has to be written for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from recsys.data.files import check_files, read_footers
from recsys.data.groups import read_group
from recsys.data.hashing import splitmix64
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ranks
from recsys.data.schema import Schema
from recsys.data.shares import PLACE, read_share
from recsys.data.strings import ColumnReader

MOST = 100_000
"""Events that are held out at most: more would cost time and say the same."""
LEAST = 20
"""A label has so many of 0 and of 1 among them, a value so many above 0 and two that differ, or it is not judged by."""
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class HeldOut:
    """Which events are held out; the same on every rank."""

    rows: Quarantine
    """For the training to leave out, beside those that nobody reads."""
    judged: tuple[int, ...]
    """The labels, by their number in the schema, that have enough of both kinds among them."""
    count: int
    """How many they are."""


ALL_TRAIN = HeldOut(NOTHING, (), 0)
"""None is held out."""


def hold_out(
    files: Sequence[Path],
    schema: Schema,
    share: float,
    skip: Quarantine = NOTHING,
    as_of: int | None = None,
    ranks: Ranks = ALONE,
) -> HeldOut:
    """Choose this share of the events, at most MOST; or none where they would not tell one model from another.

    Ids, times and labels of all events are read, each on one rank. A collective.

    Raises:
        DataError: what `read_share` raises.
    """
    facts = schema.select(features=())
    share = min(share, MOST / max(1, check_files(files, facts) - skip.count(files)))
    found, enough = [np.empty(0, np.int64)], _Enough(schema)
    for batch, _, places in read_share(files, facts, skip, ranks, as_of):
        rows = np.flatnonzero(_draws(batch) < np.uint64(share * 2**64))
        enough.add(batch.labels.numpy()[rows], batch.known.numpy()[rows])
        found.append(places[rows])
    judged = enough.labels(ranks)
    if not judged:
        return ALL_TRAIN
    (chosen,) = ranks.gather([np.concatenate(found)])
    chosen = np.sort(chosen)
    by_file = {path: chosen[chosen // PLACE == number] % PLACE for number, path in enumerate(files)}
    return HeldOut(Quarantine(by_file), judged, len(chosen))


class _Enough:
    """Counts whether rows tell good models of a label from bad ones."""

    def __init__(self, schema: Schema) -> None:
        self._values = np.array([label.is_value for label in schema.labels], bool)
        count = len(schema.labels)
        self._rows, self._positive = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._least, self._most = np.full(count, np.inf), np.full(count, -np.inf)

    def add(self, labels: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Labels and where they exist, [N, T]."""
        self._rows += mask.sum(0)
        self._positive += (mask & (labels > 0)).sum(0)
        self._least = np.minimum(self._least, np.where(mask, labels, np.inf).min(0, initial=np.inf))
        self._most = np.maximum(self._most, np.where(mask, labels, -np.inf).max(0, initial=-np.inf))

    def labels(self, ranks: Ranks) -> tuple[int, ...]:
        """Those that are told well enough by the rows of all ranks. A collective."""
        rows, positive = ranks.sum(np.stack([self._rows, self._positive]))
        least, most = ranks.max(np.stack([-self._least, self._most]).astype(np.float32))
        zeros = np.where(self._values, np.where(-least < most, LEAST, 0), rows - positive)
        return tuple(np.flatnonzero(np.minimum(positive, zeros) >= LEAST).tolist())


class HeldOutBatches:
    """One rank's share of the events that are held out: as many batches as every other's, as long as theirs.

    Memory: the rows of the share.

    Args:
        files: the events.
        schema: what to read of them.
        held: which.
        rank: this process.
        world_size: processes that share them; fewer events than that at the end are left out.
        transform: applied to every batch.
        as_of: time up to which the labels' outcomes are known, ms; None: all of them are.
    """

    def __init__(
        self,
        files: Sequence[Path],
        schema: Schema,
        held: HeldOut,
        *,
        rank: int,
        world_size: int,
        transform: Callable[[Batch], Batch],
        as_of: int | None = None,
    ) -> None:
        size = held.count // world_size
        self._rows = _read(files, schema, held.rows, rank * size, (rank + 1) * size)
        self._schema, self._transform, self._as_of = schema, transform, as_of
        self._next = 0

    def seek(self, position: int) -> None:
        """Continue with the batch of this number."""
        self._next = position

    def __iter__(self) -> Iterator[Batch]:
        """The batches from `seek`'s on."""
        for start in range(self._next * _BATCH_ROWS, self._rows.num_rows, _BATCH_ROWS):
            yield self._transform(to_batch(self._rows.slice(start, _BATCH_ROWS), self._schema, self._as_of))


def _draws(batch: Batch) -> NDArray[np.uint64]:
    """A number for each event, uint64 [B]."""
    draws = splitmix64(batch.user_ids.numpy().view(np.uint64))
    for part in (batch.item_ids, batch.timestamps):
        draws = splitmix64(draws ^ part.numpy().view(np.uint64))
    return draws


def _read(files: Sequence[Path], schema: Schema, chosen: Quarantine, first: int, end: int) -> pa.Table:
    """Those of the chosen rows that are number [first, end) among them."""
    footers, pieces, before = read_footers(files, schema), [], 0
    readers = {name: ColumnReader(kind) for name, kind in footers.types.items()}
    for group in footers.row_groups:
        rows = chosen.within(group)
        wanted = rows[max(0, first - before) : max(0, end - before)]
        before += len(rows)
        if not len(wanted):
            continue
        for piece in read_group(group, int(wanted[0]), int(wanted[-1]) + 1, readers):
            here = group.first_row + wanted - piece.row
            here = here[(here >= 0) & (here < piece.data.num_rows)]
            pieces.append(piece.data.take(pa.array(here)))
    return pa.Table.from_batches(pieces)
