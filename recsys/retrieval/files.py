"""A Parquet file of user ids in, one of their items out; memory does not grow with the users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from recsys.atomic import whole_file
from recsys.data.columns import INTEGER, NULL, Column
from recsys.data.errors import DataError
from recsys.data.strings import ColumnReader
from recsys.mistakes import meant
from recsys.retrieval.retriever import Retrieved, Retriever

ITEMS, SCORES, FOUND = "item_id", "score", "found"
_USERS = 8192
"""That are answered at once."""
_PLACES = 1 << 22
"""Items of all their answers together, at most: fewer users at once where k is large."""


class Answered(NamedTuple):
    """What was done."""

    users: int
    found: int
    """Of them, those that have a vector."""


class UserFile:
    """A Parquet file with a column of user ids, integers or text, whose 64-bit hash is the id as in events.

    Args:
        path: the file.
        column: its name.

    Raises:
        DataError: no such file or column, a column of another type, a name that the answer needs, or a null id.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        if column in (ITEMS, SCORES, FOUND):
            raise DataError(f"--user-id is {column!r}, which a column of the answer is called: rename it in {path}")
        self.type, self.rows = self._read_footer()
        kind = Column(column, "ids of users", "an integer or a string").canonical(self.type)
        if kind is None:
            raise DataError(f"{path}: column {column!r} is {self.type}: ids are integers or strings")
        self._reader = ColumnReader(INTEGER if kind == NULL else kind)
        self._check_nulls()

    def batches(self, rows: int) -> Iterator[tuple[pa.Array, torch.Tensor]]:
        """So many users at a time: the column as it is, and their ids int64 [rows]."""
        for values in self._values(rows):
            yield values, torch.from_numpy(self._reader.read(values).to_numpy(zero_copy_only=False).copy())

    def _values(self, rows: int) -> Iterator[pa.Array]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(rows, columns=[self.column]):
                yield batch.column(0)

    def _read_footer(self) -> tuple[pa.DataType, int]:
        try:
            with pq.ParquetFile(self.path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except FileNotFoundError:
            raise DataError(f"--users is {self.path}, which does not exist: give a Parquet file of user ids") from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"--users is {self.path}, which is no readable Parquet file: {error}") from None
        if self.column not in schema.names:
            raise DataError(
                f"{self.path} has no column {self.column!r}{meant(self.column, schema.names)}; it has: "
                f"{', '.join(schema.names)}. Name the column of the ids by --user-id"
            )
        return schema.field(self.column).type, rows

    def _check_nulls(self) -> None:
        first = 0
        for values in self._values(1 << 20):
            if values.null_count:
                row = first + pc.index(values.is_null(), True).as_py()
                raise DataError(f"{self.path}: column {self.column!r}, row {row} is null: leave out rows without an id")
            first += len(values)


def answer(retriever: Retriever, users: UserFile, k: int, out: Path, advance: Callable[[int], None]) -> Answered:
    """Write one row for each row of the users' file, in its order: the id as it was, `item_id` list<int64> and `score`
    list<float32>, best first, and whether the user was `found`. The file is whole or not there.

    Args:
        retriever: answers.
        users: whose items are wanted.
        k: how many items each gets.
        out: the file.
        advance: is told how many users were answered.

    Raises:
        RetrievalError: k < 1, or more than there are items.
    """
    retriever.check_k(k)
    kinds = {users.column: users.type, ITEMS: pa.list_(pa.int64()), SCORES: pa.list_(pa.float32()), FOUND: pa.bool_()}
    done, found = 0, 0
    with whole_file(out) as file, pq.ParquetWriter(file, pa.schema(kinds)) as writer:
        for values, ids in users.batches(max(1, min(_USERS, _PLACES // k))):
            retrieved = retriever.search(ids, k)
            items, scores = _lists(retrieved)
            columns = [values, items, scores, pa.array(retrieved.found.numpy())]
            writer.write_batch(pa.record_batch(columns, schema=writer.schema))
            done, found = done + len(ids), found + int(retrieved.found.sum())
            advance(len(ids))
    return Answered(done, found)


def _lists(retrieved: Retrieved) -> tuple[pa.Array, pa.Array]:
    """The items and scores of each user, without places that hold nothing."""
    there = retrieved.scores > float("-inf")
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), there.sum(dim=1).cumsum(0)]).to(torch.int32).numpy()
    items, scores = (pa.array(each[there].numpy()) for each in (retrieved.items, retrieved.scores))
    return pa.ListArray.from_arrays(ends, items), pa.ListArray.from_arrays(ends, scores)
