"""Which id owns which row of its entity's table: ids that were not seen in training share one row, "unknown".

A table that users or items read by their own id has a row more than the schema says, the last: the unknown one. Every
other row has one owner at most, of which 16 bits are kept. An id is looked for at the row `table_rows` gives it, then
at seven more that hang on it; where none is its own, it reads the unknown row. So no id reads another's row, but for
one of 10,000 or more that agrees with an owner in those 16 bits too. The unknown row is trained by dropping ids, as
PinFM does with its candidates'; the rest is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.data.convert import table_rows
from recsys.data.hashing import splitmix64
from recsys.data.schema import OWNERS, Feature, Schema

PROBES = 8
"""Rows at which an id may lie. Where ids fill half of a table one of 700 finds none free, at three quarters one of 50;
with one row each it would be one of 5, and one of 3."""

Ints = NDArray[np.int64]
Marks = NDArray[np.uint16]
M = TypeVar("M", np.int64, np.uint16)


def own_ids(schema: Schema) -> dict[str, Feature]:
    """Owner, `user` or `item` -> the feature that is its own id, where it has one."""
    names = {"user": schema.user_id, "item": schema.item_id}
    return {x.owner: x for x in schema.features if x.kind == "id" and x.name == names.get(x.owner)}


def table_features(schema: Schema, owners: tuple[str, ...] = OWNERS) -> tuple[Feature, ...]:
    """The features of these owners in schema order, `rows` those of their tables: with the unknown row, if they have
    one."""
    known = {(x.owner, x.table_name) for x in own_ids(schema).values()}
    return tuple(
        replace(x, rows=x.rows + 1) if x.rows and (x.owner, x.table_name) in known else x
        for x in schema.owned_by(*owners)
    )


class Vocabulary(nn.Module):
    """The owners of the rows of the users' and the items' own table. Part of a model, and of its checkpoints.

    Empty at first: every id reads the unknown row.

    Args:
        schema: of the ids.
        owned: what keeps the owners of a table of so many rows.
    """

    def __init__(self, schema: Schema, owned: Callable[[int], OwnedRows] | None = None) -> None:
        super().__init__()
        self.features = own_ids(schema)
        make = owned or OwnedRows
        self.tables = nn.ModuleDict({owner: make(feature.rows) for owner, feature in self.features.items()})

    def admit(self, seen: Mapping[str, Ints], as_of: int = 0) -> dict[str, Ints]:
        """Give the new ones among the ids of training events rows that nobody owns; those there keep theirs.

        Args:
            seen: owner -> int64 [N], in any order; the same on every rank.
            as_of: time of the newest of the events, ms, for owners that may have been seen too long ago.

        Returns:
            owner -> rows that others owned before, which are to begin anew.
        """
        return {owner: table.admit(seen[owner], as_of) for owner, table in self._tables()}

    def without_row(self, seen: Mapping[str, Ints]) -> dict[str, float]:
        """Owner -> share of these different ids that have no row of their own."""
        return {
            owner: float(np.mean(table.find(seen[owner], table_rows(seen[owner], table.unknown)) == table.unknown))
            if len(seen[owner])
            else 0.0
            for owner, table in self._tables()
        }

    def state(self) -> dict[str, Tensor]:
        """Owner -> who owns each row of its table, as `OwnedRows.get_extra_state` has it."""
        return {owner: table.get_extra_state() for owner, table in self._tables()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave."""
        for owner, table in self._tables():
            table.set_extra_state(state[owner])

    def _tables(self) -> Iterator[tuple[str, OwnedRows]]:
        for owner, table in self.tables.items():
            assert isinstance(table, OwnedRows)
            yield owner, table

    def resolve(self, batch: Batch, dropout: float = 0.0, seed: int = 0) -> Batch:
        """Let the ids of a batch, fresh from `to_batch`, read the rows they own, or the unknown one.

        Args:
            batch: on the CPU; changed in place. It may lack the features of an owner.
            dropout: share of the rows whose user reads the unknown row whoever it is, and, drawn by itself, whose item
                does. What is drawn is a function of the seed, the pass and the event (its user, item and time) alone.
            seed: of the training.

        Returns:
            the batch.
        """
        keys, bounds = batch.sparse.keys(), batch.sparse.offset_per_key()
        lengths = batch.sparse.lengths().view(len(keys), len(batch)) if keys else None
        lost = _draws(batch, seed) < np.uint32(dropout * 2**32) if dropout else None
        for owner, table in self._tables():
            name = self.features[owner].name
            if lengths is None or name not in keys:
                continue
            key = keys.index(name)
            rows = batch.sparse.values()[bounds[key] : bounds[key + 1]].numpy()  # a view
            ids = (batch.user_ids if owner == "user" else batch.item_ids).numpy()
            given = lengths[key].numpy() > 0
            rows[:] = table.find(ids if len(rows) == len(ids) else ids[given], rows)
            if lost is not None:
                rows[lost[given, OWNERS.index(owner)]] = table.unknown
        return batch


