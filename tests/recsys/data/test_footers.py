import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data import files as files_module
from recsys.data import footers as footers_module
from recsys.data import settled as settled_module
from recsys.data.files import check_files, read_footers
from recsys.data.footers import open_file, read_footer
from recsys.data.last_events import last_events, read_rows
from recsys.data.schema import Feature, Label, Schema
from recsys.data.stream import EventStream

SCHEMA = Schema(features=(Feature(name="price", owner="item", kind="dense"),), labels=(Label(name="click"),))
GROUPS, GROUP_ROWS = 10, 8


def _write(folder: Path, count: int, groups: int = GROUPS) -> list[Path]:
    """Files of 5 columns and 10 row groups; the item's id is the number of the row."""
    folder.mkdir(exist_ok=True)
    files = []
    for index in range(count):
        rows = np.arange(groups * GROUP_ROWS) + index * groups * GROUP_ROWS
        table = {"timestamp": rows, "user_id": rows % 7, "item_id": rows, "price": rows / 2, "click": rows % 2}
        files.append(folder / f"part-{index}.parquet")
        pq.write_table(pa.table(table), files[-1], row_group_size=GROUP_ROWS)
    return files


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """How often the footer of each file is parsed, as if all had been written long ago."""
    parsed: Counter[str] = Counter()
    read_metadata, parquet_file = pq.read_metadata, pq.ParquetFile

    def counted_read(path: Path) -> pq.FileMetaData:
        parsed[path.name] += 1
        return read_metadata(path)

    def counted_open(path: Path, *, metadata: pq.FileMetaData | None = None, **options: Any) -> pq.ParquetFile:
        parsed[path.name] += metadata is None
        return parquet_file(path, metadata=metadata, **options)

    with (
        patch.object(settled_module, "TICK_NS", 0),
        patch.object(pq, "read_metadata", counted_read),
        patch.object(pq, "ParquetFile", counted_open),
    ):
        yield parsed


@contextmanager
def _room_for(files: int) -> Iterator[None]:
    """Room for the footers of that many files of `_write` to be shuffled together, and of twice as many to be kept."""
    chunks = files * 5 * (GROUPS + 1)
    with (
        patch.object(footers_module, "KEPT_CHUNKS", 2 * chunks),
        patch.object(files_module, "_WINDOW_CHUNKS", chunks),
    ):
        yield


@pytest.mark.parametrize("shuffle_batches", [0, 3])
def test_a_footer_is_parsed_once_a_file(tmp_path: Path, shuffle_batches: int) -> None:
    files = _write(tmp_path, 4)
    with _counted() as parsed:
        check_files(files, SCHEMA)
        stream = EventStream(files, SCHEMA, batch_size=16, shuffle_batches=shuffle_batches, epochs=2)
        assert sum(map(len, stream)) == 2 * 4 * GROUPS * GROUP_ROWS
        chosen = last_events(files, SCHEMA, "item")
        assert sum(map(len, read_rows(chosen, SCHEMA, "item", 50))) == 4 * GROUPS * GROUP_ROWS
    assert parsed == {path.name: 1 for path in files}


@pytest.mark.parametrize("room", [0, 1, 2])
@pytest.mark.parametrize("shuffle_batches", [0, 3])
def test_and_once_a_pass_where_there_is_no_room_for_all(tmp_path: Path, shuffle_batches: int, room: int) -> None:
    files = _write(tmp_path, 7)
    with _room_for(room), _counted() as parsed:
        for _ in range(5):
            check_files(files, SCHEMA)
        assert set(parsed.values()) == {1}, "checks need little of a footer"
        stream = EventStream(files, SCHEMA, batch_size=16, shuffle_batches=shuffle_batches, epochs=2)
        read = [row for batch in stream for row in batch.item_ids.tolist()]
        assert sorted(read) == sorted([*range(7 * GROUPS * GROUP_ROWS)] * 2)
        assert max(parsed.values()) <= 1 + 2
        assert footers_module._PARSED._chunks <= max(footers_module.KEPT_CHUNKS, 5 * (GROUPS + 1))


def test_a_file_that_is_written_anew_is_parsed_anew(tmp_path: Path) -> None:
    (path,) = _write(tmp_path, 1)
    assert read_footer(path).group_rows == (GROUP_ROWS,) * GROUPS
    _write(tmp_path, 1, groups=3)
    assert read_footer(path).group_rows == (GROUP_ROWS,) * 3
    with open_file(path) as file:
        assert file.num_row_groups == 3


def test_one_that_looks_the_same_within_a_tick_of_the_clock_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,), (later,) = _write(tmp_path, 1), _write(tmp_path / "later", 1, groups=3)
    same = path.stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: same)
    monkeypatch.setattr(time, "time_ns", lambda: same.st_ctime_ns + settled_module.TICK_NS - 1)
    assert read_footer(path).group_rows == (GROUP_ROWS,) * GROUPS
    open_file(path).close()
    path.write_bytes(later.read_bytes())
    monkeypatch.setattr(time, "time_ns", lambda: same.st_ctime_ns + settled_module.TICK_NS)
    assert read_footer(path).group_rows == (GROUP_ROWS,) * 3
    with open_file(path) as file:
        assert file.num_row_groups == 3
    with _counted() as parsed:
        read_footer(path)
        open_file(path).close()
    assert not parsed.total(), "from now on it is kept"


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(1, 6), min_size=1, max_size=6), room=st.integers(0, 80), seed=st.integers(0, 2**32 - 1)
)
def test_shuffling_takes_files_together_as_far_as_there_is_room(groups: list[int], room: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder, patch.object(files_module, "_WINDOW_CHUNKS", room):
        footers = read_footers([_write(Path(folder) / str(n), 1, g)[0] for n, g in enumerate(groups)], SCHEMA)
        order, same = (footers.shuffled(np.random.default_rng(seed), np.random.default_rng(seed)) for _ in range(2))
    assert order == same
    assert sorted(order, key=footers.row_groups.index) == list(footers.row_groups)
    chunks = {file.row_groups[0].file: file.chunks for file in footers.files}
    if sum(chunks.values()) <= room:
        permuted = np.random.default_rng(seed).permutation(len(order))
        assert order == tuple(footers.row_groups[index] for index in permuted), "as one list"
    live: set[Path] = set()
    for place, group in enumerate(order):
        live.add(group.file)
        assert len(live) == 1 or sum(chunks[file] for file in live) <= room
        later = {other.file for other in order[place + 1 :]}
        if not live & later:
            live.clear()
