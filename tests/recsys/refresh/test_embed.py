import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import SourceConfig
from recsys.data.convert import to_batch
from recsys.data.errors import DataError
from recsys.data.last_events import LastEvents, last_events, read_rows
from recsys.data.schema import Feature, Label, Schema, entity_schema
from recsys.data.strings import read_column
from recsys.refresh.embed import embed, own_files, source_files
from recsys.train.distributed import Environment
from tests.recsys.refresh.example import LAST, SCHEMA, SOURCE, plain_model, user_rows

MARKED = Schema(
    features=(Feature(name="mark", owner="user", kind="dense"), Feature(name="i", owner="item", kind="dense")),
    labels=(Label(name="click"),),
    user_id="who",
    item_id="what",
)
"""`mark` numbers the rows of all files."""
IDS = st.sampled_from([0, 1, -1, 7, 2**63 - 1, -(2**63)])
ROWS = st.lists(st.tuples(IDS, st.integers(0, 3)), min_size=1, max_size=9)
FILES = st.lists(ROWS, min_size=1, max_size=4)


def _write(
    folder: Path, files: list[list[tuple[int, int]]], first: int, row_group: int, schema: Schema, *, entity: bool
) -> int:
    folder.mkdir()
    for index, rows in enumerate(files):
        columns = {
            "who": pa.array([who for who, _ in rows], pa.int64()),
            "timestamp": pa.array([time for _, time in rows], pa.int64()),
            "mark": np.arange(first, first + len(rows), dtype=np.float64),
        }
        if not entity:
            columns |= {"what": columns["who"], "i": columns["mark"], "click": columns["timestamp"]}
        if not schema.timed:
            del columns["timestamp"]
        pq.write_table(pa.table(columns), folder / f"{index}.parquet", row_group_size=row_group)
        first += len(rows)
    return first


@settings(max_examples=80, deadline=None)
@given(
    events=FILES,
    entities=st.one_of(st.just([]), FILES),
    row_group=st.integers(1, 5),
    batch=st.integers(1, 7),
    timed=st.booleans(),
)
def test_last_events_against_a_loop(
    events: list[list[tuple[int, int]]],
    entities: list[list[tuple[int, int]]],
    row_group: int,
    batch: int,
    timed: bool,
) -> None:
    schema = MARKED if timed else replace(MARKED, timestamp="")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        first = _write(root / "events", events, 0, row_group, schema, entity=False)
        _write(root / "users", entities, first, row_group, schema, entity=True)
        users = ("users/*.parquet",) if entities else ()
        source = SourceConfig(schema="s", events=("events/*.parquet",), users=users)
        files, own = (of(root, source, "user") for of in (source_files, own_files))
        found = last_events(files, schema, "user", own=dict.fromkeys(own, 0))
        tables = list(read_rows(found, schema, "user", batch))
    everything = [(who, time * timed) for file in (*events, *entities) for who, time in file]
    last: dict[int, int] = {}
    for mark, (who, time) in enumerate(everything):
        if who not in last or time >= everything[last[who]][1]:
            last[who] = mark
    wanted = sorted(last.values())
    starts = np.cumsum([0, *(len(file) for file in (*events, *entities))])
    assert (starts[found.file] + found.row).tolist() == wanted
    assert found.ids.tolist() == [everything[mark][0] for mark in wanted]
    counts = Counter(who for file in events for who, _ in file)
    assert found.events.tolist() == [counts[who] for who in found.ids.tolist()]
    assert found.as_of == max(time for _, time in everything)
    assert [len(table) for table in tables[:-1]] == [batch] * (len(tables) - 1)
    assert [mark for table in tables for mark in table["mark"].to_pylist()] == wanted
    time = ("timestamp",) if timed else ()
    assert {tuple(table.column_names) for table in tables} <= {
        (*time, "who", "mark"),
        (*time, "who", "what", "mark"),  # where all files have the other id it may come along
    }
    shards = [found.shard(rank, 3) for rank in range(3)]
    assert np.concatenate([piece.ids for piece in shards]).tolist() == found.ids.tolist()
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_items_are_found_by_their_own_id(tmp_path: Path) -> None:
    table = {"timestamp": [5, 9, 7], "who": [1, 1, 2], "what": [8, 8, -3], "mark": [0.0, 1.0, 2.0]}
    pq.write_table(pa.table(table | {"i": [0.5, 1.5, 2.5], "click": [0, 0, 1]}), tmp_path / "a.parquet")
    found = last_events(source_files(tmp_path, SourceConfig(schema="s", events=("a.parquet",)), "item"), MARKED, "item")
    assert found.ids.tolist() == [8, -3]
    assert found.row.tolist() == [1, 2]
    (rows,) = read_rows(found, MARKED, "item", 10)
    assert rows["i"].to_pylist() == [1.5, 2.5]
    assert "mark" not in rows.column_names


