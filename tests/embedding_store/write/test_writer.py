"""Writing a snapshot: what is taken, what is refused, what is left when it fails."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack, suppress
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from embedding_store import (
    AsOfDecreasedError,
    DuplicateIdsError,
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIdsError,
    InvalidVectorsError,
    MissingFileError,
    NewerFormatError,
    Series,
    SnapshotWriter,
    WriterClosedError,
)
from embedding_store.scan import sorter
from embedding_store.storage.base import Sink
from embedding_store.storage.local import LocalStorage
from embedding_store.write import batches
from tests.embedding_store.helpers import age, files, folder, named_files, publish

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def data_folders(series: Series) -> int:
    return len(list(folder(series).glob("data/*")))


def test_nothing_is_visible_before_the_block_ends(series: Series):
    with series.write(as_of=1, space="ctr-1", rows_per_batch=1) as writer:
        writer.append(torch.tensor([1, 2]), torch.ones(2, 3))
        assert writer.rows == 2
        assert series.versions() == []
        with pytest.raises(WriterClosedError, match="nothing is published yet"):
            _ = writer.snapshot
    assert writer.snapshot.version == 1
    assert series.versions() == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_every_float_type_are_taken(series: Series, dtype: torch.dtype):
    snapshot = publish(series, 1, [4, 2], torch.tensor([[1, 2, 3], [0.5, -2, 0]], dtype=dtype))
    assert snapshot.load().lookup(torch.tensor([2, 4]))[0].tolist() == [[0.5, -2, 0], [1, 2, 3]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_arrays_are_taken(series: Series, dtype):
    ids, vectors = np.arange(6)[::-2], np.asfortranarray(np.arange(9, dtype=dtype).reshape(3, 3))
    ids.flags.writeable = vectors.flags.writeable = False
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(ids, vectors)
    got, found = series.latest().load().lookup(torch.tensor([5, 3, 1]))
    assert found.all()
    assert got.tolist() == vectors.tolist()


def test_the_writer_copies_what_it_is_given(series: Series):
    ids, vectors = torch.tensor([1, 2]), torch.ones(2, 3, requires_grad=True)
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(ids, vectors)
        ids.zero_()
        vectors.data.zero_()
    assert series.latest().load().lookup(torch.tensor([1, 2]))[0].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_big_endian_arrays_are_converted(series: Series):
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(np.array([1, 2**40], ">i8"), np.array([[1, 2, 3], [4, 5, 6]], ">f8"))
    assert series.latest().load().lookup(torch.tensor([2**40, 1]))[0].tolist() == [[4, 5, 6], [1, 2, 3]]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_a_models_output_is_taken_from_wherever_it_is(series: Series, device: str):
    model = torch.nn.Linear(2, 3, device=device)
    ids, inputs = torch.arange(5, device=device), torch.ones(5, 2, device=device)
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(ids, model(inputs))
    with series.write(as_of=1, space="ctr-1", base=1) as writer:
        writer.append(ids[::2], model(inputs)[::2].flip(1).half())
        writer.delete(ids[1::2])
    expected = model(inputs[:1]).flip(1).half().float().expand(3, -1).tolist()
    assert series.latest().load().lookup(torch.tensor([0, 2, 4]))[0].tolist() == expected
    assert series.latest().rows == 3


NOWHERE = [
    (torch.empty(2, 3, device="meta"), "on meta"),
    (FakeTensorMode().from_tensor(torch.ones(2, 3)), "FakeTensor"),
    (torch.ones(2, 3).to_sparse(), "sparse"),
]


@pytest.mark.parametrize(("tensor", "message"), NOWHERE)
def test_what_holds_no_values_is_refused_by_name(series: Series, tensor: torch.Tensor, message: str):
    publish(series, 1, [1])
    with series.write(as_of=1, space="ctr-1", base=1) as writer:
        with pytest.raises(InvalidVectorsError, match=f"vectors are .*{message}"):
            writer.append(torch.tensor([1, 2]), tensor)
        for take in (lambda ids: writer.append(ids, torch.ones(2, 3)), writer.delete):
            with pytest.raises(InvalidIdsError, match=f"ids are .*{message}"):
                take(tensor[:, 0].to(torch.int64))
    assert series.latest().load().ids().tolist() == [1]


@pytest.mark.parametrize(
    ("ids", "vectors", "error", "message"),
    [
        (torch.tensor([1], dtype=torch.int32), torch.ones(1, 3), InvalidIdsError, r"ids are torch.int32 \[1\]"),
        (torch.tensor([1.0]), torch.ones(1, 3), InvalidIdsError, r"ids are torch.float32 \[1\]: give int64 \[N\]"),
        (torch.tensor([[1]]), torch.ones(1, 3), InvalidIdsError, r"int64 \[1, 1\]"),
        (torch.tensor([1]), torch.ones(1, 4), InvalidVectorsError, r"\[1, 4\]: give float \[1, 3\]"),
        (torch.tensor([1]), torch.ones(2, 3), InvalidVectorsError, r"\[2, 3\]: give float \[1, 3\]"),
        (torch.tensor([1]), torch.ones(3), InvalidVectorsError, r"\[3\]: give float \[1, 3\]"),
        (torch.tensor([1]), torch.ones(1, 3, dtype=torch.int64), InvalidVectorsError, r"vectors are torch.int64"),
    ],
)
def test_wrong_types_and_shapes(series: Series, ids, vectors, error, message: str):
    with series.write(as_of=1, space="ctr-1") as writer, pytest.raises(error, match=message):
        writer.append(ids, vectors)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e39])
def test_values_that_cannot_be_stored_name_the_id(store: EmbeddingStore, dtype: str, value: float):
    series = store.create("user_ctr", dim=3, dtype=dtype)
    vectors = torch.ones(4, 3, dtype=torch.float64)
    vectors[2, 1] = value
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(torch.tensor([1]), torch.ones(1, 3))
        with pytest.raises(InvalidVectorsError, match=rf"id -12 \(row 2\) holds {value}".replace("+", r"\+")):
            writer.append(torch.tensor([10, 11, -12, 13]), vectors)
    assert series.latest().load().ids().tolist() == [1]  # of the refused call nothing was taken


def test_float16_refuses_what_would_become_infinite(store: EmbeddingStore):
    series = store.create("user_ctr", dim=1, dtype="float16")
    with (
        series.write(as_of=1, space="ctr-1") as writer,
        pytest.raises(InvalidVectorsError, match="float16 holds finite values up to 65504"),
    ):
        writer.append(torch.tensor([1]), torch.tensor([[65530.0]]))


def test_settings_are_checked_before_anything_is_written(series: Series):
    for options, message in [
        ({"space": ""}, "space is ''"),
        ({"space": "s", "duplicates": "first"}, "duplicates is 'first'; use one of error, last"),
        ({"space": "s", "rows_per_batch": 0}, "rows_per_batch is 0"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            series.write(as_of=1, **options)
    assert data_folders(series) == 0


@pytest.mark.parametrize("rows_per_batch", [1, 2, 3, None])
def test_duplicates_are_an_error_or_the_last_one_wins(series: Series, rows_per_batch: int | None):
    def write(duplicates: str) -> None:
        with series.write(as_of=1, space="s", duplicates=duplicates, rows_per_batch=rows_per_batch) as writer:
            writer.append(torch.tensor([5, 9, 5]), torch.arange(3.0)[:, None].expand(3, 3))
            writer.append(torch.tensor([1, 9]), torch.arange(3.0, 5.0)[:, None].expand(2, 3))

    with pytest.raises(DuplicateIdsError, match=r'2 ids were appended more than once \(5, 9\).*duplicates="last"'):
        write("error")
    assert (series.versions(), data_folders(series)) == ([], 0)
    write("last")
    snapshot = series.latest()
    snapshot.verify()
    assert (snapshot.rows, snapshot.statistics.mean) == (3, (3.0, 3.0, 3.0))
    vectors, found = snapshot.load().lookup(torch.tensor([1, 5, 9]))
    assert found.all()
    assert vectors[:, 0].tolist() == [3, 2, 4]
    assert files(series) == named_files(series)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_statistics_are_those_of_the_stored_vectors(store: EmbeddingStore, dtype: str):
    series = store.create("user_ctr", dim=4, dtype=dtype)
    vectors = torch.randn(70, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    snapshot = publish(series, 1, list(range(-30, 40)), vectors, rows_per_batch=32)
    stored = snapshot.load().lookup(torch.arange(-30, 40))[0].double()
    statistics = snapshot.statistics
    assert statistics.mean_norm == pytest.approx(float(stored.norm(dim=1).mean()))
    assert statistics.mean == pytest.approx(stored.mean(0).tolist())
    assert (statistics.min_id, statistics.max_id) == (-30, 39)


def test_statistics_of_huge_values_are_finite(series: Series):
    snapshot = publish(series, 1, [1, 2], torch.full((2, 3), 3e38))
    assert snapshot.statistics.mean_norm == pytest.approx(3**0.5 * 3e38)


def test_an_exception_leaves_nothing(series: Series):
    def write() -> None:
        with series.write(as_of=2, space="s", rows_per_batch=1) as writer:
            writer.append(torch.tensor([1, 2, 3]), torch.ones(3, 3))
            assert data_folders(series) == 2
            _ = 1 / 0

    publish(series, 1, [1])
    with pytest.raises(ZeroDivisionError):
        write()
    assert (series.versions(), data_folders(series)) == ([1], 1)


def test_a_writer_writes_once_and_inside_its_block(series: Series):
    writer = series.write(as_of=1, space="s")
    with pytest.raises(WriterClosedError, match="the writer is new"):
        writer.append(torch.tensor([1]), torch.ones(1, 3))
    with writer:
        pass
    with pytest.raises(WriterClosedError, match="the writer is closed"):
        writer.append(torch.tensor([1]), torch.ones(1, 3))
    with pytest.raises(WriterClosedError), writer:
        pass


def append_often(writer: SnapshotWriter, ids: torch.Tensor, vectors: torch.Tensor) -> None:
    """More than two buffers: by no more may the thread that writes be behind."""
    for _ in range(50):
        writer.append(ids, vectors)


@pytest.mark.parametrize("swallow", [False, True])
def test_a_full_disk_publishes_nothing(series: Series, monkeypatch: pytest.MonkeyPatch, swallow: bool):
    write, written = Sink.write, 0

    def full(self: Sink, data) -> int:
        nonlocal written
        written += memoryview(data).nbytes
        if written > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Sink, "write", full)
    ids, vectors = torch.arange(100), torch.ones(100, 3)
    if swallow:
        with (
            pytest.raises(WriterClosedError, match="failed half-way: nothing is published"),
            series.write(as_of=1, space="s", rows_per_batch=40) as writer,
            suppress(OSError),
        ):
            append_often(writer, ids, vectors)
    else:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            publish(series, 1, ids.tolist(), rows_per_batch=40)
    assert (series.versions(), data_folders(series)) == ([], 0)


@pytest.mark.parametrize(("theirs", "wins"), [(5, True), (6, False)])
def test_the_loser_of_a_race_takes_the_next_version(
    series: Series, monkeypatch: pytest.MonkeyPatch, theirs: int, wins: bool
):
    put_new = LocalStorage.put_new

    def overtaken(self: LocalStorage, path: str, data: bytes) -> None:
        monkeypatch.setattr(LocalStorage, "put_new", put_new)
        publish(series, theirs, [99])
        put_new(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_new", overtaken)
    if wins:
        assert publish(series, 5, [1]).version == 2
    else:
        with pytest.raises(AsOfDecreasedError):
            publish(series, 5, [1])
    assert [s.rows for s in series.history()] == [1] * (1 + wins)
    assert series.version(1).load().ids().tolist() == [99]
    assert data_folders(series) == 1 + wins


def test_clean_takes_old_remains_only(store: EmbeddingStore, series: Series):
    publish(series, 1, [1])
    for name in ("dead", "fresh"):
        (folder(series) / "data" / name).mkdir()
        (folder(series) / "data" / name / "vectors-00000.arrow").write_bytes(b"x")
    (folder(series) / "manifests" / ".00000002.json.0a.tmp").write_bytes(b"x")
    age(folder(series), 7200)
    age(folder(series) / "data" / "fresh", 1800)
    with pytest.raises(InvalidArgumentError, match="grace is 0:59:59; use at least 1:00:00"):
        series.clean(timedelta(minutes=59, seconds=59))
    assert store.clean(timedelta(hours=3)) == []
    assert store.clean() == ["user_ctr/data/dead", "user_ctr/manifests/.00000002.json.0a.tmp"]
    assert store.clean() == []
    series.latest().verify()
    assert (folder(series) / "data" / "fresh").exists()


def test_clean_keeps_its_hands_off_when_a_manifest_cannot_be_read(series: Series):
    publish(series, 1, [1])
    manifest = folder(series) / "manifests" / "00000001.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 3', '"format_version": 4'))
    age(folder(series), 7200)
    with pytest.raises(NewerFormatError, match="format_version is 4"):
        Series(series._storage, series.name).clean()
    assert data_folders(series) == 1


def test_a_slow_writer_shows_that_it_lives(series: Series, monkeypatch: pytest.MonkeyPatch):
    clock = 0.0
    monkeypatch.setattr(batches, "time", SimpleNamespace(monotonic=lambda: clock))
    with series.write(as_of=1, space="s") as writer:
        for i in range(4):
            writer.append(torch.tensor([i]), torch.ones(1, 3))
            clock += 400.0
    assert [file.rows for file in writer.snapshot.manifest.data] == [3, 1]


def test_files_end_at_their_size(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "FILE_BYTES", 200)  # of 20 bytes a row
    snapshot = publish(series, 1, list(range(33)), rows_per_batch=4)
    assert [[segment.rows for segment in file.segments] for file in snapshot.manifest.data] == [[4] * 3] * 2 + [
        [4, 4, 1]
    ]
    snapshot.verify()


def test_a_writer_that_was_cleaned_away_publishes_nothing(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "FILE_BYTES", 1)

    def write() -> None:
        with series.write(as_of=1, space="s", rows_per_batch=1) as writer:
            writer.append(torch.tensor([1]), torch.ones(1, 3))
            while not any(path.stat().st_size for path in folder(series).glob("data/*/vectors-00000.arrow.crc")):
                time.sleep(0.001)  # for the thread that writes: it is whole, and its time is not set any more
            age(folder(series), 7200)
            assert len(series.clean()) == 1
            writer.append(torch.tensor([2]), torch.ones(1, 3))

    with pytest.raises(MissingFileError):
        write()
    assert series.versions() == []


def test_no_thread_is_left(series: Series):
    publish(series, 1, [1])
    with suppress(ZeroDivisionError), series.write(as_of=1, space="s"):
        _ = 1 / 0
    assert not [thread for thread in threading.enumerate() if thread.name == "embedding_store.writer"]


def test_an_interrupt_while_waiting_for_the_disk_ends_the_writer(series: Series, monkeypatch: pytest.MonkeyPatch):
    main, interrupted = threading.main_thread().ident or 0, threading.Event()

    def interrupt(self: Sink, data: bytes) -> int:
        """Once, when the main thread waits for a buffer, however long it takes to come to that."""
        while not interrupted.is_set():
            if sys._current_frames()[main].f_code is batches.BatchWriter._seal.__code__:
                interrupted.set()
                signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.001)
        return len(data)

    monkeypatch.setattr(Sink, "write", interrupt)

    def write() -> None:
        with series.write(as_of=1, space="s", rows_per_batch=1) as writer:
            writer.append(torch.arange(1000), torch.ones(1000, 3))

    with ExitStack() as kept:
        kept.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        with pytest.raises(KeyboardInterrupt):
            write()
    assert (series.versions(), data_folders(series)) == ([], 0)


def test_memory_does_not_grow_with_the_rows(series: Series):
    def peak(count: int) -> int:
        ids, vectors = torch.arange(10_000), torch.ones(10_000, 3)
        tracemalloc.start()
        with series.write(as_of=1, space="s", rows_per_batch=10_000) as writer:
            for start in range(count):
                writer.append(ids + start * 10_000, vectors)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorter, "RUN", 20_000)
        patch.setattr(sorter, "SPILL_BYTES", 1 << 16)
        peak(1)
        assert peak(60) < peak(6) + (1 << 20)  # 54 batches more are 8.6 MB of ids and locations