class OwnedRows(nn.Module):
    """The owners of one table's rows: a tensor beside the parameters that stays on the CPU, where batches are made."""

    def __init__(self, rows: int) -> None:
        """`rows`: of the schema, without the unknown one."""
        super().__init__()
        self.unknown = rows
        """The row that ids without one read."""
        # No buffer, which would be moved to the GPU and broadcast; zeros of NumPy's, which take memory when written to.
        self._owners = torch.from_numpy(np.zeros(rows, np.int16))

    def get_extra_state(self) -> Tensor:  # int16 [rows]
        """What goes into a checkpoint."""
        return self._owners

    def set_extra_state(self, state: Tensor) -> None:
        """What comes out of one."""
        self._owners.copy_(state)

    def find(self, ids: Ints, first: Ints) -> Ints:
        """Each id's row, int64 [N].

        Args:
            ids: int64 [N], any values.
            first: int64 [N], `table_rows` of them.
        """
        owners, marks = self._marks(), fingerprints(ids)
        found = np.where(owners[first] == marks, first, self.unknown)
        left = np.flatnonzero(found == self.unknown)
        first, marks = first[left], marks[left]
        for probe in range(1, PROBES):
            if not len(left):
                break
            rows = _place(first, marks, probe, self.unknown)
            here = owners[rows] == marks
            found[left[here]] = rows[here]
            left, first, marks = left[~here], first[~here], marks[~here]
        return found

    def admit(self, ids: Ints, as_of: int = 0) -> Ints:
        """Let each id that has no row own the first of its rows that is free; of several that want one the smallest
        fingerprint wins, so that their order is no matter. Without a free one it goes on without.

        Returns:
            the rows that others owned before: none.
        """
        first = table_rows(ids, self.unknown)
        new = self.find(ids, first) == self.unknown
        settle(self._marks(), fingerprints(ids[new]), first[new], _place, PROBES, 0)
        return np.empty(0, np.int64)

    def _marks(self) -> Marks:
        return self._owners.numpy().view(np.uint16)


def settle(
    owners: NDArray[M],
    marks: NDArray[M],
    first: Ints,
    place: Callable[[Ints, NDArray[M], int, int], Ints],
    probes: int,
    nobody: int,
) -> None:
    """Let each of some marks own the first of its rows that is free, the smallest before the others.

    Args:
        owners: [rows], changed in place: the mark that owns each row, or `nobody`.
        marks: [N], none of which owns a row; those that agree are one.
        first: int64 [N], the row of each to begin with.
        place: (first, marks, probe, rows) -> the row to look at next, int64 [N].
        probes: rows to look at; a mark that finds none free gets none.
        nobody: no mark.
    """
    for probe in range(probes):
        if not len(marks):
            break
        rows = place(first, marks, probe, len(owners))
        free = np.flatnonzero(owners[rows] == nobody)
        order = free[np.argsort(marks[free], kind="stable")[::-1]]
        owners[rows[order]] = marks[order]  # of several for a row the last is left, which is the smallest
        left = owners[rows] != marks
        first, marks = first[left], marks[left]


def fingerprints(ids: Ints) -> Marks:
    """16 bits of each id's hash, uint16 [N]; never 0, which is nobody's.

    Args:
        ids: int64 [N], any values.
    """
    marks = (splitmix64(ids.view(np.uint64)) >> np.uint64(48)).astype(np.uint16)
    return np.maximum(marks, np.uint16(1), out=marks)


def _place(first: Ints, marks: Marks, probe: int, rows: int) -> Ints:
    """The row at which an id is looked for next; ids that met at the first part at the second."""
    return (first + probe * marks.astype(np.int64)) % rows if probe else first


def _draws(batch: Batch, seed: int) -> NDArray[np.uint32]:
    """A random number for each event's user and item, uint32 [B, 2]: equal on every rank and after a restart."""
    users, items, times = (x.numpy().view(np.uint64) for x in (batch.user_ids, batch.item_ids, batch.timestamps))
    draws = splitmix64(users ^ np.uint64(seed << 32 | batch.epoch))
    draws ^= items
    draws ^= times
    return splitmix64(draws).view(np.uint32).reshape(-1, 2)
