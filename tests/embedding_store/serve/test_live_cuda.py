"""Live tables on a GPU: streams, captured graphs, memory, and what goes wrong without ending the context."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import Tensor

from embedding_store import CapturableLiveTable, DeviceMemoryError, EmbeddingStore, InvalidIdsError, LiveTable, Series
from embedding_store.native import gpu, ops
from tests.embedding_store.serve.following import IDS, NEVER, eventually, publish, version_of
from tests.embedding_store.small_table import small_table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LONG = 2_000_000_000
"""Cycles of a kernel that blocks its stream: a second or so."""


@pytest.fixture
def large(store: EmbeddingStore) -> Series:
    return store.create("user_ctr", dim=256)


def of_one_version(answer: tuple[Tensor, Tensor]) -> float:
    return version_of(lambda _: (answer[0].cpu(), answer[1].cpu()))


def test_a_table_that_is_dropped_while_another_stream_reads_it(large: Series):
    publish(large)
    snapshot, ids, stream = large.latest(), IDS.cuda(), torch.cuda.Stream()
    for gpu_bytes in (None, 100_000):
        table = snapshot.load("cuda", gpu_bytes=gpu_bytes)
        with torch.cuda.stream(stream):  # kernels, and memory for its results, which may have to wait for the device
            assert version_of(lambda _, table=table: tuple(x.cpu() for x in table.lookup(ids))) == 1
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG)
            answer = table.lookup(ids)
        assert not stream.query()  # the lookup has not begun
        del table
        gc.collect()
        others = [torch.full((2**20,), 255, dtype=torch.uint8, device="cuda") for _ in range(8)]
        stream.synchronize()
        assert of_one_version(answer) == 1
        del others


def test_versions_replaced_under_lookups_on_side_streams(large: Series):
    publish(large)
    ids, streams = IDS.cuda(), [torch.cuda.Stream() for _ in range(3)]
    with LiveTable(large, interval=NEVER, device="cuda") as live:
        for version in range(1, 6):
            answers = []
            torch.cuda.synchronize()
            for stream in streams:
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(LONG // 10)
                    answers.append(live.lookup(ids))
            publish(large)
            assert live.refresh().version == version + 1
            torch.cuda.synchronize()
            assert {of_one_version(answer) for answer in answers} == {version}


def captured(live: CapturableLiveTable, ids: Tensor) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], Tensor]:
    """A graph of one lookup, its answer, and the version that it is of."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), live.reading() as reading:
        (table,) = reading.tables.values()
        answer = table.lookup(ids)
        version = reading.version.clone()
    return graph, answer, version


def test_a_captured_lookup_reads_the_version_that_is_served_at_its_replay(series: Series):
    publish(series)
    ids = IDS.cuda()
    with CapturableLiveTable(series, interval=NEVER, device="cuda") as live:
        assert of_one_version(live.lookup(ids)) == 1
        graph, answer, version = captured(live, ids)
        for expected in range(1, 8):
            graph.replay()
            assert of_one_version(answer) == int(version) == expected
            assert of_one_version(live.lookup(ids)) == expected
            publish(series)
            assert live.refresh().version == expected + 1


def test_replays_never_mix_versions_while_they_change(series: Series):
    publish(series)
    ids, streams = IDS.cuda(), [torch.cuda.Stream() for _ in range(2)]
    with CapturableLiveTable(series, interval=0.001, device="cuda") as live:
        live.lookup(ids)
        torch.cuda.synchronize()
        graphs = [captured(live, ids) for _ in streams]
        last, round = [0, 0], 0
        while round < 300 or (last[0] <= 3 and round < 20_000):
            assert live.status.error is None
            if round % 10 == 0:
                publish(series)
            round += 1
            for number, (stream, (graph, answer, version)) in enumerate(zip(streams, graphs, strict=True)):
                with torch.cuda.stream(stream):
                    graph.replay()
                    found = answer[0].cpu().unique().tolist()
                    assert found == [int(version)]
                    assert int(version) >= last[number]
                    last[number] = int(version)
        assert last[0] > 3


