"""Captured lookups of benchmarks/gpu, as far as a CPU shows them: whose graph is replayed, what is seen to be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.captured import Captured, replayed
from benchmarks.gpu.ids import Batch, draw
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.names import UNIFORM
from benchmarks.gpu.parts import graphs
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.tables import publish
from benchmarks.gpu.variants import Variant, unlike
from embedding_store import CapturableLiveTable, EmbeddingStore
from tests.benchmarks.gpu_records import records

CPU = torch.device("cpu")


class FakeGraph:
    """Does again what was done while it was captured, in the same memory."""

    capturing: FakeGraph | None = None

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []

    def replay(self) -> None:
        for ids, answer in self.steps:
            answer.copy_(ids * 2.0)


@contextmanager
def capture(graph: FakeGraph) -> Iterator[None]:
    FakeGraph.capturing = graph
    yield
    FakeGraph.capturing = None


def double(batch: Batch) -> Tensor:
    """On a GPU nothing is done while it is captured."""
    answer = torch.zeros(len(batch.ids))
    if FakeGraph.capturing is None:
        return batch.ids * 2.0
    FakeGraph.capturing.steps.append((batch.ids, answer))
    return answer


def doubled(batch: Batch, answer: Tensor) -> str | None:
    return None if torch.equal(answer, batch.ids * 2.0) else "not the double"


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs that are fakes; the one stream in the list is current."""
    current = ["default"]

    @contextmanager
    def use(stream: str) -> Iterator[None]:
        before, current[0] = current[0], stream
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[0])
    monkeypatch.setattr(torch.cuda, "stream", use)
    return current


def test_a_capture_that_fails_leaves_the_stream_as_it_was(streams: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fail(_: FakeGraph) -> Iterator[None]:
        """As torch's, whose end raises before it goes back."""
        streams[0] = "of captures"
        yield
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    with pytest.raises(RuntimeError, match="during capture"):
        Captured(double, torch.device("cuda")).prepare(draw(UNIFORM, 1, 10, 100, CPU, 0))
    assert streams == ["default"]


def test_each_batch_has_a_graph_of_its_own(streams: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    variant, captured = replayed(Variant("double", double, doubled), "replayed", torch.device("cuda"))
    assert variant.prepare is not None
    first, second = (draw(UNIFORM, 3, 10, 100, CPU, seed) for seed in (0, 1))
    variant.prepare(first)
    assert captured.batches == first
    for batch in reversed(first):
        assert variant.check(batch) is None  # what is spoilt is written anew by the replay
    variant.prepare(second)
    assert all(variant.check(batch) is None for batch in second)
    with pytest.raises(KeyError):
        captured(first[0])  # no longer captured
    monkeypatch.setattr(FakeGraph, "replay", lambda _: None)
    assert variant.check(second[0]) == "not the double"


def test_a_replay_of_another_version_is_seen(settings: Settings, journal: Journal) -> None:
    series = EmbeddingStore(settings.tables).create("captured", dim=6)
    publish(settings, series, 50, version=1)
    first = series.latest().load()
    batches = draw(UNIFORM, 2, 20, 50, CPU, 0)
    with CapturableLiveTable(series, interval=graphs.NEVER, device=CPU) as live:
        call = Captured(lambda batch: live.lookup(batch.ids), CPU)
        stale = Variant("stale", call, lambda batch, answer: unlike(first, batch, answer))
        assert all(stale.check(batch) is None for batch in batches)
        publish(settings, series, 50, version=2)
        assert live.refresh().version == 2
        graphs._check_swapped(stale, batches, 2, journal)
    assert journal.failures == [
        "stale, 20 ids, after a swap: 20 of 20 vectors are not the CPU's; so are 2 of 2",
    ]
    assert not records(settings.out, "swapped")


def test_a_swap_that_fails_ends_the_part(settings: Settings) -> None:
    series = EmbeddingStore(settings.tables).create("captured", dim=6)
    for version in graphs.VERSIONS:
        publish(settings, series, 50, version=version)
    series.tag(graphs.TAG, 1)
    with CapturableLiveTable(series, tag=graphs.TAG, interval=graphs.NEVER, device=CPU) as live:
        graphs._swap(series, live)
        assert live.status.version == 2
        graphs._swap(series, live)
        assert live.status.version == 1
        broken = SimpleNamespace(status=live.status, refresh=lambda: live.status)
        with pytest.raises(RuntimeError, match="version 2 is not served"):
            graphs._swap(series, broken)
