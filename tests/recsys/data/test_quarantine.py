import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.batch import Batch
from recsys.data.errors import ClockSkewError, DataError
from recsys.data.quarantine import NOTHING, Quarantine, allowed, places
from recsys.data.scan import Findings, Part, Window, join, judge, scan
from recsys.data.schema import Feature, Label, Schema, SchemaError
from recsys.data.stream import EventStream

SCHEMA = Schema(
    features=(
        Feature(name="seen", owner="user", kind="sequence", rows=100, time="seen_time", max_length=2),
        Feature(name="price", owner="item", kind="dense"),
        Feature(name="look", owner="item", kind="vector", width=2),
    ),
    labels=(Label(name="click"),),
)
DAY = Window("1970-01-02", 86_400_000, 2 * 86_400_000)
BAD = {
    "user_id": ({"user_id": None}, "the id is null"),
    "click": ({"click": 2}, "the label is 2; it must be 0 or 1"),
    "seen_time": ({"seen_time": [DAY.end + 1, DAY.end + 2]}, "it looks at the future"),
    "look": ({"look": [1.0, 2.0, 3.0]}, "the vector has 3 numbers"),
    "price": ({"price": float("inf")}, "the number is infinite"),
    "timestamp": ({"timestamp": DAY.end}, "outside the day 1970-01-02"),
}
"""Column -> a change that makes a row bad, and how it is called."""
TYPES = pa.schema(
    {
        "timestamp": pa.int64(),
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "seen": pa.list_(pa.int64()),
        "seen_time": pa.list_(pa.int64()),
        "price": pa.float64(),
        "look": pa.list_(pa.float32()),
        "click": pa.int8(),
    }
)


def row(number: int) -> dict[str, object]:
    """A good row; its item is its number."""
    return {
        "timestamp": DAY.start + number,
        "user_id": number % 5,
        "item_id": number,
        "seen": [number, 7],
        "seen_time": [1, 2],
        "price": number / 2,
        "look": [1.0, float(number)],
        "click": number % 2,
    }


def write(path: Path, groups: Sequence[Sequence[dict[str, object]]]) -> Path:
    """A file with these row groups; empty ones are left out."""
    with pq.ParquetWriter(path, TYPES, write_page_checksum=True) as writer:
        for group in groups:
            if group:
                writer.write_table(pa.Table.from_pylist(list(group), TYPES))
    return path


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[list[list[int]]], dict[int, str]]:
    """Files of row groups of row numbers; and which of these are bad, and in which column: never a whole file."""
    sizes = draw(st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), min_size=1, max_size=3))
    files, number, bad = [], 0, {}
    for groups in sizes:
        first = number
        files.append([])
        for size in groups:
            files[-1].append(list(range(number, number + size)))
            number += size
        gone = draw(st.sets(st.integers(first, number - 1), max_size=number - first - 1))
        bad |= {each: draw(st.sampled_from(sorted(BAD))) for each in sorted(gone)}
    return files, bad


def deliver(folder: Path, files: list[list[list[int]]], bad: dict[int, str], *, kept: bool) -> list[Path]:
    """Write the files, with the bad rows or without them."""
    paths = []
    for index, groups in enumerate(files):
        chosen = [[number for number in group if kept or number not in bad] for group in groups]
        rows = [[row(each) | (BAD[bad[each]][0] if each in bad else {}) for each in group] for group in chosen]
        paths.append(write(folder / f"{'all' if kept else 'good'}-{index}.parquet", rows))
    return paths


def assert_equal(left: Batch, right: Batch) -> None:
    pairs = [(left.sparse.values(), right.sparse.values()), (left.sparse.lengths(), right.sparse.lengths())]
    pairs += [(getattr(left, name), getattr(right, name)) for name in ("labels", "user_ids", "item_ids", "timestamps")]
    pairs.append((left.dense["item"], right.dense["item"]))
    assert all(torch.equal(a, b) for a, b in pairs)


