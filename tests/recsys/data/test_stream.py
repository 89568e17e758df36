from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import stream as stream_module
from recsys.data.convert import to_batch
from recsys.data.errors import DataError
from recsys.data.stream import EventStream
from tests.recsys.data.events import SCHEMA, assert_equal, items_of, make_events, temporary_log, write_files

LOGS = {"sizes": st.lists(st.integers(1, 40), min_size=1, max_size=3), "row_group": st.integers(1, 20)}
ORDERS = {"batch_size": st.integers(1, 12), "shuffle_batches": st.integers(0, 4), "seed": st.integers(0, 2**40)}


@settings(max_examples=40, deadline=None)
@given(**LOGS, **ORDERS, world_size=st.integers(1, 4), drop_last=st.booleans())
def test_ranks_partition_the_rows_in_equal_steps(
    sizes: list[int],
    row_group: int,
    batch_size: int,
    shuffle_batches: int,
    seed: int,
    world_size: int,
    drop_last: bool,
) -> None:
    with temporary_log(sizes, row_group) as files:
        streams = []
        rows = sum(sizes)
        batch = min(batch_size, rows // world_size)
        for rank in range(world_size):
            options = {"batch_size": batch_size, "shuffle_batches": shuffle_batches, "seed": seed}
            options |= {"rank": rank, "world_size": world_size, "drop_last": drop_last}
            if not batch:
                with pytest.raises(DataError, match="make no step"):
                    EventStream(files, SCHEMA, **options)
                return
            streams.append(EventStream(files, SCHEMA, **options))
        batches = [list(stream) for stream in streams]
    assert all(stream.rows == rows and stream.total_steps == len(b) for stream, b in zip(streams, batches, strict=True))
    read = [[row for batch in items_of(b) for row in batch] for b in batches]
    union = [row for r in read for row in r]
    assert len(set(union)) == len(union)
    shortest = min(map(len, read))
    if drop_last:
        assert len({len(b) for b in batches}) == len({len(r) for r in read}) == 1
        assert rows - len(union) < world_size * batch
        assert {len(batch) for b in batches for batch in b} == {batch}
    else:
        assert len(union) == rows
        assert {len(r) for r in read} <= {shortest, shortest + 1}
        assert {len(batch) for b in batches for batch in b[:-1]} <= {batch, batch + 1}  # of a rank with a row more
    assert {bool(stream.shortfall) for stream in streams} == {batch < batch_size}
    if not shuffle_batches:
        starts = np.cumsum([0, *map(len, read)]) if not drop_last else np.arange(world_size) * (rows // world_size)
        for start, r in zip(starts[:world_size].tolist(), read, strict=True):
            assert r == list(range(start, start + len(r)))


@settings(max_examples=30, deadline=None)
@given(**LOGS, **ORDERS, world_size=st.integers(1, 2), drop_last=st.booleans(), data=st.data())
def test_seek_equals_skipping(
    sizes: list[int],
    row_group: int,
    batch_size: int,
    shuffle_batches: int,
    seed: int,
    world_size: int,
    drop_last: bool,
    data: st.DataObject,
) -> None:
    with temporary_log(sizes, row_group) as files:
        try:
            stream = EventStream(
                files,
                SCHEMA,
                batch_size=batch_size,
                rank=world_size - 1,
                world_size=world_size,
                shuffle_batches=shuffle_batches,
                seed=seed,
                epochs=2,
                drop_last=drop_last,
            )
        except DataError:
            return
        everything = list(stream)
        assert len(everything) == stream.total_steps == 2 * stream.steps_per_epoch == stream.position
        position = data.draw(st.integers(0, stream.total_steps))
        stream.seek(position)
        rest = list(stream)
        assert len(rest) == stream.total_steps - position
        for left, right in zip(everything[position:], rest, strict=True):
            assert_equal(left, right)


def test_batches_equal_a_conversion_of_the_same_rows(tmp_path: Path) -> None:
    files = write_files(tmp_path, [300, 200], row_group=64)
    table = make_events(500)
    for shuffle_batches in (0, 3):
        for batch in EventStream(files, SCHEMA, batch_size=32, shuffle_batches=shuffle_batches, drop_last=False):
            assert_equal(batch, to_batch(table.take(pa.array(batch.item_ids.numpy())), SCHEMA))


def test_shuffling_moves_rows_far_and_differs_by_epoch_and_seed(tmp_path: Path) -> None:
    files = write_files(tmp_path, [1000], row_group=50)

    def read(seed: int) -> list[int]:
        stream = EventStream(files, SCHEMA, batch_size=20, shuffle_batches=10, seed=seed, epochs=2)
        return [row for batch in items_of(list(stream)) for row in batch]

    first = read(0)
    assert sorted(first[:1000]) == sorted(first[1000:]) == list(range(1000))
    assert first == read(0)
    assert first[:1000] != first[1000:]
    assert first != read(1)
    moved = np.abs(np.array(first[:1000]) - np.arange(1000))
    assert moved.mean() > 200  # a shuffle within blocks of 200 rows in stored order would stay below


def test_a_half_used_iterator_resumes_where_it_stood(tmp_path: Path) -> None:
    files = write_files(tmp_path, [100], row_group=10)
    stream = EventStream(files, SCHEMA, batch_size=8, shuffle_batches=2)
    whole = items_of(list(stream))
    stream.seek(0)
    head = []
    for batch in stream:
        head.append(batch)
        if len(head) == 5:
            break
    assert stream.position == 5  # batches that were prefetched but not handed out do not count
    assert items_of([*head, *stream]) == whole
    assert list(stream) == []


def test_seek_reads_no_earlier_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path, [400], row_group=10)
    touched: list[int] = []
    read = stream_module.read_group
    monkeypatch.setattr(
        stream_module, "read_group", lambda group, *rest: touched.append(group.index) or read(group, *rest)
    )
    stream = EventStream(files, SCHEMA, batch_size=10, shuffle_batches=0)
    stream.seek(35)
    assert items_of(list(stream))[0] == list(range(350, 360))
    assert touched == [35, 36, 37, 38, 39]
    touched.clear()
    shuffled = EventStream(files, SCHEMA, batch_size=10, shuffle_batches=4)
    shuffled.seek(35)
    assert len(list(shuffled)) == 5
    assert len(touched) == 8  # blocks 8 and 9 of 10, four row groups each


def test_unequal_files_are_read_as_one_log(tmp_path: Path) -> None:
    files = write_files(tmp_path, [10, 10, 10], row_group=4)
    table = pq.read_table(files[1])
    changes = {
        "user_id": table["user_id"].cast(pa.int16()),
        "word": table["word"].combine_chunks().dictionary_encode(),
        "price": table["price"].cast(pa.float32()),
        "seen": table["seen"].cast(pa.large_list(pa.int64())),
        "click": table["click"].cast(pa.bool_()),
    }
    for name, column in changes.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table.append_column("note", pa.nulls(10)), files[1])
    missing = pq.read_table(files[2])
    missing = missing.set_column(3, "word", pa.nulls(10))
    for name in ("seen", "seen_time"):
        empty = pa.array([[]] * 10, pa.list_(pa.null()))
        missing = missing.set_column(missing.schema.get_field_index(name), name, empty)
    pq.write_table(missing, files[2])
    (batch,) = EventStream(files, SCHEMA, batch_size=30, shuffle_batches=1)
    expected = to_batch(make_events(30).take(pa.array(batch.item_ids.numpy())), SCHEMA)
    assert torch.equal(batch.dense["item"], expected.dense["item"])
    old = batch.item_ids < 20
    for key in ("word", "seen", "seen.age"):
        rows = zip(batch.sparse[key].to_dense(), expected.sparse[key].to_dense(), old.tolist(), strict=True)
        assert all(torch.equal(left, right) if known else len(left) == 0 for left, right, known in rows)


