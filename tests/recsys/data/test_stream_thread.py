"""The thread and the memory of a stream."""

import gc
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data import stream as stream_module
from recsys.data.batch import Batch
from recsys.data.errors import DataError
from recsys.data.schema import Feature, Schema
from recsys.data.stream import EventStream
from tests.recsys.data.events import SCHEMA, write_files


def _input_threads() -> int:
    return sum(thread.name == "recsys-input" for thread in threading.enumerate())


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_abandoned_iterator_leaves_no_thread(tmp_path: Path, taken: int) -> None:
    files = write_files(tmp_path, [200], row_group=20)
    before = _input_threads()
    batches = iter(EventStream(files, SCHEMA, batch_size=2, epochs=100))
    for _ in range(taken):
        next(batches)
    assert _input_threads() == before + (taken > 0)
    del batches
    gc.collect()
    assert _input_threads() == before


def test_no_thread_is_left_after_the_end_or_an_error(tmp_path: Path) -> None:
    files = write_files(tmp_path, [20], row_group=20)
    before = _input_threads()
    stream = EventStream(files, SCHEMA, batch_size=2)
    list(stream)
    assert _input_threads() == before
    stream.seek(0)
    files[0].unlink()
    with pytest.raises(DataError):
        list(stream)
    gc.collect()
    assert _input_threads() == before


def test_wait_seconds_counts_waiting_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path, [20], row_group=20)

    clock = 0.0
    monkeypatch.setattr(stream_module, "time", SimpleNamespace(perf_counter=lambda: clock))

    class Slow(stream_module.Prefetcher[Batch]):
        def __next__(self) -> Batch:
            nonlocal clock
            clock += 1
            return super().__next__()

    monkeypatch.setattr(stream_module, "Prefetcher", Slow)
    stream = EventStream(files, SCHEMA, batch_size=2)
    for _ in stream:
        clock += 100  # the step's own time
    assert stream.wait_seconds == 11  # ten batches and the end


def test_memory_is_bounded_even_with_one_giant_row_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("timestamp", "user_id", "item_id", "word")
    table = pa.table({name: rng.integers(10**12, 2**40, 1_000_000) for name in names})
    path = tmp_path / "giant.parquet"
    pq.write_table(table, path, row_group_size=len(table), compression="none")
    schema = SCHEMA.select(features=("word",), labels=())
    schema = Schema(features=(*schema.features, Feature(name="user_id", owner="user", kind="id", rows=100)))
    stream = EventStream([path], schema, batch_size=1000, shuffle_batches=20)
    before, peak = pa.total_allocated_bytes(), 0
    for _ in stream:
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < table.nbytes / 2  # the file is as large as the table
