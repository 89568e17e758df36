"""Versions in so many bytes of a device, with the CPU as the device: what comes and goes, and what lookups give."""

from __future__ import annotations

import gc
import pickle
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedding_store import (
    ChecksumError,
    DeviceMemoryError,
    EmbeddingStore,
    InvalidArgumentError,
    OpenTables,
    PointInTime,
    Series,
    Snapshot,
)
from embedding_store.dtypes import DTYPES
from embedding_store.native import gpu, ops
from embedding_store.read.copying import Manner
from tests.embedding_store.fake_gpu import DEVICE, FakeGpu
from tests.embedding_store.helpers import publish
from tests.embedding_store.serve import following

IDS = [-(2**63), -1, 0, 1, 5, 2**63 - 1]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What power failures do is tested with the writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """The CPU's copies lie in a GPU's memory, which is counted."""
    made = FakeGpu(monkeypatch)
    allocate = gpu.device_memory
    monkeypatch.setattr(gpu, "device_memory", lambda count, _: allocate(count, DEVICE))
    return made


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions that were loaded, in turn."""
    versions: list[int] = []
    load = Snapshot.load

    def watched(snapshot: Snapshot, *arguments: object, **options: object) -> object:
        versions.append(snapshot.version)
        return load(snapshot, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Snapshot, "load", watched)
    return versions


@pytest.fixture
def versions(series: Series) -> list[Snapshot]:
    """Four, of 10, 20, 30 and 40, whose vectors hold their number. They take the same bytes each."""
    found = [publish(series, 10 * x, IDS, torch.full((len(IDS), 3), float(x))) for x in range(1, 5)]
    assert len({snapshot.device_bytes for snapshot in found}) == 1
    return found


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def of(then: PointInTime, times: list[int]) -> list[float]:
    """The first values of an id's vectors at these times."""
    vectors, found, _ = then.lookup(ints([5] * len(times)), ints(times))
    assert found.all()
    return vectors[:, 0].tolist()


def visible(then: PointInTime, times: list[int]) -> list[int]:
    return then.visible(ints(times)).tolist()


@pytest.mark.parametrize("dim", [1, 5, 16])
@pytest.mark.parametrize("name", DTYPES)
def test_what_a_copy_takes_is_known_before_it_is_made(store: EmbeddingStore, name: str, dim: int):
    series = store.create("user", dim=dim, dtype=name)
    ids = [7 * x for x in range(300)]
    publish(series, 1, ids, torch.randn(300, dim), rows_per_batch=37)
    with series.write(as_of=2, space="ctr-1", base=1) as writer:  # an overlay, and rows that no id leads to
        writer.append(ints([0, 7, 8]), torch.randn(3, dim))
        writer.delete(ints([14, 21]))
    with series.write(as_of=3, space="ctr-1"):
        pass
    assert series.version(2).manifest.overlay is not None
    for snapshot in series.history():
        table = snapshot.load(manner=Manner(memory=gpu.device_memory))
        assert len(table.storage) == snapshot.device_bytes


@settings(max_examples=25, deadline=None)
@given(
    contents=st.lists(
        st.tuples(st.lists(st.sampled_from(IDS), max_size=6, unique=True), st.sampled_from(["float32", "int8"])),
        min_size=1,
        max_size=6,
    ),
    events=st.lists(st.tuples(st.sampled_from(IDS), st.integers(-5, 70)), max_size=20),
    k=st.sampled_from([1, 2, 9]),
    room=st.integers(0, 7),
)
def test_a_lookup_in_parts_gives_what_one_at_once_gives(contents, events, k, room) -> None:
    with tempfile.TemporaryDirectory() as store:
        series = EmbeddingStore(store).create("user_ctr", dim=3)
        for number, (ids, dtype) in enumerate(contents):
            series = series if series.dtype == dtype else series.evolve(dtype=dtype)
            values = torch.tensor([float(number), -0.0, 1.5]).expand(len(ids), 3)
            publish(series, 10 * number, ids, values)
        most = max(snapshot.device_bytes for snapshot in series.history())
        mapped, parted = series.point_in_time(), series.point_in_time(gpu_bytes=most * (room + 1))
        ids, times = (ints([event[i] for event in events]) for i in (0, 1))
        for _ in range(2):
            for one, other in zip(parted.lookup(ids, times), mapped.lookup(ids, times), strict=True):
                assert torch.equal(one, other)
            history, whole = (each.lookup_history(ids, times, k) for each in (parted, mapped))
            for one, other in zip(history, whole, strict=True):
                assert torch.equal(one, other)
            assert torch.equal(history[0].signbit(), whole[0].signbit())  # which equal zeros may differ in