def test_entity_rows_of_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(make_events(10).drop_columns(["item_id", "price", "word", "click"]), path)
    users = SCHEMA.select(features=("seen",), labels=())
    (batch,) = EventStream([path], users, batch_size=16, drop_last=False)
    assert batch.item_ids.tolist() == [-1] * 10
    assert batch.sparse.keys() == ["seen", "seen.age"]
    with pytest.raises(DataError, match=r"users.parquet: column 'item_id' is missing"):
        EventStream([path], SCHEMA, batch_size=1)


@pytest.mark.parametrize("shuffle_batches", [0, 3])
def test_errors_while_reading_name_file_and_row(tmp_path: Path, shuffle_batches: int) -> None:
    files = write_files(tmp_path, [100, 100], row_group=16)
    table = pq.read_table(files[1])
    times = table["timestamp"].to_numpy().copy()
    times[77] = -1
    pq.write_table(table.set_column(0, "timestamp", pa.array(times)), files[1], row_group_size=16)
    stream = EventStream(files, SCHEMA, batch_size=8, shuffle_batches=shuffle_batches)
    with pytest.raises(DataError, match=r"part-1.parquet: column 'timestamp', row 77: .*-1"):
        list(stream)


def test_damaged_pages_name_file_and_rows(tmp_path: Path) -> None:
    files = write_files(tmp_path, [4000, 4000], row_group=1000)
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 0x10
    files[1].write_bytes(data)
    stream = EventStream(files, SCHEMA, batch_size=100)  # the footer is whole
    with pytest.raises(DataError, match=r"part-1.parquet: rows \d+ to \d+ \(row group \d\) cannot be read"):
        list(stream)


