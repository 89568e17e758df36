"""Copies of a snapshot to a device, with the CPU as the device: what is copied, where to, and what is refused."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embedding_store import (
    ChecksumError,
    DeviceMemoryError,
    EmbeddingStore,
    InvalidArgumentError,
    InvalidIndexError,
    LiveTable,
    Series,
    Snapshot,
)
from embedding_store.dtypes import DTYPES
from embedding_store.errors import NativeLibraryError
from embedding_store.native import gpu
from embedding_store.native.mapping import Mapping
from embedding_store.read import upload as device_module
from embedding_store.read.copying import AT_ONCE, Manner, StoppedError
from embedding_store.read.snapshot import table_layout
from embedding_store.read.table import Table
from embedding_store.read.upload import upload
from tests.embedding_store.fake_gpu import DEVICE, FakeGpu
from tests.embedding_store.helpers import folder, publish
from tests.embedding_store.serve import following

EXTREMES = [-(2**63), -1, 0, 1, 2**31, 2**63 - 1]
IDS = EXTREMES + [100 + 7 * i for i in range(200)]


def copied(snapshot: Snapshot) -> Table:
    """What `load` gives for another device, on the CPU."""
    mapping, layout = mapped(snapshot)
    dtype = DTYPES[snapshot.dtype]
    storage, layout = upload(mapping, layout, dim=snapshot.dim, dtype=dtype, device="cpu", index_path="index.hash")
    return Table(snapshot.manifest, storage, layout)


def mapped(snapshot: Snapshot) -> tuple[Mapping, torch.Tensor]:
    mapping, header = snapshot._map(anew=False)
    return mapping, table_layout(snapshot.manifest, mapping.starts, header)


def assert_same(one: Table, other: Table, ids: list[int]) -> None:
    asked = torch.tensor(ids)
    vectors, found = one.lookup(asked)
    expected, expected_found = other.lookup(asked)
    assert torch.equal(vectors, expected)
    assert torch.equal(found, expected_found)


@pytest.mark.parametrize("dim", [1, 5, 16])
@pytest.mark.parametrize("name", DTYPES)
def test_a_copy_answers_as_the_mapping_does(store: EmbeddingStore, name: str, dim: int):
    series = store.create("user", dim=dim, dtype=name)
    vectors = torch.randn(len(IDS), dim, generator=torch.Generator().manual_seed(dim))
    snapshot = publish(series, 1, IDS, vectors, rows_per_batch=37)
    assert len(snapshot.manifest.segments) > 3
    table = copied(snapshot)
    assert int(table.layout[4]) == 1
    vector, scale, offset = table.layout[8:11].tolist()
    if DTYPES[name].quantised:  # in front of the values
        assert (vector, offset) == (scale + 8, scale + 4)
        assert scale % 256 == 0
        assert int(table.layout[5]) == -(-DTYPES[name].width(dim) // 8) * 8 + 8
    else:
        assert (vector % 256, int(table.layout[5])) == (0, 0)
    assert_same(table, snapshot.load(), [*IDS, 5, -7, 10**12])
    assert table.ids().tolist() == sorted(IDS)
    assert table.host_layout.device.type == "cpu"
    assert torch.equal(table.host_layout, table.layout.cpu())


@pytest.mark.parametrize("name", ["float32", "int4"])
def test_rows_that_no_id_leads_to_are_left_out(store: EmbeddingStore, name: str):
    series = store.create("user", dim=6, dtype=name)
    publish(series, 1, IDS, torch.randn(len(IDS), 6, generator=torch.Generator().manual_seed(1)))
    with series.write(as_of=2, space="ctr-1", base=1) as writer:
        writer.append(torch.tensor(IDS[:50]), torch.randn(50, 6, generator=torch.Generator().manual_seed(2)))
        writer.delete(torch.tensor(IDS[50:80]))
    snapshot = series.latest()
    assert snapshot.manifest.stored_rows == len(IDS) + 50
    table = copied(snapshot)
    assert int(table.layout[8 + 3]) == len(IDS) - 30
    assert_same(table, snapshot.load(), IDS)
    assert len(table.storage) < 2**10 + len(table.ids()) * (DTYPES[name].row_bytes(6) + 40)


@pytest.mark.parametrize("dim", [1, 8, 300])
def test_many_pieces_of_every_column(store: EmbeddingStore, dim: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_module, "_STAGING_BYTES", 256)
    pieces = []
    put = device_module._Copier.put

    def watched(self: device_module._Copier, target: torch.Tensor, fill) -> None:
        pieces.append(len(target))
        put(self, target, fill)

    monkeypatch.setattr(device_module._Copier, "put", watched)
    series = store.create("user", dim=dim, dtype="int8")
    snapshot = publish(series, 1, IDS, torch.randn(len(IDS), dim), rows_per_batch=50)
    assert_same(copied(snapshot), snapshot.load(), [*IDS, 3])
    assert max(pieces) <= max(256, 8 + dim + 4)  # what a staging buffer holds; a row is padded
    assert len(pieces) > 20


def test_an_empty_snapshot(series: Series):
    with series.write(as_of=1, space="ctr-1"):
        pass
    vectors, found = copied(series.latest()).lookup(torch.tensor(EXTREMES))
    assert not vectors.any()
    assert not found.any()


@pytest.mark.parametrize("name", ["vectors-00000.arrow", "index.hash"])
def test_a_flipped_bit_is_refused_and_named(series: Series, name: str):
    snapshot = publish(series, 1, IDS)
    [path] = Path(folder(series)).rglob(name)
    content = bytearray(path.read_bytes())
    content[-100 if name == "index.hash" else len(content) // 3] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(ChecksumError, match=name):
        copied(snapshot)


@pytest.mark.parametrize("location", [5 << 40, len(IDS), (1 << 40) + 0, -2])
def test_an_entry_that_points_to_no_row_is_refused(series: Series, location: int, monkeypatch: pytest.MonkeyPatch):
    snapshot = publish(series, 1, IDS)
    mapping, layout = mapped(snapshot)
    real = device_module._Source.slots

    def changed(self: device_module._Source):
        for first, slots in real(self):
            slots = slots.clone()
            slots[(slots[:, 0] == 107) & (slots[:, 1] != -1), 1] = location
            yield first, slots

    monkeypatch.setattr(device_module._Source, "slots", changed)
    with pytest.raises(InvalidIndexError, match=r"the-index: leads from id 107 to segment .* which does not exist"):
        upload(mapping, layout, dim=3, dtype=DTYPES["float32"], device="cpu", index_path="the-index")


def test_tiers_split_the_rows_at_the_budget(store: EmbeddingStore):
    series = store.create("user", dim=4, dtype="float32")
    vectors = torch.randn(len(IDS), 4, generator=torch.Generator().manual_seed(4))
    snapshot = publish(series, 1, IDS, vectors, rows_per_batch=60)
    index = int(snapshot.load().layout[2]) * 64
    budget = index + 16 * 50 + 1024
    table = snapshot.load(gpu_bytes=budget)
    hot = int(table.layout[8 + 3])
    assert len(table.storage) <= budget
    assert 50 < hot <= 50 + 1024 // 16
    assert int(table.layout[12 + 3]) == len(IDS) - hot
    assert_same(table, snapshot.load(), [*IDS, 5])
    hits = table.hits()
    assert (hits.hot, hits.cold, hits.missing) == (hot, len(IDS) - hot, 1)
    assert hits.rate == hot / len(IDS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_without_a_lookup_is_refused_before_anything_is_copied(series: Series):
    snapshot = publish(series, 1, IDS)
    for options in ({}, {"gpu_bytes": 2**20}):
        with pytest.raises(NativeLibraryError, match=r"no lookup for device 'cuda:1': for CUDA, install .* nvcc"):
            snapshot.load("cuda:1", **options)
        with pytest.raises(NativeLibraryError, match="no lookup for device 'meta'"):
            snapshot.load("meta", **options)
        with pytest.raises(InvalidArgumentError, match="device is 'gpu'; use cpu or cuda"):
            snapshot.load("gpu", **options)


def copying(patch: pytest.MonkeyPatch, **options: Any) -> None:
    """Have `Snapshot.load` copy, as to a GPU, what it would map."""
    real = Snapshot.load

    def load(self: Snapshot, device: object = "cpu", *, manner: Manner = AT_ONCE, **others: Any) -> Table:
        given = {"memory": manner.memory or gpu.device_memory, **options}
        return real(self, device, manner=replace(manner, **given), **others)

    patch.setattr(Snapshot, "load", load)


def test_a_copy_is_no_faster_than_it_may_be(series: Series, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_module, "_STAGING_BYTES", 1024)
    snapshot, rates, now = publish(series, 1, list(range(2000))), [], [0.0]
    real, slept = torch.ops.embedding_store.check_blocks, []

    def check(storage: torch.Tensor, first: int, count: int, rate: float) -> None:
        rates.append(rate)
        real(storage, first, count, 0.0)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(torch.ops.embedding_store, "check_blocks", check)
    monkeypatch.setattr(device_module, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    calls = []
    snapshot.load(
        manner=Manner(1e4, lambda done, of: calls.append((done, of)), lambda count, _: torch.empty(count).byte())
    )
    assert set(rates) == {1e4}
    (done, of) = calls[-1]
    assert done == of == calls[0][1]
    assert [one for one, _ in calls] == sorted(one for one, _ in calls)
    assert now[0] == pytest.approx(of / 1e4)
    assert len(slept) > 20


def test_a_live_table_copies_in_the_background_at_the_rate_of_checks(series: Series, monkeypatch: pytest.MonkeyPatch):
    manners = []
    real = Snapshot.load

    def load(self: Snapshot, device: object, *, manner: Manner, **others: Any) -> Table:
        manners.append(manner)
        return real(self, device, manner=manner, **others)

    monkeypatch.setattr(Snapshot, "load", load)
    following.publish(series)
    with LiveTable(series, interval=following.NEVER) as live:
        following.publish(series)
        assert live.refresh().version == 2
    assert [manner.rate for manner in manners] == [0.0, 5e8]
    assert manners[0].progress is None
    assert manners[1].progress is not None


def test_close_breaks_off_a_copy(series: Series, monkeypatch: pytest.MonkeyPatch):
    publish(series, 1, IDS)
    begun = threading.Event()

    def bytes(self: device_module._Source, *_: int) -> torch.Tensor:
        begun.set()
        while self._manner.progress(0, 1):
            time.sleep(0.001)
        raise StoppedError

    with LiveTable(series, interval=0.001) as live:
        copying(monkeypatch)
        monkeypatch.setattr(device_module._Source, "bytes", bytes)
        publish(series, 2, IDS)
        assert begun.wait(600)
    assert not live._thread.is_alive()
    assert (live.status.version, live.status.error) == (1, None)


def test_a_copy_that_is_broken_off_says_so(series: Series):
    snapshot, calls = publish(series, 1, IDS), []

    def progress(done: int, of: int) -> bool:
        calls.append(done)
        return len(calls) < 3

    with pytest.raises(StoppedError):
        snapshot.load(manner=Manner(0.0, progress, gpu.device_memory))
    assert len(calls) == 3


@pytest.mark.parametrize("held", [False, True])
def test_replaced_versions_give_their_memory_back(series: Series, monkeypatch: pytest.MonkeyPatch, held: bool):
    fake = FakeGpu(monkeypatch)
    copying(monkeypatch, memory=lambda count, _: gpu.device_memory(count, DEVICE))
    sizes = []

    def publish_next(rows: int) -> None:
        with series.write(as_of=10**6 + len(sizes), space="ctr-1") as writer:
            writer.append(torch.arange(rows), torch.zeros(rows, series.dim))

    publish_next(3000)
    with LiveTable(series, interval=following.NEVER) as live:
        sizes.append(fake.live)
        for rows in (3100, 2000, 3200, 3200, 100, 3300):
            reader = live.tables() if held else None
            publish_next(rows)
            assert live.refresh().error is None
            gc.collect()
            if reader is not None:
                assert bool(reader["user_ctr"].lookup(torch.tensor([5]))[1])
            del reader
            sizes.append(fake.live)
        assert live.status.swaps == 6
        assert fake.peak <= 2 * max(sizes) * 1.05
        assert fake.peak == max(map(sum, itertools.pairwise(sizes)))  # two versions, and nothing else
    del live
    gc.collect()
    assert fake.live == 0


def test_versions_that_fail_to_load_leave_nothing_behind(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch):
    fake = FakeGpu(monkeypatch)
    copying(monkeypatch, memory=lambda count, _: gpu.device_memory(count, DEVICE))
    user, item = store.create("user", dim=3), store.create("item", dim=3)
    for _ in range(3):
        for one in (user, item):
            following.publish(one)
            one.tag("prod", 1)
    following.spoil(user.version(2), user)  # the first copy breaks off
    following.spoil(item.version(3), item)  # the second one, when the first is made
    with LiveTable({"user": user, "item": item}, tag="prod", interval=following.NEVER) as live:
        served = fake.live
        for version in (2, 3):
            for one in (user, item):
                one.tag("prod", version)
            status = live.refresh()
            assert isinstance(status.error, ChecksumError)
            assert fake.live == served  # at once: no garbage collector was needed
        assert fake.peak > 1.9 * served
        fake.capacity = fake.live * 3 // 2  # for one of the two
        for one in (user, item):
            following.publish(one)
            one.tag("prod", 4)
        status = live.refresh()
        assert isinstance(status.error, DeviceMemoryError)
        assert (status.version, fake.live) == (1, served)