def test_no_more_bytes_are_taken_than_given(versions: list[Snapshot], fake: FakeGpu, loaded: list[int]):
    size = versions[0].device_bytes
    then = PointInTime(versions, 3, gpu_bytes=3 * size - 1)
    assert of(then, [10, 20]) == [1, 2]
    assert (fake.live, loaded) == (2 * size, [1, 2])
    assert of(then, [20, 10]) == [2, 1]
    assert of(then, [30]) == [3]  # 1 goes: 2 was entered after it
    assert of(then, [20]) == [2]
    assert loaded == [1, 2, 3]
    assert of(then, [10, 20, 30, 40]) == [1, 2, 3, 4]  # in parts: those that are open first
    assert loaded == [1, 2, 3, 1, 4]
    vectors, mask, ages = then.lookup_history(ints([5, 5]), ints([45, 25]), 4)
    assert vectors[..., 0].tolist() == [[4, 3, 2, 1], [2, 1, 0, 0]]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert ages.tolist() == [[5, 15, 25, 35], [5, 15, 0, 0]]
    assert (fake.live, fake.peak) == (2 * size, 2 * size)
    del then
    gc.collect()
    assert fake.live == 0


def test_one_that_alone_takes_more_is_an_error_with_a_remedy(versions: list[Snapshot], fake: FakeGpu):
    size = versions[0].device_bytes
    then = PointInTime(versions, 3, gpu_bytes=size - 1)
    message = (
        f"gpu_bytes is {size - 1}, but version 2 of series 'user_ctr' takes {size} bytes of cpu: give as many, or look"
    )
    with pytest.raises(DeviceMemoryError, match=message):
        then.lookup(ints([1]), ints([20]))
    assert fake.peak == 0
    assert not then.lookup(ints([1]), ints([9]))[1].any()  # which needs none


def test_a_full_device_gives_up_what_no_call_holds(versions: list[Snapshot], fake: FakeGpu):
    """Without a limit, or with one that others do not keep to."""
    size = versions[0].device_bytes
    fake.capacity = 2 * size + size // 2
    then = PointInTime(versions, 3, gpu_bytes=100 * size)
    for _ in range(2):
        assert of(then, [10, 20, 30, 40]) == [1, 2, 3, 4]
        assert fake.live == 2 * size
    fake.capacity = size  # others take more
    assert of(then, [40]) == [4]
    assert fake.live == size
    del then
    gc.collect()
    fake.capacity = size - 1
    message = (
        rf"version 3 of series 'user_ctr' takes {size} bytes of cpu, of .* has {size - 1} bytes free\): give as many"
    )
    with pytest.raises(DeviceMemoryError, match=message):
        of(PointInTime(versions, 3, gpu_bytes=size), [30])
    assert (fake.live, fake.mode) == (0, 0)


def test_a_version_that_cannot_be_loaded_leaves_its_room(series: Series, versions: list[Snapshot], fake: FakeGpu):
    size = versions[0].device_bytes
    following.spoil(versions[1], series)
    then = PointInTime(versions, 3, gpu_bytes=2 * size)
    assert of(then, [10]) == [1]
    for _ in range(3):
        with pytest.raises(ChecksumError):
            of(then, [20])
    assert of(then, [10, 30]) == [1, 3]
    assert fake.live == 2 * size


