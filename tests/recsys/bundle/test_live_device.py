"""Bundles whose tables are on a GPU, with a fake of it: what is loaded beside requests, and what is kept for them."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from embedding_store import DeviceMemoryError, EmbeddingStore
from embedding_store.native import gpu
from embedding_store.native.mapping import BACKGROUND_RATE
from embedding_store.read import upload
from embedding_store.read.copying import Manner, StoppedError
from recsys.bundle import LiveBundle, load_bundle
from recsys.bundle import bundle as loading
from recsys.bundle.pins import PinnedFeatures, pin
from recsys.data.batch import Batch
from recsys.data.convert import to_batch
from tests.embedding_store.fake_gpu import DEVICE, FakeGpu
from tests.recsys.bundle.live import OFTEN_S, Place
from tests.recsys.bundle.test_pins_device import NAMES
from tests.recsys.bundle.test_pins_device import batch as batch
from tests.recsys.bundle.test_pins_device import store as pinned_store  # noqa: F401


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Programs stay on the CPU."""
    made, program = FakeGpu(monkeypatch), loading._program
    monkeypatch.setattr(gpu, "usable", lambda device: torch.device(device))
    monkeypatch.setattr(loading, "_program", lambda folder, manifest, _: program(folder, manifest, torch.device("cpu")))
    return made


def test_it_closes_while_vectors_are_copied(place: Place, fake: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the rate of checks, too: a copy of all that the processor gives would be felt by requests."""
    manners, begun, over = list[Manner](), threading.Event(), threading.Event()

    def read_without_end(source: upload._Source, *_: int) -> torch.Tensor:
        manners.append(source._manner)
        begun.set()
        while not over.wait(OFTEN_S):
            if source._manner.progress is not None and source._manner.progress(0, 1) is False:
                break
        raise StoppedError

    with LiveBundle(place.link, DEVICE, store=place.store, vectors=DEVICE, interval_s=OFTEN_S) as live:
        served = fake.live
        assert served > 0
        monkeypatch.setattr(upload._Source, "bytes", read_without_end)
        place.deploy("b")
        assert begun.wait(600)
    closed = not live._thread.is_alive()
    over.set()
    assert closed
    assert (live.swaps, live.error, fake.live) == (0, None, served)
    assert {manner.rate for manner in manners} == {BACKGROUND_RATE}


def test_versions_of_a_history_make_no_room(
    pinned_store: EmbeddingStore,  # noqa: F811
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full GPU refuses a request, and answers the next one, from versions that have expired meanwhile."""
    read = PinnedFeatures(pinned_store, pin(pinned_store, NAMES, 2), 2, "mean", torch.device("cpu"))
    read.check()
    wanted = read(batch)
    for name in NAMES:
        (file,) = pinned_store.series(name).version(1).manifest.data
        pinned_store.series(name).expire(keep_last=1, dry_run=False)
        Path(pinned_store.location, name, file.path).unlink()  # as `clean` does an hour later
    real = gpu.sent

    def full(*_: object) -> None:
        monkeypatch.setattr(gpu, "sent", real)
        raise MemoryError

    monkeypatch.setattr(gpu, "sent", full)
    with pytest.raises(MemoryError):
        read(batch)
    again = read(batch)
    assert torch.equal(again.vectors, wanted.vectors)
    oldest = weakref.ref(read._opened[0].get(read._histories[0].snapshots[0]))
    gc.disable()
    try:
        del read
        assert oldest() is None
    finally:
        gc.enable()


def test_a_history_that_does_not_fit_is_refused(pinned_store: EmbeddingStore, fake: FakeGpu) -> None:  # noqa: F811
    read = PinnedFeatures(pinned_store, pin(pinned_store, NAMES, 2), 2, "mean", DEVICE)
    fake.capacity = fake.live
    message = r"version 1 of series 'user_ctr', of the history that the ranker reads, takes \d+ bytes of cuda:0"
    with pytest.raises(DeviceMemoryError, match=message):
        read.check()
    fake.capacity = 2 * fake.capacity
    read.check()
    del read
    gc.collect()
    assert fake.live == 0


def test_weights_are_not_given_to_others_while_a_stream_reads_them(
    made: Path, requests: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch keeps them until what was issued on the streams that it was told of is done."""
    current, on, told = [7], list[torch.device](), set[tuple[int, int]]()

    @contextmanager
    def use(device: torch.device) -> Iterator[None]:
        on.append(device)
        yield
        on.pop()

    def record(tensor: Tensor, stream: SimpleNamespace) -> None:
        told.add((tensor.data_ptr(), stream.cuda_stream))

    bundle = load_bundle(made)
    prepared = bundle.prepare(to_batch(requests[0], bundle.schema))
    program, devices = bundle._program, list[list[torch.device]]()
    weights = {x.data_ptr() for x in (*program.parameters(), *program.buffers())}  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "device", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=current[0]))
    monkeypatch.setattr(Tensor, "record_stream", record)
    bundle.device = DEVICE
    bundle._program = lambda *inputs: devices.append(list(on)) or program(*inputs)
    for current[0] in (7, 8, 7):
        bundle.run(prepared)
    assert devices == [[DEVICE]] * 3
    assert not told
    del bundle
    assert told == {(address, stream) for address in weights for stream in (7, 8)}