@settings(max_examples=60, deadline=None)
@given(
    log=logs(),
    batch_size=st.integers(1, 6),
    shuffle_batches=st.integers(0, 3),
    world_size=st.integers(1, 3),
    drop_last=st.booleans(),
    data=st.data(),
)
def test_a_stream_that_skips_is_one_of_files_without_these_rows(
    log: tuple[list[list[list[int]]], dict[int, str]],
    batch_size: int,
    shuffle_batches: int,
    world_size: int,
    drop_last: bool,
    data: st.DataObject,
) -> None:
    files, bad = log
    with tempfile.TemporaryDirectory() as folder:
        stored, good = (deliver(Path(folder), files, bad, kept=kept) for kept in (True, False))
        part = Part(files=stored, schema=replace(SCHEMA, max_bad_rows=0.99), window=DAY)
        skip = scan(part).quarantine
        for rank in range(world_size):
            options = {"batch_size": batch_size, "shuffle_batches": shuffle_batches, "seed": 3, "epochs": 2}
            options |= {"rank": rank, "world_size": world_size, "drop_last": drop_last}
            try:
                expected = EventStream(good, SCHEMA, **options)
            except DataError as error:
                with pytest.raises(DataError, match=re.escape(str(error))):
                    EventStream(stored, SCHEMA, skip=skip, **options)
                return
            stream = EventStream(stored, SCHEMA, skip=skip, **options)
            assert (stream.rows, stream.total_steps) == (expected.rows, expected.total_steps)
            position = data.draw(st.integers(0, stream.total_steps))
            stream.seek(position)
            expected.seek(position)
            for left, right in zip(stream, expected, strict=True):
                assert_equal(left, right)


@settings(max_examples=60, deadline=None)
@given(log=logs(), world_size=st.integers(1, 3), missing=st.sets(st.integers(0, 95)))
def test_a_scan_finds_each_bad_row_and_each_missing_value(
    log: tuple[list[list[list[int]]], dict[int, str]], world_size: int, missing: set[int]
) -> None:
    files, bad = log
    numbers = [[number for group in groups for number in group] for groups in files]
    with tempfile.TemporaryDirectory() as folder:
        paths = deliver(Path(folder), files, bad, kept=True)
        for path, within in zip(paths, numbers, strict=True):
            table = pq.ParquetFile(path).read().to_pylist()
            for number, each in zip(within, table, strict=True):
                if number in missing and bad.get(number) not in ("price", "look"):
                    each |= {"price": float("nan") if number % 2 else None}
                    each |= {"look": [None, [], [float("nan"), 1.0], [None, 1.0]][number % 4]}
            pq.write_table(pa.Table.from_pylist(table, TYPES), path, row_group_size=3)
        part = Part(files=paths, schema=replace(SCHEMA, max_bad_rows=0.99), window=DAY)
        found = join([scan(part, rank, world_size) for rank in range(world_size)])
    judge(part, found)
    good = sum(map(len, numbers)) - len(bad)
    zeros = len(missing & {number for within in numbers for number in within} - bad.keys())
    assert (found.rows, found.readable) == (good + len(bad), good)
    assert found.missing == {"price": (zeros, good), "look": (zeros, good)}
    of = {number: (path, at) for path, within in zip(paths, numbers, strict=True) for at, number in enumerate(within)}
    expected = {of[number]: column for number, column in bad.items()}
    assert {(each.file, each.row): each.column for each in found.bad} == expected
    assert all(BAD[each.column][1] in each.problem and each.stray == (each.column == "timestamp") for each in found.bad)
    readable = [number for within in numbers for number in within if number not in bad]
    assert found.newest == DAY.start + max(readable)
    assert {file: rows.tolist() for file, rows in found.quarantine.rows.items()} == {
        path: sorted(at for file, at in expected if file == path) for path in {file for file, _ in expected}
    }


@settings(deadline=None)
@given(rows=st.integers(1, 40), gone=st.sets(st.integers(0, 39)))
def test_places_against_a_loop(rows: int, gone: set[int]) -> None:
    kept = [number for number in range(rows) if number not in gone]
    within = np.array(sorted(number for number in gone if number < rows), dtype=np.int64)
    assert places(np.arange(len(kept)), within).tolist() == kept
    path = Path("a")
    assert np.flatnonzero(Quarantine({path: within}).kept(path, rows)).tolist() == kept