def test_a_file_that_vanishes_while_reading(tmp_path: Path) -> None:
    files = write_files(tmp_path, [10, 10], row_group=5)
    stream = EventStream(files, SCHEMA, batch_size=5)
    files[1].unlink()
    with pytest.raises(DataError, match=r"part-1.parquet: rows 0 to 4"):
        list(stream)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; use 1 or more"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; use 0 <= rank < world_size = 2"),
        ({"rank": -1}, "rank is -1"),
        ({"shuffle_batches": -1}, "shuffle_batches is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"world_size": 11}, "10 rows make no step of one row on each of 11 ranks: lower the number of ranks"),
        ({"world_size": 11, "drop_last": False}, "10 rows make no step of one row on each of 11 ranks"),
    ],
)
def test_arguments_out_of_bounds(tmp_path: Path, changes: dict, message: str) -> None:
    files = write_files(tmp_path, [10], row_group=10)
    options = {"batch_size": 1, "world_size": 2, **changes}
    with pytest.raises(ValueError, match=message):
        EventStream(files, SCHEMA, **options)


@pytest.mark.parametrize("shuffle_batches", [0, 2])
def test_less_than_a_batch_is_one_smaller_batch(tmp_path: Path, shuffle_batches: int) -> None:
    files = write_files(tmp_path, [5, 8], row_group=3)
    options = {"batch_size": 8, "world_size": 2, "epochs": 2, "shuffle_batches": shuffle_batches}
    first, second = (EventStream(files, SCHEMA, rank=rank, **options) for rank in (0, 1))
    assert first.steps_per_epoch == second.steps_per_epoch == 1
    assert first.shortfall == "13 events, less than a batch of 2 x 8: one step of 12 a pass"
    for pass_of_all in zip(items_of(list(first)), items_of(list(second)), strict=True):
        assert [len(rows) for rows in pass_of_all] == [6, 6]
        assert len({row for rows in pass_of_all for row in rows}) == 12
    assert EventStream(files, SCHEMA, **options | {"batch_size": 6}).shortfall == ""


def test_seek_out_of_bounds(tmp_path: Path) -> None:
    stream = EventStream(write_files(tmp_path, [10], row_group=10), SCHEMA, batch_size=5, epochs=2)
    for position in (-1, 5):
        with pytest.raises(ValueError, match=f"position is {position}; .* 0 to 4"):
            stream.seek(position)


def test_a_log_without_event_times_is_the_same_but_for_the_times(tmp_path: Path) -> None:
    files = write_files(tmp_path, [20, 13], 4)
    timed = SCHEMA.select(features=("word", "price"))
    untimed = replace(timed, timestamp="")
    options = {"batch_size": 5, "shuffle_batches": 2, "seed": 3, "epochs": 2}
    wanted = list(EventStream(files, timed, **options))
    for file in files:
        pq.write_table(pq.read_table(file).drop_columns(["timestamp"]), file, row_group_size=4)
    found = list(EventStream(files, untimed, **options))
    assert len(found) == len(wanted) == 2 * (33 // 5)
    for left, right in zip(found, wanted, strict=True):
        assert left.timestamps.tolist() == [0] * 5
        assert_equal(replace(left, timestamps=right.timestamps), right)