def test_series_share_a_limit(store: EmbeddingStore, fake: FakeGpu):
    """Of all of them the version that was used longest ago goes."""
    found = [publish(store.create(name, dim=3), 10, IDS) for name in ("user_a", "user_b", "user_c")]
    size = found[0].device_bytes
    tables = OpenTables(gpu_bytes=2 * size)
    then = [PointInTime([snapshot], 3, tables) for snapshot in found]
    expected = found[0].load().lookup(ints(IDS))
    for number in (0, 1, 0, 2, 0):
        vectors, known, _ = then[number].lookup(ints(IDS), torch.full((6,), 10))
        assert torch.equal(vectors, expected[0])
        assert torch.equal(known, expected[1])
        assert fake.live <= 2 * size
    assert tables.in_order(found) == [0, 2, 1]
    with pytest.raises(InvalidArgumentError, match="device is cpu and gpu_bytes None, but tables are given, on cpu"):
        PointInTime(found[:1], 3, tables, device="cpu")


@pytest.mark.parametrize("gpu_bytes", [None, 10_000])
def test_stores_that_share_a_limit_may_have_series_of_one_name(tmp_path: Path, gpu_bytes: int | None):
    """Of the same ids, so that their indexes are the same to the byte."""
    tables = OpenTables(gpu_bytes=gpu_bytes)
    for value in (1.0, 2.0):
        series = EmbeddingStore(tmp_path / str(value)).create("user_ctr", dim=3)
        snapshot = publish(series, 10, IDS, torch.full((len(IDS), 3), value))
        assert of(PointInTime([snapshot], 3, tables), [10]) == [value]


def test_the_cpu_may_have_a_number(versions: list[Snapshot]):
    then = PointInTime(versions, 3, device="cpu:0", gpu_bytes=10_000)
    assert of(then, [10, 40]) == [1, 4]
    assert then.device == then.lookup(ints([5]), ints([10]))[0].device


@pytest.mark.parametrize("gpu_bytes", [None, 10_000])
def test_a_pickled_one_opens_tables_of_its_own(versions: list[Snapshot], gpu_bytes: int | None):
    tables = OpenTables(gpu_bytes=gpu_bytes)
    before = [PointInTime(some, 3, tables) for some in (versions[:2], versions)]
    assert of(before[1], [10, 40]) == [1, 4]
    one, other = pickle.loads(pickle.dumps(before))
    assert (of(one, [10, 40]), of(other, [10, 40])) == ([1, 2], [1, 4])
    assert one._tables is other._tables  # they share a limit as those did
    assert (one._tables.gpu_bytes, one._tables.mapped) == (gpu_bytes, gpu_bytes is None)


def test_a_full_device_is_waited_for_where_another_call_has_it(versions: list[Snapshot], fake: FakeGpu):
    fake.capacity = versions[0].device_bytes
    tables, waiting, answers = OpenTables(gpu_bytes=10 * fake.capacity), threading.Event(), list[object]()
    wait = tables._changed.wait

    def noticed(timeout: float | None = None) -> bool:
        waiting.set()
        return wait(timeout)

    tables._changed.wait = noticed  # type: ignore[method-assign]

    def look_up() -> None:
        try:
            answers.append(of(PointInTime(versions, 3, tables), [30, 40]))
        except DeviceMemoryError as error:
            answers.append(error)
        waiting.set()

    thread = threading.Thread(target=look_up)
    with tables.held(versions) as first:  # all that there is room for
        assert len(first) == 1
        thread.start()
        assert waiting.wait(600)
        assert not answers
        del first
    thread.join(600)
    assert answers == [[3.0, 4.0]]


def test_who_holds_no_table_waits_for_room(versions: list[Snapshot], fake: FakeGpu):
    tables = OpenTables(gpu_bytes=2 * versions[0].device_bytes)
    waiting, answers = threading.Event(), list[list[float]]()
    wait = tables._changed.wait

    def noticed(timeout: float | None = None) -> bool:
        waiting.set()
        return wait(timeout)

    tables._changed.wait = noticed  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: answers.append(of(PointInTime(versions, 3, tables), [30, 40])))
    with tables.held(versions) as first:  # all that there is room for
        assert [table.manifest.version for table in first] == [1, 2]
        thread.start()
        assert waiting.wait(600)
        assert not answers
        del first
    thread.join(600)
    assert answers == [[3.0, 4.0]]
    assert fake.peak == 2 * versions[0].device_bytes