@pytest.mark.parametrize("shuffle_batches", [0, 3])
def test_an_error_after_skipped_rows_names_the_row_of_the_file(tmp_path: Path, shuffle_batches: int) -> None:
    rows = [row(number) for number in range(20)]
    rows[13] |= {"click": 7}
    path = write(tmp_path / "a.parquet", [rows[:6], rows[6:]])
    stream = EventStream(
        [path],
        SCHEMA,
        batch_size=4,
        shuffle_batches=shuffle_batches,
        skip=Quarantine({path: np.array([0, 5, 6, 12])}),
    )
    with pytest.raises(DataError, match=r"a.parquet: column 'click', row 13: the label is 7"):
        list(stream)


def test_a_file_of_which_nothing_is_left(tmp_path: Path) -> None:
    """One among others is passed over; by itself it makes no step to train on, but is read to the end."""
    first, second = (write(tmp_path / f"{name}.parquet", [[row(number)]]) for number, name in enumerate("ab"))
    skip = Quarantine({first: np.array([0])})
    (batch,) = EventStream([first, second], SCHEMA, batch_size=1, skip=skip)
    assert batch.item_ids.tolist() == [1]
    assert list(EventStream([first], SCHEMA, batch_size=1, drop_last=False, skip=skip)) == []
    with pytest.raises(DataError, match="0 rows make no step"):
        EventStream([first], SCHEMA, batch_size=1, skip=skip)


@pytest.mark.parametrize(
    ("share", "files", "most"),
    [
        (0.001, [1], 0),
        (0.001, [2], 1),
        (0.001, [1000], 1),
        (0.001, [1001], 2),
        (0.001, [1001, 24], 3),
        (0.001, [1, 1], 1),
        (0.0, [10**6, 10**6], 0),
        (0.5, [7], 4),
        (0.99, [3], 2),
    ],
)
def test_how_many_may_be_bad(share: float, files: list[int], most: int) -> None:
    assert allowed(share, files) == most


@pytest.mark.parametrize(("column", "error"), [("click", DataError), ("timestamp", ClockSkewError)])
def test_too_many_bad_rows_are_refused(tmp_path: Path, column: str, error: type) -> None:
    rows = [row(number) for number in range(2000)]
    for number in (1500, *range(1600, 2000)):
        rows[number] |= BAD[column][0] if number == 1500 else {"click": None}
    part = Part(files=[write(tmp_path / "a.parquet", [rows[:1700], rows[1700:]])], schema=SCHEMA, window=DAY)
    found = scan(part)
    assert len(found.bad) == 3, "it does not go on once there are more than two"
    with pytest.raises(error, match=rf"a.parquet: column '{column}', row 1500: .*{BAD[column][1]}") as raised:
        judge(part, found)
    assert type(raised.value) is error
    text = "At least 3 of 2,000 rows cannot be used, max_bad_rows = 0.001 lets 2 pass: correct them, or raise max_bad"
    assert text in str(raised.value)


def test_a_file_that_is_broken_is_no_matter_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [[row(number) for number in range(100)]])
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.parquet: rows 0 to 99 \(row group 0\) cannot be read"):
        scan(Part(files=[path], schema=replace(SCHEMA, max_bad_rows=0.9)))


def test_two_parts_may_share_a_file(tmp_path: Path) -> None:
    rows = [row(number) for number in range(4)]
    rows[2] |= {"click": 5}
    part = Part(files=[write(tmp_path / "a.parquet", [rows])], schema=SCHEMA)
    twice: Findings = join([scan(part), scan(part)])
    assert [each.tolist() for each in twice.quarantine.rows.values()] == [[2]]
    assert twice.quarantine.count(part.files) == 1
    assert NOTHING.count(part.files) == 0


def test_the_share_in_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    replace(SCHEMA, max_bad_rows=0.25).save(path)
    assert Schema.load(path).max_bad_rows == 0.25
    assert Schema.load(path).select(features=("price",), labels=()).max_bad_rows == 0.25
    SCHEMA.save(path)
    assert "max_bad_rows" not in path.read_text()
    for text, problem in (("1", "use a share, 0 or more, below 1"), ("-0.1", "use a share"), ('"few"', "use a number")):
        path.write_text(f"max_bad_rows = {text}")
        with pytest.raises(SchemaError, match=rf"max_bad_rows is .*{problem}"):
            Schema.load(path)