def test_a_slot_waits_for_a_replay_that_reads_it(series: Series):
    publish(series)
    ids, stream = IDS.cuda(), torch.cuda.Stream()
    with CapturableLiveTable(series, interval=NEVER, device="cuda") as live:

        def is_read() -> bool:
            return bool(live._slots._gate[1:].any())  # type: ignore[union-attr]

        live.lookup(ids)
        torch.cuda._sleep(1)
        assert not is_read()  # a kernel that is loaded while another runs may wait for its end
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), live.reading() as reading:
            torch.cuda._sleep(LONG)
            (table,) = reading.tables.values()
            answer = table.lookup(ids)
        with torch.cuda.stream(stream):
            graph.replay()
        publish(series)
        eventually(is_read)  # the replay is in
        assert live.refresh().version == 2
        publish(series)
        assert live.refresh().version == 3  # waits for the replay
        assert stream.query()
        assert of_one_version(answer) == 1


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_loading_does_not_disturb_captures_of_other_threads(large: Series, mode: str):
    publish(large)
    ids, stop, failed = IDS.cuda(), threading.Event(), list[Exception | None]()

    def load() -> None:
        with LiveTable(large, interval=NEVER, device="cuda") as live:
            while not stop.is_set():
                publish(large)
                failed.append(live.refresh().error)

    table = large.latest().load("cuda")
    table.lookup(ids)
    torch.cuda.synchronize()
    thread = threading.Thread(target=load)
    thread.start()
    try:
        captures = 0
        while captures < 100 or (len(failed) < 3 and captures < 20_000 and thread.is_alive()):
            captures += 1
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode=mode):
                answer = table.lookup(ids)
            graph.replay()
            assert of_one_version(answer) == 1
    finally:
        stop.set()
        thread.join()
    assert failed
    assert failed == [None] * len(failed)


def test_replaced_versions_give_their_memory_back(store: EmbeddingStore):
    series = store.create("user_ctr", dim=1024)

    def publish_next() -> None:
        version = max(series.versions(), default=0) + 1
        with series.write(as_of=version, space="ctr-1") as writer:
            for part in range(16):
                ids = torch.arange(part * 4096, (part + 1) * 4096)
                writer.append(ids, torch.full((4096, 1024), float(version)))

    def used() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free

    publish_next()
    gpu.usable(torch.device("cuda"))
    before = used()
    with LiveTable(series, interval=NEVER, device="cuda") as live:
        one = used() - before
        assert one > 2**28
        for version in range(2, 6):
            publish_next()
            held = live.tables()
            assert live.refresh().version == version
            assert used() - before <= 2 * one * 1.05  # both
            del held
            gc.collect()
            assert used() - before <= one * 1.05


def test_a_full_gpu_is_an_error_and_the_context_lives(store: EmbeddingStore):
    series = store.create("user_ctr", dim=1024)
    with series.write(as_of=1, space="ctr-1") as writer:
        writer.append(torch.arange(2**17), torch.ones(2**17, 1024))  # 512 MiB
    gpu.usable(torch.device("cuda"))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 2**28, dtype=torch.uint8, device="cuda")
    with pytest.raises(DeviceMemoryError, match=r"takes \d+ bytes of cuda:0, which has \d+ bytes free: give gpu_bytes"):
        series.latest().load("cuda")
    ids = torch.arange(1000, device="cuda")
    tiered = series.latest().load("cuda", gpu_bytes=2**27)
    assert bool((tiered.lookup(ids)[0] == 1).all())
    del hog  # torch keeps it for later: a table gets it all the same
    assert bool((series.latest().load("cuda").lookup(ids)[0] == 1).all())


def test_bad_input_is_refused_and_the_context_lives(series: Series):
    publish(series)
    table, ids = series.latest().load("cuda"), IDS.cuda()
    with pytest.raises(InvalidIdsError, match="ids are on cpu, the table is on cuda:0"):
        table.lookup(IDS)
    made = small_table([1, 2, 3], 4, "float32").to("cuda")
    with pytest.raises(ValueError, match="ids are not int64 on a CUDA device"):
        ops.lookup(IDS, made.storage, made.layout, 4, "float32")
    with pytest.raises(ValueError, match=f"dim is {2**20 + 1}; use 1 .. {2**20}"):
        ops.lookup(ids, made.storage, made.layout, 2**20 + 1, "float32")
    with pytest.raises(ValueError, match="dim is 0; use 1"):
        ops.lookup(ids, made.storage, made.layout, 0, "float32")
    assert of_one_version(table.lookup(ids)) == 1


def test_a_lookup_in_a_thread_that_has_used_no_gpu_yet(series: Series):
    publish(series)
    table, ids, answers = series.latest().load("cuda", gpu_bytes=100_000), IDS.cuda(), []
    thread = threading.Thread(target=lambda: answers.append(table.lookup(ids)))
    thread.start()
    thread.join()
    assert of_one_version(answers[0]) == 1