def test_files_of_several_writers(tmp_path: Path) -> None:
    """Integer widths, list types and strings differ by file; a column `surface` is also in a folder's name."""
    schema = Schema(
        features=(
            Feature(name="seen", owner="user", kind="ids", rows=9),
            Feature(name="surface", owner="user", kind="id", rows=4),
        )
    )
    base = {"timestamp": pa.array([1, 2]), "item_id": pa.array([1, 2])}
    parts = {
        "a/surface=0": {"user_id": pa.array([4, 5], pa.int32()), "seen": pa.array([[1], [2, 3]], pa.list_(pa.int16()))},
        "b/surface=1": {"user_id": pa.array([4, 6], pa.uint64()), "seen": pa.array([[7], None])},
    }
    for index, (folder, columns) in enumerate(parts.items()):
        (tmp_path / folder).mkdir(parents=True)
        surface = pa.array([2, 3], pa.int8()) if index else pa.array([2, 3])
        pq.write_table(pa.table(base | columns | {"surface": surface}), tmp_path / folder / "part.parquet")
    users = {"timestamp": pa.array([0, 3]), "user_id": pa.array([7, 5], pa.int64()), "surface": pa.nulls(2)}
    users |= {"seen": pa.array([[], [8]], pa.large_list(pa.int32()))}
    pq.write_table(pa.table(users), tmp_path / "users.parquet")
    source = SourceConfig(schema="s", events=("*/*/*.parquet",), users=("users.parquet",))
    found = last_events(source_files(tmp_path, source, "user"), schema, "user")
    assert found.ids.tolist() == [4, 6, 7, 5]
    (rows,) = read_rows(found, schema, "user", 10)
    assert rows["seen"].to_pylist() == [[7], None, [], [8]]
    batch = to_batch(rows, entity_schema(schema, "user"))
    assert batch.sparse["surface"].lengths().tolist() == [1, 1, 0, 0]
    assert batch.user_ids.tolist() == [4, 6, 7, 5]


def test_string_ids_are_hashed_as_in_every_batch(tmp_path: Path) -> None:
    table = pa.table({"timestamp": [1, 2, 3], "who": ["ann", "bob", "ann"], "what": ["x", "y", "z"], "mark": [0, 1, 2]})
    table = table.append_column("i", pa.array([0, 1, 2])).append_column("click", pa.array([0, 1, 0]))
    pq.write_table(table, tmp_path / "a.parquet")
    found = last_events(source_files(tmp_path, SourceConfig(schema="s", events=("a.parquet",)), "user"), MARKED, "user")
    assert found.ids.tolist() == read_column(pa.array(["bob", "ann"]), pa.string()).to_pylist()
    (rows,) = read_rows(found, MARKED, "user", 10)
    assert to_batch(rows, entity_schema(MARKED, "user")).user_ids.tolist() == found.ids.tolist()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", pa.array([1, None, 3]), r"part-1.parquet: column 'user_id', row 1: the id is null"),
        ("timestamp", pa.array([1, -5, 3]), r"part-1.parquet: column 'timestamp', row 1: the event time is -5"),
        ("timestamp", pa.array([1, 2, 3], pa.int32()), r"part-1.parquet: column 'timestamp' has type int32"),
        ("user_id", pa.array(["a", "b", "c"]), r"part-1.parquet: column 'user_id' is read as string here"),
        ("age", pa.array([0.0, float("inf"), 0.0]), r"part-1.parquet: column 'age', row 1: the number is infinite"),
        (
            "seen_time",
            pa.array([[], [LAST + 7], []]),
            r"part-1.parquet: column 'seen_time', row 1: .*looks at the futu",
        ),
    ],
)
def test_bad_entity_rows_name_file_and_row(
    log: Path, tmp_path: Path, environment: Environment, column: str, values: pa.Array, message: str
) -> None:
    root = Path(shutil.copytree(log, tmp_path / "log"))
    rows = user_rows([1, 2, 3], time=LAST + 5).set_column(1, "user_id", pa.array([31, 32, 33]))
    rows = rows.set_column(rows.column_names.index("seen"), "seen", pa.array([[], [1], []]))
    rows = rows.set_column(rows.column_names.index("seen_time"), "seen_time", pa.array([[], [1], []]))
    rows = rows.set_column(rows.column_names.index(column), column, values)
    pq.write_table(rows, root / "users/part-1.parquet")
    with pytest.raises(DataError, match=message):
        list(
            embed(
                plain_model(),
                SCHEMA,
                last_events(source_files(root, SOURCE, "user"), SCHEMA, "user"),
                "user",
                environment,
                batch_size=4,
            )
        )