def test_what_is_held_while_another_has_the_rest(versions: list[Snapshot]):
    """Two calls that each hold a table, and need two, do not wait for each other."""
    tables = OpenTables(gpu_bytes=2 * versions[0].device_bytes)
    with tables.held(versions[:1]), tables.held(versions[1:]) as mine:
        assert [table.manifest.version for table in mine] == [2]
    with tables.held(versions[2:]) as mine:
        assert [table.manifest.version for table in mine] == [3, 4]


def test_many_threads_keep_to_the_limit(versions: list[Snapshot], fake: FakeGpu):
    size = versions[0].device_bytes
    tables, failed = OpenTables(gpu_bytes=2 * size), list[BaseException]()

    def look_up(seed: int) -> None:
        try:
            then = PointInTime(versions, 3, tables)
            for _ in range(20):
                order = torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
                assert of(then, [10 * x + 10 for x in order]) == [x + 1.0 for x in order]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=look_up, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)
    assert fake.peak == 2 * size


def test_a_place_that_cannot_be(series: Series):
    with pytest.raises(InvalidArgumentError, match="gpu_bytes is -1; use 0 or more bytes"):
        series.point_in_time(gpu_bytes=-1)
    with pytest.raises(InvalidArgumentError, match="device is 'gpu'; use cpu or cuda"):
        series.point_in_time(device="gpu")


def test_which_version_a_time_sees(versions: list[Snapshot]):
    then = PointInTime(versions, 3)
    assert then.visible(ints([9, 10, 15, 99, -(2**63), 2**63 - 1])).tolist() == [0, 1, 1, 4, 0, 4]
    assert then.visible(ints([9, 10, 15]).view(3, 1), 3).tolist() == [[0], [0], [1]]
    assert then.visible(ints([])).tolist() == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])  # of torch's ops, and of our own
def test_a_lookup_that_finds_the_device_full_gets_the_room_of_tables_that_nobody_holds(
    versions: list[Snapshot], fake: FakeGpu, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    """What torch allocates is none of a table's memory."""
    tables = OpenTables()
    tables.mapped = False
    then, real = PointInTime(versions, 3, tables), ops.lookup_versions
    assert of(then, [10, 20, 30]) == [1, 2, 3]
    needed = fake.live - versions[0].device_bytes

    def look_up(*arguments: Any) -> Any:
        if fake.live > needed:
            raise error("2 MiB")
        return real(*arguments)

    monkeypatch.setattr(ops, "lookup_versions", look_up)
    assert of(then, [20]) == [2]  # 1 goes, which was used longest ago
    assert fake.live == needed
    needed = 0
    with pytest.raises(error):
        of(then, [20])
    assert fake.live == versions[0].device_bytes  # of the one that is looked up in


@pytest.mark.parametrize(("ask", "full"), [*((of, number) for number in range(1, 7)), (visible, 1), (visible, 2)])
def test_nothing_that_a_lookup_takes_there_finds_the_device_full_while_tables_are_idle(
    versions: list[Snapshot], fake: FakeGpu, monkeypatch: pytest.MonkeyPatch, ask: Any, full: int
):
    """Ids, numbers and versions lie beside the tables as vectors do."""
    tables, asked = OpenTables(), 0
    tables.mapped = False
    then = PointInTime(versions, 3, tables)
    assert of(then, [10, 20, 30]) == [1, 2, 3]
    before = fake.live

    def lacking(work: Any) -> Any:
        def with_room(*arguments: Any, **others: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked >= full and fake.live == before:
                raise torch.OutOfMemoryError("2 MiB")
            return work(*arguments, **others)

        return with_room

    for place, name in ((gpu, "sent"), (torch, "searchsorted"), (Tensor, "take")):
        monkeypatch.setattr(place, name, lacking(getattr(place, name)))
    assert ask(then, [20]) == [2]
    assert fake.live == before - versions[0].device_bytes
    assert asked >= full
