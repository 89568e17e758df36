"""Small event logs for tests of the stream."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.data.batch import Batch
from recsys.data.schema import Feature, Label, Schema

SCHEMA = Schema(
    features=(
        Feature(name="word", owner="item", kind="id", rows=100),
        Feature(name="seen", owner="user", kind="sequence", rows=100, time="seen_time", max_length=2),
        Feature(name="price", owner="item", kind="dense"),
    ),
    labels=(Label(name="click"),),
)


def make_events(rows: int, first: int = 0) -> pa.Table:
    """A log in which every value follows from the row's number, which is its item_id."""
    number = np.arange(first, first + rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(number % 4)]), pa.int32())
    element = np.repeat(number, number % 4)
    return pa.table(
        {
            "timestamp": number + 1000,
            "user_id": number % 7 - 3,
            "item_id": number,
            "word": pa.array([f"w{x % 5}" if x % 6 else None for x in number.tolist()], pa.string()),
            "seen": pa.ListArray.from_arrays(offsets, element + 2**40),
            "seen_time": pa.ListArray.from_arrays(offsets, element),
            "price": number.astype(np.float64),
            "click": (number % 2).astype(np.int8),
        }
    )


def write_files(folder: Path, sizes: Sequence[int], row_group: int) -> list[Path]:
    files, first = [], 0
    for index, rows in enumerate(sizes):
        files.append(folder / f"part-{index}.parquet")
        pq.write_table(make_events(rows, first), files[-1], row_group_size=row_group, write_page_checksum=True)
        first += rows
    return files


@contextmanager
def temporary_log(sizes: Sequence[int], row_group: int) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as folder:
        yield write_files(Path(folder), sizes, row_group)


def items_of(batches: Sequence[Batch]) -> list[list[int]]:
    return [batch.item_ids.tolist() for batch in batches]


def assert_equal(left: Batch, right: Batch) -> None:
    assert left.sparse.keys() == right.sparse.keys()
    for a, b in (
        (left.sparse.values(), right.sparse.values()),
        (left.sparse.lengths(), right.sparse.lengths()),
        (left.dense["item"], right.dense["item"]),
        (left.labels, right.labels),
        (left.label_mask, right.label_mask),
        (left.user_ids, right.user_ids),
        (left.item_ids, right.item_ids),
        (left.timestamps, right.timestamps),
    ):
        assert torch.equal(a, b)