def test_damaged_pages_are_named(log: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(log, tmp_path / "log"))
    path = root / "users/part-0.parquet"
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pq.write_table(user_rows(list(range(500))), path, row_group_size=100, **options)
    start = pq.read_metadata(path).row_group(2).column(4).data_page_offset  # of `age`, which finding does not read
    data = bytearray(path.read_bytes())
    data[start + 200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"part-0.parquet: row group 2 cannot be read"):
        list(read_rows(last_events(source_files(root, SOURCE, "user"), SCHEMA, "user"), SCHEMA, "user", 64))


def test_a_pattern_without_files(log: Path) -> None:
    with pytest.raises(DataError, match=r"pattern 'none/\*' matches nothing"):
        last_events(source_files(log, replace(SOURCE, users=("none/*",)), "user"), SCHEMA, "user")


@pytest.mark.parametrize("owner", ["user", "item"])
@pytest.mark.parametrize("batch_size", [1, 5, 4096])
def test_embed_is_the_tower_on_the_last_rows(log: Path, environment: Environment, owner: str, batch_size: int) -> None:
    events, model = last_events(source_files(log, SOURCE, owner), SCHEMA, owner), plain_model()
    pieces = list(embed(model, SCHEMA, events, owner, environment, batch_size=batch_size))
    ids, vectors, times, counts = (torch.cat(column) for column in zip(*pieces, strict=True))
    assert ids.tolist() == events.ids.tolist()
    assert counts.tolist() == events.events.tolist()
    assert int(times.max()) == events.as_of
    assert not model.training
    files = [pq.read_table(path, partitioning=None) for path in events.files]
    for index in range(0, len(events), 4):
        row = files[events.file[index]].slice(events.row[index], 1)
        batch = to_batch(row, entity_schema(SCHEMA, owner))
        expected = model.user_vector(batch) if owner == "user" else model.item_vector(batch)
        torch.testing.assert_close(vectors[index : index + 1], expected)
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_entities_see_nothing_but_their_own_features(log: Path, tmp_path: Path, environment: Environment) -> None:
    """Other items, hours and labels in the same rows change no user's vector."""
    root = Path(shutil.copytree(log, tmp_path / "log"))
    for path in (root / "events").iterdir():
        table = pq.read_table(path)
        for name in ("item_id", "hour", "click"):
            table = table.set_column(table.column_names.index(name), name, pa.array(np.full(len(table), 1)))
        pq.write_table(table, path, row_group_size=3)
    (before,), (after,) = (
        list(
            embed(
                plain_model(),
                SCHEMA,
                last_events(source_files(folder, SOURCE, "user"), SCHEMA, "user"),
                "user",
                environment,
            )
        )
        for folder in (log, root)
    )
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


def test_shards_of_fewer_entities_than_ranks() -> None:
    ones = np.ones(2, np.int64)
    events = LastEvents((), np.array([5, 6]), np.zeros(2, np.int64), np.arange(2), ones, ones, 0)
    assert [events.shard(rank, 4).ids.tolist() for rank in range(4)] == [[], [5], [], [6]]
