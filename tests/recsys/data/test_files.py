from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.errors import DataError
from recsys.data.files import check_files, find_files, replacing_folder, write_part
from recsys.data.schema import Feature, Label, Schema

SCHEMA = Schema(
    features=(
        Feature(name="hour", owner="context", kind="id", rows=24),
        Feature(name="topics", owner="item", kind="ids", rows=9),
        Feature(name="price", owner="item", kind="dense"),
    ),
    labels=(Label(name="click"),),
)
COLUMNS = {"timestamp": [1, 2], "user_id": [1, 2], "item_id": [3, 4], "hour": [5, 6], "topics": [[1], []]}
COLUMNS |= {"price": [1.0, 2.0], "click": [0, 1]}


def _write(path: Path, rows: int = 2, **changes: pa.Array) -> Path:
    table = pa.table(COLUMNS)
    for name, column in changes.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table.slice(0, rows), path)
    return path


def test_find_files_keeps_the_patterns_order_and_sorts_within(tmp_path: Path) -> None:
    for name in ("b/day=2/x.parquet", "b/day=1/z.parquet", "b/day=1/y.parquet", "a/w.parquet", "a/readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_files(tmp_path, ["b/*/*.parquet", "**/*.parquet"])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["b/day=1/y.parquet", "b/day=1/z.parquet", "b/day=2/x.parquet", "a/w.parquet"]


def test_find_files_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    with pytest.raises(DataError, match=r"'events' matches only folders.*end it with /\*\.parquet"):
        find_files(tmp_path, ["events"])
    with pytest.raises(DataError, match="'events/x' matches nothing"):
        find_files(tmp_path, ["events/x"])
    for pattern in ("", "/data/*.parquet"):
        with pytest.raises(DataError, match="must be relative to the data folder"):
            find_files(tmp_path, [pattern])
    with pytest.raises(DataError, match="nowhere is no folder"):
        find_files(tmp_path / "nowhere", ["*"])


def test_check_files_counts_the_rows_of_all_files(tmp_path: Path) -> None:
    files = [_write(tmp_path / "a.parquet"), _write(tmp_path / "b.parquet", rows=1)]
    assert check_files(files, SCHEMA) == 3


def test_check_files_accepts_what_several_writers_make_of_one_schema(tmp_path: Path) -> None:
    files = [
        _write(tmp_path / "a.parquet", hour=pa.nulls(2), topics=pa.array([[], None], pa.list_(pa.null()))),
        _write(tmp_path / "b.parquet", hour=pa.array(["5", "6"]), price=pa.array([1, 2], pa.int8())),
        _write(tmp_path / "c.parquet", hour=pa.array(["5", None]).dictionary_encode(), click=pa.array([True, False])),
    ]
    assert check_files(files, SCHEMA) == 6


def test_check_files_asks_a_log_without_event_times_for_none(tmp_path: Path) -> None:
    untimed = replace(SCHEMA, timestamp="")
    pq.write_table(pa.table(COLUMNS).drop_columns(["timestamp"]), tmp_path / "a.parquet")
    other = _write(tmp_path / "b.parquet", timestamp=pa.array(["2024", "2025"]))  # a column of that name means nothing
    assert check_files([tmp_path / "a.parquet", other], untimed) == 4
    with pytest.raises(DataError, match=r"a.parquet: column 'timestamp' is missing"):
        check_files([tmp_path / "a.parquet"], SCHEMA)


def test_check_files_refuses_ids_of_two_kinds(tmp_path: Path) -> None:
    files = [_write(tmp_path / "a.parquet"), _write(tmp_path / "b.parquet", hour=pa.array(["5", "6"]))]
    with pytest.raises(DataError, match=r"b.parquet: column 'hour' is read as string here and as int64 before"):
        check_files(files, SCHEMA)


@pytest.mark.parametrize(
    ("name", "column", "wanted"),
    [
        ("timestamp", pa.array(["2024", "2025"]), "int64"),
        ("user_id", pa.array([1.5, 2.5]), "an integer or a string"),
        ("hour", pa.array([1.5, 2.5]), "an integer or a string"),
        ("topics", pa.array([1, 2]), "a list of an integer or a string"),
        ("price", pa.array(["1", "2"]), "a number"),
        ("click", pa.array(["0", "1"]), "a number"),
    ],
)
def test_check_files_names_file_column_found_and_wanted(
    tmp_path: Path, name: str, column: pa.Array, wanted: str
) -> None:
    files = [_write(tmp_path / "a.parquet"), _write(tmp_path / "b.parquet", **{name: column})]
    with pytest.raises(DataError) as caught:
        check_files(files, SCHEMA)
    message = str(caught.value)
    assert message.startswith(f"{files[1]}: column {name!r} has type {column.type}; ")
    assert f"must be {wanted}. Cast it in the files" in message


def test_check_files_names_the_missing_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(COLUMNS).drop_columns(["price"]), path)
    with pytest.raises(DataError, match=r"a.parquet: column 'price' is missing; .* a number\. The columns are: time"):
        check_files([path], SCHEMA)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"b.parquet \(0 bytes\) is no readable Parquet file"),
        (b"PAR1 but not for long", r"b.parquet \(21 bytes\) is no readable Parquet file"),
        (b"timestamp,user_id\n1,2\n", "is no readable Parquet file: .* Write it anew, or remove it"),
    ],
)
def test_a_foreign_file_in_the_middle(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "b.parquet").write_bytes(content)
    files = [_write(tmp_path / "a.parquet"), tmp_path / "b.parquet", _write(tmp_path / "c.parquet")]
    with pytest.raises(DataError, match=problem):
        check_files(files, SCHEMA)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_a_truncated_file(tmp_path: Path, kept: float) -> None:
    path = _write(tmp_path / "a.parquet")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"a.parquet .* is no readable Parquet file"):
        check_files([path], SCHEMA)


def test_a_damaged_footer(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    data[-300:-20] = b"\xff" * 280
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.parquet .* is no readable Parquet file"):
        check_files([path], SCHEMA)


def test_no_rows_and_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.parquet holds no rows: remove it"):
        check_files([_write(tmp_path / "a.parquet", rows=0)], SCHEMA)
    with pytest.raises(DataError, match=r"gone.parquet does not exist"):
        check_files([tmp_path / "gone.parquet"], SCHEMA)
    with pytest.raises(DataError, match="no files"):
        check_files([], SCHEMA)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "data" / "source"

    def write(text: str, fail: bool) -> None:
        with replacing_folder(target) as folder:
            (folder / "schema.toml").write_text(text)
            write_part(pa.table(COLUMNS), folder / "events")
            assert fail or folder != target
            if fail:
                raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write("never", fail=True)
    assert list(target.parent.iterdir()) == []
    write("first", fail=False)
    with pytest.raises(RuntimeError):
        write("half", fail=True)
    assert (target / "schema.toml").read_text() == "first"
    write("second", fail=False)
    assert (target / "schema.toml").read_text() == "second"
    assert check_files([target / "events" / "part-0.parquet"], SCHEMA) == 2
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(DataError, match="is there and is no prepared source"), replacing_folder(tmp_path):
        raise AssertionError("not reached")
    assert (tmp_path / "thesis.txt").exists()
