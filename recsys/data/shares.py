"""One rank's share of the rows of a log, read once and in order, for what needs few columns of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from recsys.data.errors import DataError, RowError
from recsys.data.files import read_footers
from recsys.data.groups import read_group
from recsys.data.quarantine import NOTHING, Quarantine
from recsys.data.ranks import ALONE, Ints, Ranks
from recsys.data.schema import Schema
from recsys.data.sparse import keyed
from recsys.data.strings import ColumnReader

PLACE = 1 << 40
"""A row's place among those of a list of files is `PLACE` x the number of its file + its row there: so places ascend
with files and rows, and say both."""


class Read(NamedTuple):
    """Some rows as they were read."""

    batch: Batch
    file: int
    """Number of their file in the list."""
    places: Ints  # [B], ascending

    def where(self, kept: NDArray[np.bool_]) -> Read:
        """Some of the rows, bool [B], without their features."""
        rows, batch = torch.from_numpy(kept), self.batch
        some = replace(
            batch,
            dense={},
            sparse=keyed({}, int(kept.sum())),
            labels=batch.labels[rows],
            label_mask=batch.label_mask[rows],
            user_ids=batch.user_ids[rows],
            item_ids=batch.item_ids[rows],
            timestamps=batch.timestamps[rows],
            elapsed=None,
            weights=None,
        )
        return Read(some, self.file, self.places[kept])


def read_share(
    files: Sequence[Path],
    schema: Schema,
    skip: Quarantine = NOTHING,
    ranks: Ranks = ALONE,
    as_of: int | None = None,
) -> Iterator[Read]:
    """Every `world_size`-th row group of the files, less the rows that are skipped; the ranks' shares are all rows.

    Args:
        files: Parquet files; all footers are checked first.
        schema: what to read of them.
        skip: rows that are left out.
        ranks: who share.
        as_of: time up to which the labels' outcomes are known, ms; None: all of them are.

    Raises:
        DataError: what `read_footers` and `read_group` raise, or a value that its role forbids; names file and row.
    """
    footers = read_footers(files, schema)
    readers = {name: ColumnReader(kind) for name, kind in footers.types.items()}
    groups = [(number, group) for number, file in enumerate(footers.files) for group in file.row_groups]
    for number, group in groups[ranks.rank :: ranks.world_size]:
        gone = skip.within(group)
        if len(gone) == group.rows:
            continue
        for piece in read_group(group, 0, group.rows - len(gone), readers, gone):
            try:
                batch = to_batch(piece.data, schema, as_of)
            except RowError as error:
                where = f"{piece.file}: column {error.column!r}, row {piece.row + error.row}"
                raise DataError(f"{where}: {error.problem}") from None
            yield Read(batch, number, number * PLACE + piece.row + np.arange(len(batch)))
