"""The thread and the memory of a stream."""

import gc
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.data import stream as stream_module
from recsys.data.batch import Batch
from recsys.data.errors import DataError
from recsys.data.prefetch import in_order
from recsys.data.quarantine import Quarantine
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


def _decoding_threads() -> int:
    return sum(thread.name.startswith("recsys-decode") for thread in threading.enumerate())


@pytest.mark.parametrize("shuffle_batches", [0, 3])
@pytest.mark.parametrize("whole_rows", [1, 8, 10**6])
def test_several_decoding_threads_give_the_same_batches(
    tmp_path: Path, shuffle_batches: int, whole_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of row groups that a thread holds, and of those that are too large for one."""
    monkeypatch.setattr(stream_module, "_WHOLE_ROWS", whole_rows)
    files = write_files(tmp_path, [40, 3, 57, 1], row_group=9)
    skip = Quarantine({files[0]: np.array([0, 8, 9]), files[1]: np.array([0, 1, 2])})
    options = {"batch_size": 4, "shuffle_batches": shuffle_batches, "epochs": 2, "rank": 1, "world_size": 2}
    batches = []
    for workers in (1, 4):
        stream = EventStream(files, SCHEMA, workers=workers, skip=skip, **options)
        stream.seek(3)
        batches.append(list(stream))
    assert len(batches[0]) == len(batches[1]) > 10
    for one, several in zip(*batches, strict=True):
        assert (one.position, one.epoch) == (several.position, several.epoch)
        for name in ("user_ids", "item_ids", "timestamps", "labels", "label_mask"):
            assert torch.equal(getattr(one, name), getattr(several, name))
        assert torch.equal(one.sparse.values(), several.sparse.values())
        assert torch.equal(one.sparse.lengths(), several.sparse.lengths())
    assert _decoding_threads() == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_where_its_batch_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(stream_module, "CHUNK_ROWS", 5)  # blocks of a batch
    files = write_files(tmp_path, [20, 20, 20], row_group=5)
    stream = EventStream(files, SCHEMA, batch_size=5, workers=workers)
    files[1].unlink()
    taken = []
    with pytest.raises(DataError, match=files[1].name):
        taken.extend(stream)  # the first file's four are kept
    assert stream.position == 4
    assert _decoding_threads() == 0


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_an_interrupt_and_an_abandoned_iterator_leave_no_decoding_thread(tmp_path: Path, taken: int) -> None:
    files = write_files(tmp_path, [200], row_group=5)
    stream = EventStream(files, SCHEMA, batch_size=2, epochs=100, workers=3)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for number, _ in enumerate(stream):
            if number == taken:
                raise KeyboardInterrupt
    gc.collect()
    assert (_decoding_threads(), _input_threads()) == (0, 0)


def test_no_more_is_decoded_ahead_than_there_are_workers() -> None:
    begun, go = [], threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        assert go.wait(600)
        return item

    results = in_order(work, range(20), 3)
    threading.Timer(0.2, go.set).start()
    assert next(results) == 0
    assert len(begun) <= 4
    assert list(results) == list(range(1, 20))


def test_batches_are_pinned_in_the_input_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    monkeypatch.setattr(Batch, "pin_memory", lambda self: pinned.append(threading.current_thread().name) or self)
    files = write_files(tmp_path, [20], row_group=5)
    assert len(list(EventStream(files, SCHEMA, batch_size=5, pin_memory=True))) == 4
    assert pinned == ["recsys-input"] * 4
